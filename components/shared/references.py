"""References: what KFP passes between steps instead of the bytes themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secvec.components.shared.errors import SecvecError

Kind = Literal["dataset", "share", "vector", "task_result", "model", "evaluation", "verdict", "checkpoint"]


class Reference(BaseModel):
    """Where a published artifact folder lies and the digest of its manifest.

    Attributes:
        kind: What the folder holds.
        uri: Folder URI in the store (``file:///...`` or ``s3://...``), content-addressed.
        digest: ``sha256:<hex>`` of the folder's manifest file.
        measured: Figures of this run, such as seconds per step, that are no part of the content: two runs
            that made the same bytes differ in them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    uri: str
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    measured: dict[str, float] = {}

    def write(self, artifact: Any) -> None:
        """Write this reference as the content and the metadata of a KFP output artifact."""
        path = Path(artifact.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n")
        artifact.metadata.update({"secvec_uri": self.uri, "secvec_digest": self.digest})

    @classmethod
    def read(cls, artifact: Any, kind: Kind) -> Reference:
        """Read a KFP input artifact that must refer to a folder of the given kind.

        Raises:
            SecvecError: The file is no reference, or refers to another kind.
        """
        where = str(artifact.path)
        try:
            found = cls.model_validate(json.loads(Path(artifact.path).read_text()))
        except (OSError, ValueError, ValidationError) as error:
            raise SecvecError(
                "is not a secvec reference", where=where, accepted="JSON with kind, uri and digest"
            ) from error
        if found.kind != kind:
            raise SecvecError(f"refers to a {found.kind}", where=where, accepted=f"a {kind}")
        return found
