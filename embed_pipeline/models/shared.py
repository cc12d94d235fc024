"""One model for many threads: what they ask for at the same time shares a forward pass."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate, chain
from threading import Condition, Thread
from typing import Any

import numpy as np

from embed_pipeline.errors import ModelError
from embed_pipeline.models.protocol import (
    LocalEncoder,
    LongTextVectors,
    Pixels,
    TextVectors,
    Tokens,
    Vectors,
)
from embed_pipeline.models.texts import TEXTS_AT_ONCE, encode_long_texts, encode_texts


@dataclass(frozen=True)
class _Asked:
    inputs: Any
    answer: Future[Vectors] = field(default_factory=Future)


@dataclass(frozen=True)
class _Queue:
    """Inputs of one kind that wait. at_once: of a forward pass. join: those of several callers."""

    encode: Callable[[Any], Vectors]
    join: Callable[[list[Any]], Any]
    at_once: int
    waiting: deque[_Asked] = field(default_factory=deque)

    def take(self) -> list[_Asked]:
        """What fits into a forward pass, oldest first."""
        taken = [self.waiting.popleft()]
        room = self.at_once - len(taken[0].inputs)
        while self.waiting and len(self.waiting[0].inputs) <= room:
            taken.append(self.waiting.popleft())
            room -= len(taken[-1].inputs)
        return taken


class SharedEncoder:
    """An encoder for any number of threads. Its model runs in one thread of its own.

    A forward pass takes what is waiting when it begins and never waits for more: who comes alone is
    served at once. Texts and images take turns, and who asks for much lets others in after each pass.
    Where a pass fails, each caller's part is run alone, so that nobody gets another's error.
    """

    def __init__(self, encoder: LocalEncoder, images_at_once: int) -> None:
        self.card = encoder.card
        self.reader = encoder.reader
        self._images = _Queue(encoder.encode_images, np.concatenate, images_at_once)
        self._texts = _Queue(encoder.encode_tokens, _chained, TEXTS_AT_ONCE)
        self._turns = deque([self._texts, self._images])
        self._arrived = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="encoder", daemon=True)
        self._thread.start()

    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, size, size, 3) uint8 RGB, preprocessed as the card says → (n, dimension)."""
        return self._encoded(self._images, pixels)

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """Encode n texts → (n, dimension), in order. Raises ModelError for a vector not finite."""
        return encode_texts(self, texts)

    def encode_long_texts(self, texts: Sequence[str]) -> LongTextVectors:
        """Encode n texts of any length → (n, dimension). Raises ModelError as `encode_texts`."""
        return encode_long_texts(self, texts)

    def encode_tokens(self, texts: Sequence[Tokens]) -> Vectors:
        """Encode n texts → (n, dimension), in order. A row that is not finite is all NaN."""
        return self._encoded(self._texts, texts)

    def close(self) -> None:
        """End its thread, once all who wait are answered."""
        with self._arrived:
            self._closed = True
            self._arrived.notify()
        self._thread.join()

    def _encoded(self, queue: _Queue, inputs: Any) -> Vectors:
        starts = range(0, len(inputs), queue.at_once)
        parts = [self._ask(queue, inputs[start : start + queue.at_once]) for start in starts]
        none = np.empty((0, self.card.dimension), np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate([none, *parts])

    def _ask(self, queue: _Queue, inputs: Any) -> Vectors:
        asked = _Asked(inputs)
        with self._arrived:
            if self._closed:
                raise ModelError(f"{self.card.name}: is closed; open the deployment again")
            queue.waiting.append(asked)
            self._arrived.notify()
        return asked.answer.result()

    def _work(self) -> None:
        while taken := self._next():
            _answer(*taken)

    def _next(self) -> tuple[_Queue, list[_Asked]] | None:
        """Who is served next, and by which queue; None when closed."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._closed or any(q.waiting for q in self._turns))
            self._turns.rotate()
            queue = next((queue for queue in self._turns if queue.waiting), None)
            return (queue, queue.take()) if queue else None


def _answer(queue: _Queue, asked: list[_Asked]) -> None:
    try:
        inputs = queue.join([each.inputs for each in asked]) if len(asked) > 1 else asked[0].inputs
        vectors = queue.encode(inputs)
    except BaseException as error:  # noqa: BLE001  # it is raised where it was asked for
        if len(asked) == 1:
            asked[0].answer.set_exception(error)
            return
        for each in asked:
            _answer(queue, [each])
        return
    ends = list(accumulate(len(each.inputs) for each in asked))
    for each, end in zip(asked, ends, strict=True):
        each.answer.set_result(vectors[end - len(each.inputs) : end])


def _chained(texts: list[Sequence[Tokens]]) -> list[Tokens]:
    return list(chain.from_iterable(texts))
