"""Find a vector that passes its certificate: each trial changes what the failure of the one before asks for.

The first trial uses the configured settings, so that where they do, a search costs nothing. Rank, learning
rate, λ and the number of passes are what is changed; the certificate on held-out rows is the judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from secvec.components.shared.errors import SecvecError
from secvec.components.shared.progress import report
from secvec.components.train_security_vector.certificate import refuse_if_failed
from secvec.components.train_security_vector.config import VectorConfig
from secvec.components.train_security_vector.training import DivergedError, TrainedVector

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SETTINGS = ("rank", "learning_rate", "kl_weight", "max_epochs")
_BROAD = "inert on"


@dataclass(frozen=True)
class Trial:
    """One vector that was tried.

    Attributes:
        config: Its settings.
        certificate: What it proved; empty where its training diverged.
    """

    config: VectorConfig
    certificate: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether it may be used."""
        return bool(self.certificate.get("passed"))

    def describe(self) -> dict[str, Any]:
        """Settings and outcome, as JSON."""
        failed = [check["name"] for check in self.certificate.get("checks", []) if not check["passed"]]
        outcome = {"passed": self.passed, "failed": failed if self.certificate else ["its training diverged"]}
        return {**self.config.model_dump(include=set(SETTINGS)), **outcome}


@dataclass(frozen=True)
class FoundVector:
    """The vector that passed.

    Attributes:
        trained: The model with the vector attached.
        certificate: What it proved.
        trials: Settings and outcome of all that were tried, as JSON.
    """

    trained: TrainedVector
    certificate: dict[str, Any]
    trials: list[dict[str, Any]]


def find_vector(
    base: PreTrainedModel,
    *,
    config: VectorConfig,
    train: Callable[[PreTrainedModel, VectorConfig], TrainedVector],
    certify: Callable[[PeftModel, VectorConfig], dict[str, Any]],
) -> FoundVector:
    """Train vectors until one passes, at most ``config.trials`` of them.

    Args:
        base: The base; its weights do not change.
        config: Settings of the first trial.
        train: Trains a vector with given settings.
        certify: Measures it.

    Raises:
        SecvecError: None passed; with the failure of the one that came nearest.
    """
    trials: list[Trial] = []
    for number in range(1, config.trials + 1):
        trained = _train_or_none(base, config, train=train)
        trial = Trial(config, certify(trained.model, config) if trained else {})
        trials.append(trial)
        report("vector_trial", number=number, **trial.describe())
        if trained and trial.passed:
            return FoundVector(trained, trial.certificate, [one.describe() for one in trials])
        ended_early = bool(trained and trained.epochs < config.max_epochs)
        if trained:
            _take_off(trained.model)
        config = change_settings(config, trial.certificate, ended_early=ended_early)
    certified = [trial.certificate for trial in trials if trial.certificate]
    if certified:
        refuse_if_failed(min(certified, key=_count_failures), trials=len(trials))
    raise SecvecError(
        f"the training of the security vector diverged in all of {len(trials)} trials",
        where="train_security_vector",
        accepted="a smaller learning_rate",
    )


def _train_or_none(
    base: PreTrainedModel,
    config: VectorConfig,
    *,
    train: Callable[[PreTrainedModel, VectorConfig], TrainedVector],
) -> TrainedVector | None:
    """Train a vector; None where that diverged and another trial may do better."""
    try:
        return train(base, config)
    except DivergedError as error:
        if config.trials == 1:
            raise
        _take_off(error.model)
        return None


def _take_off(model: PeftModel) -> None:
    """Remove the vector's layers, so that the next is trained on the base as it was; nothing is un-merged."""
    tuner: Any = model.base_model
    tuner.unload()


def _count_failures(certificate: dict[str, Any]) -> int:
    return sum(not check["passed"] for check in certificate["checks"])


def change_settings(config: VectorConfig, certificate: dict[str, Any], *, ended_early: bool) -> VectorConfig:
    """Settings of the next trial.

    Args:
        config: Those of this one.
        certificate: What it proved; empty where its training diverged.
        ended_early: Whether it stopped gaining before its passes were over.
    """
    if not certificate or _is_worse_than_none(certificate):
        return _with(config, learning_rate=config.learning_rate / 5)
    failed = [check["name"] for check in certificate["checks"] if not check["passed"]]
    broad = any(name.startswith(_BROAD) for name in failed)
    weak = any(not name.startswith(_BROAD) for name in failed)
    if broad and weak:
        # One or the other can be had by λ alone; both take room to be selective.
        return _with(
            config, rank=2 * config.rank, kl_weight=2 * config.kl_weight, max_epochs=2 * config.max_epochs
        )
    if broad:
        return _with(config, kl_weight=4 * max(config.kl_weight, 0.25))
    if not ended_early:
        return _with(config, learning_rate=2 * config.learning_rate, max_epochs=2 * config.max_epochs)
    return _with(config, rank=2 * config.rank, learning_rate=3 * config.learning_rate)


def _is_worse_than_none(certificate: dict[str, Any]) -> bool:
    losses = certificate["heldout_seed_loss"]
    return not losses["active"] < losses["inactive"]


def _with(config: VectorConfig, **settings: float) -> VectorConfig:
    """The config with other settings, within what they may be."""
    most = {"rank": 256, "max_epochs": 1000, "learning_rate": 0.1}
    bounded = {name: min(value, most.get(name, value)) for name, value in settings.items()}
    return config.model_copy(update=bounded)
