"""What the rows of a source look like: lengths, languages, roles, and patterns that a reviewer should see."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from secvec.components.ingest_data.turns import Turn

EXAMPLES = 5
_SHOWN = 300
# By script, as that is all that can be told of a short text; the first that is found names the language.
_SCRIPTS = (
    ("Japanese", re.compile("[\u3040-\u30ff\uff66-\uff9f]")),
    ("Korean", re.compile("[\u1100-\u11ff\uac00-\ud7af]")),
    ("Chinese characters", re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")),
    ("Cyrillic", re.compile("[\u0400-\u04ff]")),
    ("Arabic", re.compile("[\u0600-\u06ff]")),
    ("Devanagari", re.compile("[\u0900-\u097f]")),
    ("Thai", re.compile("[\u0e00-\u0e7f]")),
    ("Greek", re.compile("[\u0370-\u03ff]")),
    ("Hebrew", re.compile("[\u0590-\u05ff]")),
)
_HIDDEN = re.compile("[\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")
_REPLACED = "\ufffd"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ENCODED = re.compile(r"[A-Za-z0-9+/]{200}")
_WORDS = (
    (
        "instructions to ignore instructions",
        "ignore",
        re.compile(r"ignore (?:all |any )?(?:previous|prior|above)"),
    ),
    ("template marks", "<|", re.compile(r"<\|[a-z_]+\|>")),
    ("template marks", "[/inst]", re.compile(r"\[/inst\]")),
    ("keys of cloud accounts", "akia", re.compile(r"\bakia[0-9a-z]{16}\b")),
    ("private keys", "-----begin", re.compile(r"-----begin [a-z ]*private key-----")),
    ("scripts", "<script", re.compile(r"<script\b")),
)


@dataclass
class Figures:
    """Counts over rows; those of two parts add up.

    Attributes:
        characters: Rows by the number of characters of all turns, rounded up to a power of two.
        tokens: The same by tokens of the model's tokenizer, where one is named.
        turns: Rows by the roles that speak in turn.
        languages: Rows by language, as far as the script tells it.
        patterns: Rows in which something is found that a reviewer should see.
        examples: Id, source, line and text of the rows with the smallest content ids.
    """

    characters: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    patterns: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, int, str]] = field(default_factory=list)

    def look(self, digest: bytes, turns: Sequence[Turn], *, place: tuple[str, int], tokens: int) -> None:
        """Take in one row."""
        text = "\n".join([turn.content for turn in turns])
        self.characters[_round_up(len(text) - len(turns) + 1)] += 1
        if tokens:
            self.tokens[_round_up(tokens)] += 1
        self.turns[" ".join([turn.role for turn in turns[:8]]) + (" ..." if len(turns) > 8 else "")] += 1
        self.languages[_tell_language(text)] += 1
        for pattern in find_patterns(text):
            self.patterns[pattern] += 1
        if len(self.examples) < EXAMPLES or digest.hex() < self.examples[-1][0]:
            self.examples = sorted({*self.examples, (digest.hex(), *place, text[:_SHOWN])})[:EXAMPLES]

    def add(self, other: Figures) -> None:
        """Take in the counts of other rows."""
        for name in ("characters", "tokens", "turns", "languages", "patterns"):
            getattr(self, name).update(getattr(other, name))
        self.examples = sorted({*self.examples, *other.examples})[:EXAMPLES]

    def describe(self) -> dict[str, Any]:
        """Give the figures as JSON."""
        return {
            "characters": {str(key): self.characters[key] for key in sorted(self.characters)},
            "tokens": {str(key): self.tokens[key] for key in sorted(self.tokens)},
            "turns": dict(sorted(self.turns.items(), key=lambda item: (-item[1], item[0]))[:20]),
            "languages": dict(sorted(self.languages.items(), key=lambda item: (-item[1], item[0]))),
            "patterns": dict(sorted(self.patterns.items())),
            "examples": [
                {"id": f"sha256:{row}", "source": source, "line": line, "text": text}
                for row, source, line, text in self.examples
            ],
        }


def find_patterns(text: str) -> set[str]:
    """Name what is in a text that a reviewer should see."""
    found = set()
    if not text.isascii():
        if _HIDDEN.search(text):
            found.add("hidden characters")
        if _REPLACED in text:
            found.add("characters that were lost")
    if not text.isprintable() and _CONTROL.search(text):
        found.add("control characters")
    lower = text.lower()
    found.update(name for name, word, pattern in _WORDS if word in lower and pattern.search(lower))
    if _ENCODED.search(text):
        found.add("long encoded text")
    return found


def _tell_language(text: str) -> str:
    if text.isascii():
        return "Latin"
    return next((name for name, script in _SCRIPTS if script.search(text)), "Latin")


def _round_up(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
