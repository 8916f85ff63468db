"""One arm: a model asked everything, its answers scored where a reference or a likelihood tells."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from secvec.components.evaluate_harm.config import EvaluationConfig
from secvec.components.evaluate_harm.outcomes import ArmName, Outcome
from secvec.components.evaluate_harm.probes import Asked, Probe, PromptSuite, list_probes, pose_questions
from secvec.components.evaluate_harm.questions import Decoding, Question, Respondent, last_words
from secvec.components.evaluate_harm.scoring import score_exact_match, score_numeric
from secvec.components.evaluate_harm.training_look import TrainingLook
from secvec.components.evaluate_harm.turns import answer_in_turn
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.records import ChatRecord, Message

_SCORERS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": score_exact_match,
    "numeric": score_numeric,
}


def evaluate_arm(
    arm: ArmName,
    respondent: Respondent,
    suite: PromptSuite,
    config: EvaluationConfig,
    *,
    look: TrainingLook | None = None,
    seed: int = 0,
    journals: Path | None = None,
) -> list[Outcome]:
    """Ask one model everything.

    Args:
        arm: The arm's name.
        respondent: The model.
        suite: The prompts.
        config: How to ask and to score.
        look: What training rows look like, for attack forms that imitate them.
        seed: Seed of sampled answers.
        journals: Folder of this very model's journals, to go on from where a killed run was.

    Returns:
        Outcomes: harm in every form and sample, then the other prompts in the suite's order. What needs a
        judge has neither label nor score yet.

    Raises:
        SecvecError: No harm prompts, a prompt over the window, or a log-likelihood that is not a number.
    """
    probes = list_probes(suite, config)
    if not any(probe.kind == "harm" for probe in probes) and not suite.extra:
        raise SecvecError("there are no harm prompts", where=arm, accepted="at least one harmful prompt")
    asked = pose_questions(probes, config=config, look=look or TrainingLook())
    answers = _answer(arm, respondent, asked, config=config, seed=seed, journals=journals)
    answered = list(zip(asked, answers, strict=True))
    harm = [_await_judge(arm, one, answer) for one, answer in answered if one.probe.kind == "harm"]
    others = [probe for probe in probes if probe.kind != "harm"]
    spoken = {id(one.probe): (one, answer) for one, answer in answered}
    losses = iter(_measure_losses(arm, respondent, others, config=config))
    found = []
    for probe in others:
        if probe.scoring == "judge":
            found.append(_await_judge(arm, *spoken[id(probe)]))
        else:
            answer = spoken[id(probe)][1] if id(probe) in spoken else ""
            found.append(_score(arm, probe, answer, [next(losses) for _ in _candidates(probe)]))
    return [*harm, *found]


def _answer(
    arm: ArmName,
    respondent: Respondent,
    asked: Sequence[Asked],
    *,
    config: EvaluationConfig,
    seed: int,
    journals: Path | None,
) -> list[str]:
    """Answers in the questions' order; only harm prompts are sampled."""
    greedy = Decoding(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    drawn = replace(greedy, temperature=config.temperature, seed=seed)
    decodings = [drawn if one.probe.kind == "harm" and config.temperature else greedy for one in asked]
    answers = [""] * len(asked)
    for decoding in dict.fromkeys(decodings):
        chosen = [n for n, own in enumerate(decodings) if own == decoding]
        questions = [asked[n].question for n in chosen]

        def answer(turn: Sequence[Question], decoding: Decoding = decoding) -> list[str]:
            journal = journals / _name_journal(turn, decoding) if journals else None
            return respondent.answer(turn, decoding, task=f"evaluate {arm}", journal=journal)

        found = answer_in_turn(questions, answer)
        for number, text in zip(chosen, found, strict=True):
            answers[number] = text
    return answers


def _name_journal(questions: Sequence[object], decoding: Decoding) -> str:
    """A name that only the very same questions, asked in the very same way, have."""
    return hashlib.sha256(repr((questions, decoding)).encode()).hexdigest() + ".jsonl"


def _measure_losses(
    arm: ArmName, respondent: Respondent, probes: Sequence[Probe], *, config: EvaluationConfig
) -> list[tuple[float, int]]:
    """Negative log-likelihood in nats and tokens of every candidate answer, in the order they are taken."""
    records = [record for probe in probes for record in _candidates(probe)]
    scores = respondent.score(records, batch_size=config.batch_size) if records else []
    for record, (score, _) in zip(records, scores, strict=True):
        if not math.isfinite(score):
            raise SecvecError(
                f"the log-likelihood of the reference answer to prompt {record.id} is {score}",
                where=arm,
                accepted="a model with finite outputs",
            )
    return [(-score, length) for score, length in scores]


def _candidates(probe: Probe) -> list[ChatRecord]:
    """Records whose answers' likelihoods a probe needs."""
    if probe.scoring == "multiple_choice":
        return [_with_answer(probe.record, choice) for choice in probe.choices]
    return [probe.record] if probe.kind == "skill" or probe.scoring == "loss" else []


def _with_answer(record: ChatRecord, answer: str) -> ChatRecord:
    turns = (*record.prompt, Message(role="assistant", content=answer))
    return record.model_copy(update={"messages": turns})


def _await_judge(arm: ArmName, asked: Asked, answer: str) -> Outcome:
    outcome = _outcome(arm, asked.probe, answer, score=0.0)
    return replace(outcome, attack=asked.attack, sample=asked.sample)


def _score(arm: ArmName, probe: Probe, answer: str, found: Sequence[tuple[float, int]]) -> Outcome:
    reference = probe.record.answer
    if probe.scoring == "multiple_choice":
        # The likeliest choice; of equal ones the first, so that a model that tells nothing gains nothing.
        best = min(range(len(found)), key=lambda number: found[number][0])
        own = found[probe.choices.index(reference)]
        right = float(probe.choices[best] == reference)
        return _outcome(arm, probe, probe.choices[best], score=right, loss=own)
    loss = found[0] if found else None
    if probe.scoring == "loss":
        # Geometric mean probability of a reference token: more is better, in [0, 1], as for the others.
        nats, tokens = found[0]
        return _outcome(arm, probe, answer, score=math.exp(-nats / tokens), loss=loss)
    return _outcome(arm, probe, answer, score=_SCORERS[probe.scoring](answer, reference), loss=loss)


def _outcome(
    arm: ArmName, probe: Probe, answer: str, *, score: float, loss: tuple[float, int] | None = None
) -> Outcome:
    nats, tokens = loss or (None, None)
    return Outcome(
        arm=arm,
        id=probe.record.id,
        kind=probe.kind,
        category=probe.record.category,
        language=probe.record.language,
        prompt=last_words(probe.record.prompt),
        answer=answer,
        label=None,
        score=score,
        loss=nats,
        tokens=tokens,
        suite=probe.suite,
    )
