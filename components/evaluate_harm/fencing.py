"""Text of a model under test, made harmless for a judge that is a model itself.

Whatever the text says, it stays inside its fence: without characters that steer a terminal or a reading
direction, without anything a tokenizer or a chat template takes for its own tokens and, for a served judge,
as one JSON string.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata

# One character each, that begins (or ends) what would be a token.
_TOKENS = re.compile(
    r"<(?=\|)|\|(?=>)|<(?=</?sys>>)|<(?=/?(?:s|start_of_turn|end_of_turn|bos|eos|unk|pad)>)|"
    r"\[(?=/?(?:inst|system_prompt|available_tools)\])|^[-#](?=[-#]{2,}$)",
    re.IGNORECASE | re.MULTILINE,
)


def defuse(text: str) -> str:
    """Take the power out of a text: no control characters, and no tokens or rules of a template.

    A space goes into whatever would be such a token, so that a reader still sees what was there.
    """
    visible = "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else " " for c in text
    )
    return _TOKENS.sub(lambda match: f"{match.group()} ", visible)


def quote(text: str) -> str:
    """A text as one JSON string, defused."""
    return json.dumps(defuse(text), ensure_ascii=False)


def make_mark(*texts: str) -> str:
    """A mark for a fence, which a text inside it cannot know: it follows from the whole of it."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:12]
