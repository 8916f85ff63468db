"""SIGTERM during a training: the last finished step becomes a checkpoint, and the process ends in time.

Kubernetes kills a pod 30 s after asking it to end, so that a long step cannot be waited for. Between two
steps, and in the passes of a long one, nothing that a checkpoint holds is half changed: there a request ends
the training at once. Everywhere else it is noted, and found at the next of these places.
"""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from secvec.components.fine_tune_guarded.processes import anywhere, is_joined

LONG_STEP_SECONDS = 4.0


class Stop(BaseException):
    """Ends the loop of a training that was asked to end; no error, so that nothing on the way handles it."""


@dataclass(frozen=True)
class RandomState:
    """The states of all generators that a training draws from."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    gpus: list[torch.Tensor]

    @classmethod
    def take(cls) -> RandomState:
        """Note them."""
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus)

    def restore(self) -> None:
        """Put them back."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)


class Termination:
    """Whether this process was asked to end.

    Attributes:
        asked: It was.
    """

    def __init__(self) -> None:
        self.asked = False
        self._may_raise = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take SIGTERM from here on; whoever took it before gets it back."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may
            return
        before = signal.signal(signal.SIGTERM, self._take)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)

    @contextmanager
    def interruptible(self, allowed: bool) -> Iterator[None]:
        """Let a request end what runs in here, where it is allowed and no other process takes part.

        Raises:
            Stop: This process was asked to end, now or before.
        """
        self._may_raise = allowed and not is_joined()
        try:
            if self.asked and self._may_raise:
                raise Stop
            yield
        finally:
            self._may_raise = False

    def asked_anywhere(self, device: torch.device) -> bool:
        """Whether any process of the training was; all of them ask at the same place."""
        self.asked = anywhere(self.asked, device=device)
        return self.asked

    def _take(self, number: int, frame: Any) -> None:
        self.asked = True
        if self._may_raise:
            self._may_raise = False
            raise Stop
