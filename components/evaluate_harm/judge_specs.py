"""Judges by name: ``offline``, ``keywords``, ``harmbench:MODEL``, ``rubric:URL#NAME`` and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

from secvec.components.evaluate_harm.judge_model import ModelForm, ModelJudge
from secvec.components.shared.errors import SecvecError

if TYPE_CHECKING:
    from secvec.components.evaluate_harm.judgements import Judge

ALONE = ("offline", "keywords")
MODEL_FORMS = {form: form for form in get_args(ModelForm)}
ACCEPTED = (
    "offline, keywords, harmbench:MODEL, wildguard:MODEL, llama_guard:MODEL or classifier:MODEL (MODEL is a "
    "folder, s3:// prefix or hub id), or rubric:URL#NAME (a model NAME at an OpenAI-compatible endpoint)"
)


def check_spec(spec: str) -> str:
    """Check how a judge is written, without looking for it.

    Returns:
        The spec itself.

    Raises:
        SecvecError: It names no judge.
    """
    kind, _, place = spec.partition(":")
    parts = urlsplit(place)
    known = (
        spec in ALONE
        or (kind in MODEL_FORMS and bool(place))
        or (
            kind == "rubric" and parts.scheme in ("http", "https") and bool(parts.hostname and parts.fragment)
        )
    )
    if not known:
        raise SecvecError("is no judge", where=spec, accepted=ACCEPTED)
    return spec


def open_judges(specs: Sequence[str], *, calibrations: Sequence[str] = ()) -> tuple[Judge, ...]:
    """Make the judges of a run.

    Args:
        specs: How each is written; see `ACCEPTED`.
        calibrations: Files of calibration records; each belongs to the judge whose digest it holds.

    Raises:
        SecvecError: A spec names no judge or no model, two judges share a name, or a record cannot be read.
    """
    from secvec.components.evaluate_harm.calibration import read_calibration
    from secvec.components.evaluate_harm.chat_endpoint import ChatEndpoint
    from secvec.components.evaluate_harm.judge import OfflineJudge
    from secvec.components.evaluate_harm.judge_endpoint import KEY_VARIABLE, EndpointJudge
    from secvec.components.evaluate_harm.keywords import KeywordJudge

    records = tuple(read_calibration(Path(path)) for path in calibrations)
    judges: list[Judge] = []
    for spec in map(check_spec, specs):
        kind, _, place = spec.partition(":")
        if kind == "rubric":
            url, _, model = place.partition("#")
            endpoint = ChatEndpoint(url, model, key_variable=KEY_VARIABLE)
            judges.append(EndpointJudge(endpoint, records=records))
        elif kind in MODEL_FORMS:
            judges.append(ModelJudge(MODEL_FORMS[kind], place, records=records))
        else:
            judges.append(OfflineJudge() if kind == "offline" else KeywordJudge())
    names = [judge.name for judge in judges]
    for judge in judges:
        if names.count(judge.name) > 1:
            raise SecvecError("names two judges", where=judge.name, accepted="judges with different names")
    return tuple(judges)
