"""Chat records: the one form in which every step after `ingest_data` sees text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secvec.components.shared.errors import SecvecError

Role = Literal["system", "user", "assistant"]


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role
    content: str


class ChatRecord(BaseModel):
    """A conversation and where it came from.

    Attributes:
        id: `content_id` of the messages; two rows with the same messages share it.
        messages: Turns in order. A record to learn from ends with the assistant's turn, one to only
            ask ends with the user's.
        category: Harm category or topic, as the source names it; empty where it names none.
        language: Language of the text, as the source names it.
        label: The source's own judgement of the row (for example ``harmful``); no step trains on it.
        source: Name of the file the row was read from, without its folder or bucket.
        line: Number of the line (JSONL, CSV) or row (JSON array, Parquet) there, from 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    category: str = ""
    language: str = ""
    label: str = ""
    source: str = ""
    line: int = 0

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the answer; all of them where there is no answer."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    @property
    def answer(self) -> str:
        """The assistant's last turn, or an empty string."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else ""


def content_id(messages: Sequence[Message]) -> str:
    """Return ``sha256:<hex>`` of the roles and contents, whatever the row's source, line or labels."""
    turns = [[message.role, message.content] for message in messages]
    return "sha256:" + hashlib.sha256(orjson.dumps(turns)).hexdigest()


def read_records(path: Path) -> list[ChatRecord]:
    """Read a JSONL file of chat records.

    Raises:
        SecvecError: The file cannot be read, or a line is no chat record.
    """
    records = []
    try:
        with path.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                records.append(_parse_record(line, where=f"{path} line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise SecvecError(
            f"cannot be read: {error}", where=str(path), accepted="a UTF-8 JSONL file"
        ) from error
    return records


def write_records(path: Path, records: Iterable[ChatRecord]) -> int:
    """Write records as JSONL, one a line in the order given, and return how many there were."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for record in records:
            stream.write(record.model_dump_json() + "\n")
            count += 1
    return count


def _parse_record(line: str, *, where: str) -> ChatRecord:
    try:
        return ChatRecord.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SecvecError(
            f"is no chat record: {key + ': ' if key else ''}{first['msg']}",
            where=where,
            accepted="JSON with id and messages (role, content)",
        ) from None
