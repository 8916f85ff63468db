"""The shapes in which rows hold a conversation, and how each becomes messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from secvec.components.ingest_data import tools
from secvec.components.ingest_data.quarantine import RowRefused
from secvec.components.ingest_data.turns import Turn, check_text
from secvec.components.shared.records import Role


class Shape(NamedTuple):
    """Columns of one shape; an empty name stands for none.

    Attributes:
        messages: Column of a list of turns, ``role``/``content`` or ``from``/``value``.
        prompt: Column of what is asked: text, or a list of turns.
        context: Column of text that goes below the prompt after an empty line (Alpaca's ``input``).
        completion: Column of the answer: text, or a list of turns.
    """

    messages: str = ""
    prompt: str = ""
    context: str = ""
    completion: str = ""

    @property
    def name(self) -> str:
        """Name the columns that make the shape."""
        return self.messages or " + ".join(column for column in (self.prompt, self.completion) if column)


# In the order in which they are tried: chat rows often repeat their first turn in a `prompt` column.
SHAPES = (
    Shape(messages="messages"),
    Shape(messages="conversations"),
    Shape(prompt="instruction", context="input", completion="output"),
    Shape(prompt="prompt", completion="completion"),
    Shape(prompt="question", completion="answer"),
    Shape(prompt="goal", completion="target"),
)
_ROLES: dict[object, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


def detect_shape(values: Mapping[str, Any], *, mapping: Mapping[Any, str], needs_answer: bool) -> Shape:
    """Find out how a row holds its conversation.

    Args:
        values: The row's values by column.
        mapping: Column names by field; one that maps ``messages`` or ``prompt`` decides alone.
        needs_answer: Whether a prompt without an answer is refused.

    Raises:
        RowRefused: ``unknown_columns``.
    """
    if "messages" in mapping or "prompt" in mapping:
        candidates = [Shape(**{field: mapping[field] for field in Shape._fields if field in mapping})]
    else:
        candidates = list(SHAPES)
        if not needs_answer:
            candidates += [
                Shape(prompt=shape.prompt, context=shape.context) for shape in SHAPES if shape.prompt
            ]
    for shape in candidates:
        if all(column in values for column in (shape.messages, shape.prompt, shape.completion) if column):
            return shape
    raise RowRefused("unknown_columns", "columns " + (", ".join(map(str, values)) or "none"))


def describe_shapes(*, needs_answer: bool) -> str:
    """List the shapes that are detected, for an error."""
    names = [shape.name for shape in SHAPES]
    if not needs_answer:
        names += [f"{shape.prompt} alone" for shape in SHAPES if shape.prompt]
    return ", ".join(names)


def read_messages(
    values: Mapping[str, Any], shape: Shape, *, needs_answer: bool, tool_turns: bool = True
) -> tuple[Turn, ...]:
    """Turn a row into messages: an optional system turn, then user and assistant in turn.

    Contents are taken as they are; nothing is trimmed or normalised. Calls of tools and their results become
    text in these turns, for which chat templates have no common form.

    Args:
        values: The row's values by column.
        shape: Which of them hold the conversation.
        needs_answer: Whether a conversation without an answer is refused.
        tool_turns: Whether turns with tools are read; else they are refused.

    Raises:
        RowRefused: No text, an unknown role, turns out of order, an empty turn, or no answer.
    """
    if shape.completion and (pair := _read_pair(values, shape)):
        return pair
    if shape.messages:
        turns = _read_turns(values[shape.messages], column=shape.messages, tool_turns=tool_turns)
        if tool_turns and values.get("tools"):
            turns = tools.describe_tools(turns, values["tools"])
    else:
        turns = _read_prompt(values, shape)
        answer = values[shape.completion] if shape.completion else None
        if needs_answer or answer not in (None, ""):
            turns += _read_part(answer, "assistant", column=shape.completion)
    _check_turns(turns, needs_answer=needs_answer)
    return tuple(turns)


def _read_pair(values: Mapping[str, Any], shape: Shape) -> tuple[Turn, ...] | None:
    """Read the usual row, a text and its answer, without a detour; None for any other."""
    prompt, answer = values[shape.prompt], values[shape.completion]
    if type(prompt) is not str or type(answer) is not str or (shape.context and values.get(shape.context)):
        return None
    if not prompt or not answer or prompt.isspace() or answer.isspace():
        return None
    if not prompt.isascii():
        check_text(prompt, column=shape.prompt)
    if not answer.isascii():
        check_text(answer, column=shape.completion)
    return (Turn("user", prompt), Turn("assistant", answer))


def read_note(values: Mapping[str, Any], column: str) -> str:
    """Return a category, language or label as text; empty where the row has none.

    Raises:
        RowRefused: ``not_utf8``.
    """
    value = values.get(column)
    if value is None:
        return ""
    return check_text(value if isinstance(value, str) else json.dumps(value, default=str), column=column)


def _read_prompt(values: Mapping[str, Any], shape: Shape) -> list[Turn]:
    prompt = values[shape.prompt]
    context = values.get(shape.context) if shape.context else None
    if isinstance(prompt, str) and context not in (None, ""):
        prompt = f"{prompt}\n\n{check_text(context, column=shape.context)}"
    return _read_part(prompt, "user", column=shape.prompt)


def _read_part(value: Any, role: Role, *, column: str) -> list[Turn]:
    if isinstance(value, list):
        return _read_turns(value, column=column)
    return [Turn(role, check_text(value, column=column))]


def _read_turns(value: Any, *, column: str, tool_turns: bool = False) -> list[Turn]:
    if isinstance(value, str):  # a CSV can hold a list only as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowRefused("not_text", f"{column} is neither a list of turns nor JSON of one") from None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise RowRefused("not_text", f"{column} is no list of turns")
    turns: list[Turn] = []
    for number, turn in enumerate(value, start=1):
        role, content = ("from", "value") if turn.get("role") is None else ("role", "content")
        who, said = turn.get(role), turn.get(content)
        if tools.is_tool_turn(turn, who):
            if not tool_turns:
                raise RowRefused("tool_turn", f"turn {number} of {column} calls or answers as a tool")
            tools.add_tool_turn(turns, turn, who, said, place=f"turn {number} of {column}")
            continue
        if not isinstance(who, str) or who not in _ROLES:
            raise RowRefused("unknown_role", f"turn {number} of {column} has role {who!r}")
        turns.append(Turn(_ROLES[who], check_text(said, column=f"turn {number} of {column}")))
    return turns


def _check_turns(turns: list[Turn], *, needs_answer: bool) -> None:
    """Check what chat templates ask for; most of them fail on anything else."""
    for number, turn in enumerate(turns, start=1):
        if not turn.content.strip():
            raise RowRefused("empty_text", f"the {turn.role}'s turn {number} is empty")
    asked = turns[1:] if turns and turns[0].role == "system" else turns
    if not asked:
        raise RowRefused("turn_order", "no user's turn")
    for index, turn in enumerate(asked):
        expected = "assistant" if index % 2 else "user"
        if turn.role != expected:
            raise RowRefused("turn_order", f"the {turn.role} speaks where the {expected} should")
    if needs_answer and asked[-1].role != "assistant":
        raise RowRefused("no_answer", "the last turn is the user's")
