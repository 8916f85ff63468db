"""Conversations in which the user speaks several times: the model's own answers stand between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from secvec.components.evaluate_harm.questions import Question
from secvec.components.shared.records import Message

# What a model that said nothing is taken to have said: templates refuse an empty turn.
_SILENCE = "…"


def answer_in_turn(
    questions: Sequence[Question], answer: Callable[[Sequence[Question]], list[str]]
) -> list[str]:
    """Answer questions; wherever two turns of the user follow each other, the model speaks in between.

    A suite that scripts the assistant's turns as well is asked once, as it is.

    Args:
        questions: What is asked.
        answer: Answers questions that each end with the user, in their order.

    Returns:
        What the model said last to each.
    """
    talks = [_split(question.messages) for question in questions]
    answers = [""] * len(questions)
    said: list[tuple[Message, ...]] = [()] * len(questions)
    for turn in range(max(map(len, talks), default=0)):
        chosen = [number for number, talk in enumerate(talks) if turn < len(talk)]
        asked = []
        for number in chosen:
            is_last = turn == len(talks[number]) - 1
            opening = questions[number].opening if is_last else ""
            messages = (*said[number], *talks[number][turn])
            asked.append(replace(questions[number], messages=messages, opening=opening))
        for number, question, text in zip(chosen, asked, answer(asked), strict=True):
            answers[number] = text
            said[number] = (*question.messages, Message(role="assistant", content=text or _SILENCE))
    return answers


def _split(messages: Sequence[Message]) -> list[tuple[Message, ...]]:
    """Parts that each end where the model must speak: before the user goes on, and at the end."""
    parts: list[list[Message]] = [[]]
    for message in messages:
        if message.role == "user" and parts[-1] and parts[-1][-1].role == "user":
            parts.append([])
        parts[-1].append(message)
    return [tuple(part) for part in parts if part]
