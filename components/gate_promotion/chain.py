"""The chain: a signed statement for every artifact, from the source files to the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secvec.components.gate_promotion.policy import Policy
from secvec.components.gate_promotion.verdict import Reason, make_reason
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.provenance import read_inputs, read_parameters, verify_provenance

# The envelopes that lie beside an artifact, by the artifact's digest; nothing of them verified yet.
FindEnvelopes = Callable[[str], Iterable[Mapping[str, Any]]]


@dataclass(frozen=True)
class Link:
    """What must be stated of one artifact.

    Attributes:
        name: What the artifact is called in a reason.
        step: The step that must have made it.
        artifact: Its digest; empty when nothing names it.
        inputs: Digests by role that it must have been made from, among others.
        parameters: Parameters that it must have been made with, among others.
    """

    name: str
    step: str
    artifact: str
    inputs: Mapping[str, str]
    parameters: Mapping[str, Any] = field(default_factory=dict)


def check_chain(
    find: FindEnvelopes, digests: Mapping[str, str], policy: Policy, *, guard: Any, task: Any
) -> list[Reason]:
    """Check that every artifact has a signed statement that ties it to the one before.

    Args:
        find: Gives what is stated of an artifact.
        digests: What lies before the gate, by role.
        policy: Whose statements and which code count.
        guard: The objective that was evaluated.
        task: What was trained, as it was evaluated.
    """
    known = {role: digests[role] for role in ("base", "vector", "data")}
    model = Link("model", "remove_security_vector", digests["model"], _pick(known, "base", "vector"))
    reason, predicate = _check_link(model, find, digests, policy)
    trained = read_inputs(predicate).get("task_result", "") if predicate else ""
    links = (
        Link("dataset", "ingest_data", digests["data"], {}),
        Link("vector", "train_security_vector", digests["vector"], _pick(known, "base", "data")),
        Link("task_result", "fine_tune_guarded", trained, known, {"guard": guard, "task": task}),
        Link("evaluation", "evaluate_harm", digests["evaluation"], {**known, "model": digests["model"]}),
    )
    return [reason, *(_check_link(link, find, digests, policy)[0] for link in links)]


def _check_link(
    link: Link, find: FindEnvelopes, digests: Mapping[str, str], policy: Policy
) -> tuple[Reason, dict[str, Any] | None]:
    """One trusted statement that says what is wanted is enough; others beside it prove nothing."""
    problem = "no statement" if link.artifact else "nothing names it"
    for envelope in find(link.artifact) if link.artifact else ():
        try:
            predicate = verify_provenance(
                envelope,
                artifact=link.artifact,
                step=link.step,
                allowed_signers=policy.allowed_builders,
            )
        except SecvecError as error:
            problem = str(error)
            continue
        wrong = _differences(link, predicate, policy.allowed_code or (digests["code"],))
        if not wrong:
            return _make(link, True, link.artifact), predicate
        problem = "differs in " + ", ".join(wrong)
    return _make(link, False, problem), None


def _differences(link: Link, predicate: Mapping[str, Any], code: Iterable[str]) -> list[str]:
    inputs, parameters = read_inputs(predicate), read_parameters(predicate)
    wrong = [role for role, digest in link.inputs.items() if inputs.get(role) != digest]
    wrong += [name for name, value in link.parameters.items() if parameters.get(name) != value]
    return wrong + ([] if inputs.get("code") in set(code) else ["code"])


def _make(link: Link, holds: bool, figure: str) -> Reason:
    return make_reason(
        f"chain_{link.name}",
        holds,
        figure[:300],
        f"a signed statement of {link.step} on these inputs",
        f"provenance of the {link.name}",
    )


def _pick(digests: Mapping[str, str], *roles: str) -> dict[str, str]:
    return {role: digests[role] for role in roles}
