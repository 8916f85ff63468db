"""Calls of tools and what they gave, written as text into the turns of who called and who was answered.

The form is that of the Hermes function-calling data sets, which several chat templates (Qwen, Hermes) write:
``<tool_call>`` in the assistant's turn, ``<tool_response>`` in the user's, ``<tools>`` in the system's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from secvec.components.ingest_data.quarantine import RowRefused
from secvec.components.ingest_data.turns import Turn, check_text

_CALLERS = ("function_call", "tool_call")
_ANSWERERS = ("tool", "function", "observation", "tool_response", "function_response")
_OPENING = "<tool_call>"


def is_tool_turn(turn: Mapping[str, Any], who: object) -> bool:
    """Tell whether a turn calls a tool or brings what one gave."""
    named = isinstance(who, str) and (who in _CALLERS or who in _ANSWERERS)
    return named or bool(turn.get("tool_calls") or turn.get("function_call"))


def add_tool_turn(turns: list[Turn], turn: Mapping[str, Any], who: Any, said: Any, *, place: str) -> None:
    """Add a turn with tools to those before it; results of several tools become one turn.

    Raises:
        RowRefused: A result to which there was no call, or a call or result that is no text or JSON.
    """
    if who in _ANSWERERS:
        _add_result(turns, who, said, place=place)
        return
    if who in _CALLERS:
        calls = [said]
    elif turn.get("tool_calls"):
        calls = turn["tool_calls"] if isinstance(turn["tool_calls"], list) else [turn["tool_calls"]]
    else:
        calls = [turn.get("function_call")]
    text = "" if who in _CALLERS or said is None else check_text(said, column=place)
    written = [f"{_OPENING}\n{_write(_unwrap(call), place)}\n</tool_call>" for call in calls]
    turns.append(Turn("assistant", "\n".join([text, *written] if text else written)))


def describe_tools(turns: list[Turn], described: Any) -> list[Turn]:
    """Put the description of a row's tools at the end of its system turn.

    Raises:
        RowRefused: It is neither text nor JSON.
    """
    block = f"<tools>\n{_write(described, 'tools')}\n</tools>"
    if turns and turns[0].role == "system":
        return [Turn("system", f"{turns[0].content}\n\n{block}"), *turns[1:]]
    return [Turn("system", block), *turns]


def _add_result(turns: list[Turn], who: str, said: Any, *, place: str) -> None:
    block = f"<tool_response>\n{_write(said, place)}\n</tool_response>"
    last = turns[-1] if turns else Turn("user", "")
    if last.role == "assistant" and _OPENING in last.content:
        turns.append(Turn("user", block))
    elif last.role == "user" and last.content.startswith("<tool_response>"):
        turns[-1] = Turn("user", f"{last.content}\n{block}")
    else:
        raise RowRefused("unknown_role", f"{place} has role {who!r} where no tool was called")


def _unwrap(call: Any) -> Any:
    """Return what a call says, without the envelope and the number that the OpenAI form puts around it."""
    inner = call.get("function", call) if isinstance(call, dict) else call
    if isinstance(inner, dict) and isinstance(inner.get("arguments"), str):
        try:
            return {**inner, "arguments": orjson.loads(inner["arguments"])}
        except orjson.JSONDecodeError:
            return inner
    return inner


def _write(value: Any, place: str) -> str:
    if isinstance(value, str):
        return check_text(value, column=place)
    if not isinstance(value, dict | list):
        raise RowRefused("not_text", f"{place} is {'missing' if value is None else type(value).__name__}")
    try:
        return orjson.dumps(value).decode()
    except TypeError as error:
        raise RowRefused("not_text", f"{place}: {error}") from None
