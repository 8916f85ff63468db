from __future__ import annotations

from collections.abc import Sequence

from secvec.components.evaluate_harm.questions import Question
from secvec.components.evaluate_harm.turns import answer_in_turn
from secvec.components.shared.records import Message


def ask(*turns: str, opening: str = "") -> Question:
    """A question from turns written as ``user: text``."""
    messages = []
    for turn in turns:
        role, _, content = turn.partition(": ")
        messages.append(Message.model_validate({"role": role, "content": content}))
    return Question(id=turns[-1], messages=tuple(messages), opening=opening)


class Recorder:
    """Answers with the number of turns that it was shown."""

    def __init__(self) -> None:
        self.asked: list[list[Question]] = []

    def answer(self, questions: Sequence[Question]) -> list[str]:
        self.asked.append(list(questions))
        return [f"after {len(question.messages)}" for question in questions]


def test_the_model_speaks_between_two_turns_of_the_user() -> None:
    model = Recorder()
    found = answer_in_turn(
        [ask("user: a"), ask("system: s", "user: a", "user: b", "user: c", opening="Sure")], model.answer
    )
    assert found == ["after 1", "after 6"]
    assert [len(turn) for turn in model.asked] == [2, 1, 1]
    last = model.asked[-1][0]
    assert [message.content for message in last.messages] == ["s", "a", "after 2", "b", "after 4", "c"]
    assert [turn[-1].opening for turn in model.asked] == ["", "", "Sure"]


def test_scripted_answers_are_kept_and_asked_once() -> None:
    model = Recorder()
    question = ask("user: a", "assistant: yes?", "user: b")
    assert answer_in_turn([question], model.answer) == ["after 3"]
    assert model.asked == [[question]]


def test_nothing_is_asked_of_nobody() -> None:
    assert answer_in_turn([], Recorder().answer) == []


def test_silence_is_no_empty_turn() -> None:
    shown = []

    def answer(questions: Sequence[Question]) -> list[str]:
        shown.append(questions[0].messages)
        return [""]

    answer_in_turn([ask("user: a", "user: b")], answer)
    assert [message.content for message in shown[-1]] == ["a", "…", "b"]
