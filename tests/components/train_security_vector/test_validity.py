"""A vector that is over or revoked is not handed on by the step that once trained it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from secvec.components.shared import vectors
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.references import Reference
from secvec.components.train_security_vector.step import train_security_vector


def train(toy: Any, store: Path) -> Reference:
    config = toy.vector_config.model_copy(update={"valid_days": 2})
    return train_security_vector(
        base_model=str(toy.base), dataset=toy.dataset, store=str(store), seed=0, config=config
    )


def test_an_expired_vector_is_trained_anew_and_a_revoked_one_is_not(
    toy: Any, toy_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(toy, tmp_path / "store")
    assert train(toy, tmp_path / "store") == first

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=3)

    monkeypatch.setattr(vectors, "datetime", Later)
    with pytest.raises(SecvecError, match="expired"):
        vectors.read_certificate(first)
    second = train(toy, tmp_path / "store")
    assert second != first
    assert train(toy, tmp_path / "store") == second
    issued = datetime.fromisoformat(vectors.read_certificate(second)["issued_at"])
    assert issued > datetime.now(UTC) + timedelta(days=2)
    vectors.revoke_vector(second, reason="leaked")
    with pytest.raises(SecvecError, match=r"revoked .* accepted: another vector: other seeds"):
        train(toy, tmp_path / "store")
