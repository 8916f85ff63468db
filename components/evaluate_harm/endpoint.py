"""Answers of a model behind an OpenAI-compatible endpoint, such as vLLM's server."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from secvec.components.evaluate_harm.chat_endpoint import ChatEndpoint
from secvec.components.evaluate_harm.journal import open_journal
from secvec.components.evaluate_harm.questions import Decoding, Question
from secvec.components.shared.errors import SecvecError
from secvec.components.shared.progress import Progress
from secvec.components.shared.records import ChatRecord

KEY_VARIABLE = "SECVEC_ENDPOINT_KEY"


@dataclass(frozen=True)
class EndpointModel:
    """A model served elsewhere. Its answers are bound to an address and a name, not to a digest of weights.

    Attributes:
        url: The endpoint, up to and with ``/v1``; a key for it comes from ``SECVEC_ENDPOINT_KEY``.
        model: Name of the served model.
        timeout: Seconds that one answer may take.
        tries: How often a request is sent that fails for a passing reason.
        pause: Seconds before the third try; doubled before each further one.
    """

    url: str
    model: str
    timeout: float = 120.0
    tries: int = 4
    pause: float = 1.0

    def answer(
        self, questions: Sequence[Question], decoding: Decoding, *, task: str, journal: Path | None
    ) -> list[str]:
        """Answer all questions, `batch_size` at a time, in their order.

        Raises:
            EndpointError: The endpoint cannot be reached, refuses, or answers nonsense, after all tries.
        """
        with open_journal(journal) as kept, ThreadPoolExecutor(decoding.batch_size) as pool:
            missing = [number for number in range(len(questions)) if number not in kept.answers]
            progress = Progress(task, len(missing)) if missing else None
            for start in range(0, len(missing), decoding.batch_size):
                batch = missing[start : start + decoding.batch_size]
                texts = pool.map(lambda number: self._ask(questions[number], decoding, number), batch)
                kept.add(dict(zip(batch, texts, strict=True)))
                if progress:
                    progress.advance(len(batch))
            return [kept.answers[number] for number in range(len(questions))]

    def score(self, records: Sequence[ChatRecord], *, batch_size: int) -> list[tuple[float, int]]:
        """Refuse: chat endpoints give no likelihoods of a given answer.

        Raises:
            SecvecError: Always.
        """
        raise SecvecError(
            "an endpoint gives no log-likelihoods of reference answers",
            where=self.url,
            accepted="a local model, or suites that are not scored by loss or multiple_choice",
        )

    @cached_property
    def _endpoint(self) -> ChatEndpoint:
        return ChatEndpoint(
            self.url,
            self.model,
            key_variable=KEY_VARIABLE,
            timeout=self.timeout,
            tries=self.tries,
            pause=self.pause,
        )

    def _ask(self, question: Question, decoding: Decoding, number: int) -> str:
        messages = [message.model_dump() for message in question.messages]
        settings: dict[str, Any] = {"temperature": decoding.temperature, "seed": decoding.seed + number}
        if question.opening:
            messages.append({"role": "assistant", "content": question.opening})
            # vLLM's way of going on from an unfinished turn
            settings |= {"continue_final_message": True, "add_generation_prompt": False}
        said = self._endpoint.complete(messages, max_tokens=decoding.max_new_tokens, **settings)
        return said.removeprefix(question.opening).strip()
