"""A model that another machine runs: `EMBED_MODEL=http(s)://…`, an `embed-pipeline serve`.

No torch. Images are decoded and preprocessed here, so what is sent is small, and is exactly what the
model is to see.
"""

import base64
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import ValidationError

from embed_pipeline.durable import replace_durably
from embed_pipeline.errors import ModelError, NotWritable, OutOfSpace
from embed_pipeline.models.protocol import (
    ORIGINAL,
    LongTextVectors,
    ModelCard,
    Pixels,
    TextVectors,
    Vectors,
)
from embed_pipeline.models.remote_service import Service, ServiceAway
from embed_pipeline.models.wire import (
    NOT_FINITE,
    Embedding,
    EmbeddingList,
    ModelList,
    PublishedCard,
    PublishedModel,
)
from embed_pipeline.patience import Patience
from embed_pipeline.side_by_side import run_all

# While one request's images are encoded there, others are on their way.
REQUESTS_AT_ONCE = 4

_FLOAT = np.dtype("<f4")

logger = logging.getLogger(__name__)


def load_remote_card(address: str, api_key: str | None, cache: Path) -> ModelCard:
    """The card of the model that the service at `address` runs.

    cache: a directory of ours where the last known card is kept. It is taken where the service does not
    answer: nothing is encoded by it, as every answer must come from that very model. Raises ServiceAway
    without one, and ModelError for a service that refuses or is none.
    """
    known = cache / f"service-{sha256(address.encode()).hexdigest()[:20]}.json"
    with closing(Service(address, api_key)) as service:
        try:
            card = ask_model(service, service.looks).card
        except ServiceAway as away:
            card = _known_card(known, away)
            logger.warning("%s; going by the card that it had", away)
        else:
            _keep(card, known)
    return card.at(address)


def ask_model(service: Service, patience: Patience) -> PublishedModel:
    """What the service runs. Raises as Service.get, and ModelError where its vectors are not ours."""
    model = service.get("/v1/models", ModelList, patience).data[0]
    ours = model.card.at(service.address).space
    if model.card.space != ours or model.card.image_size != model.card.preprocessing.size:
        raise ModelError(
            f"EMBED_MODEL={service.address}: its version of embed-pipeline calls the space of its model "
            f"{model.card.space}, this one {ours}; install the same version on both machines"
        )
    return model


def _known_card(path: Path, away: ServiceAway) -> PublishedCard:
    try:
        return PublishedCard.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise away from None


def _keep(card: PublishedCard, path: Path) -> None:
    text = card.model_dump_json(indent=1).encode()
    with suppress(OSError, OutOfSpace, NotWritable):  # only for when the service is away
        if not path.exists() or path.read_bytes() != text:
            replace_durably(path, lambda temporary: temporary.write_bytes(text))


def open_remote_encoder(card: ModelCard, api_key: str | None) -> "RemoteEncoder":
    """The model behind a card whose name is a service's address. Raises as RemoteEncoder."""
    service = Service(card.name, api_key)
    try:
        return RemoteEncoder(card, service)
    except BaseException:
        service.close()
        raise


class RemoteEncoder:
    """The model behind a service; for any number of threads. Close it.

    Raises ServiceAway where the service does not answer for long, and ModelError where it runs another
    model than the card's: vectors of two models never meet.
    """

    def __init__(self, card: ModelCard, service: Service) -> None:
        self.card = card
        self._service = service
        self._sent = replace(card, rendition=ORIGINAL)
        model = ask_model(service, service.texts)
        self._require_same(model.card)
        self._limits = model.limits

    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, size, size, 3) uint8 RGB, preprocessed as the card says → (n, dimension).

        A row for which the model gives no finite vector is all NaN.
        """
        vectors = np.full((len(pixels), self.card.dimension), np.nan, np.float32)

        def encode(part: slice, stop: Event) -> None:
            items = [{"image": _as_file(each)} for each in pixels[part]]
            for row, answer in enumerate(self._embeddings(items, self._service.images, stop)):
                if not (answer.error and answer.error.type == NOT_FINITE):
                    vectors[part.start + row] = self._vector(answer)

        self._for_each(_even_parts(len(pixels), self._limits.images), encode)
        return vectors

    def encode_texts(self, texts: Sequence[str]) -> TextVectors:
        """N texts → (n, dimension), in order; what does not fit the model is left out."""
        answers = self._of_texts(texts, "truncate")
        tokens = [sum(each.chunks or ()) for each in answers]
        return TextVectors(self._stacked(answers), [bool(a.truncated) for a in answers], tokens)

    def encode_long_texts(self, texts: Sequence[str]) -> LongTextVectors:
        """N texts → (n, dimension), in order; of a long one, the mean of its chunks."""
        answers = self._of_texts(texts, "split")
        return LongTextVectors(self._stacked(answers), [each.chunks or [] for each in answers])

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def _of_texts(
        self, texts: Sequence[str], long_texts: Literal["split", "truncate"]
    ) -> list[Embedding]:
        parts: dict[int, list[Embedding]] = {}

        def encode(part: slice, stop: Event) -> None:
            items = [{"text": _plain(text)} for text in texts[part]]
            parts[part.start] = self._embeddings(items, self._service.texts, stop, long_texts)

        self._for_each(self._parts_of_texts(texts), encode)
        return [answer for start in sorted(parts) for answer in parts[start]]

    def _parts_of_texts(self, texts: Sequence[str]) -> Iterator[slice]:
        """As many in a request as it may hold; a single text is the service's to refuse."""
        start = characters = 0
        for at, text in enumerate(texts):
            characters += len(text)
            full = at - start == self._limits.texts or characters > self._limits.characters
            if full and at > start:
                yield slice(start, at)
                start, characters = at, len(text)
        if len(texts) > start:
            yield slice(start, len(texts))

    def _for_each(self, parts: Iterator[slice], encode: Callable[[slice, Event], None]) -> None:
        stop = Event()
        run_all([partial(encode, part, stop) for part in parts], REQUESTS_AT_ONCE, stop)

    def _embeddings(
        self,
        items: list[dict[str, str]],
        patience: Patience,
        stop: Event,
        long_texts: Literal["split", "truncate"] = "truncate",
    ) -> list[Embedding]:
        """An answer for each item, all from the card's model."""
        body = {"input": items, "encoding_format": "base64", "long_texts": long_texts}
        told = self._service.post("/v1/embeddings", body, EmbeddingList, patience, stop)
        self._require_same(told.card)
        if [each.index for each in told.data] != list(range(len(items))):
            raise self._wrong(f"{len(told.data)} answers to {len(items)} items")
        return told.data

    def _stacked(self, answers: Sequence[Embedding]) -> Vectors:
        vectors = np.empty((len(answers), self.card.dimension), np.float32)
        for row, answer in enumerate(answers):
            vectors[row] = self._vector(answer)
        return vectors

    def _vector(self, answer: Embedding) -> Vectors:
        if answer.error:
            raise self._wrong(f"{answer.error.type}: {answer.error.message}")
        try:
            told = np.frombuffer(base64.b64decode(str(answer.embedding), validate=True), _FLOAT)
        except ValueError as error:
            raise self._wrong(f"a vector that cannot be read ({error})") from error
        if told.shape != (self.card.dimension,) or not np.isfinite(told).all():
            raise self._wrong(f"a vector that is not {self.card.dimension} finite numbers")
        return told

    def _wrong(self, what: str) -> ModelError:
        return ModelError(
            f"EMBED_MODEL={self.card.name}: answered with {what}; look at that service's log and limits"
        )

    def _require_same(self, told: PublishedCard) -> None:
        there = told.at(self.card.name)
        if there != self._sent:
            raise ModelError(
                f"EMBED_MODEL={self.card.name}: now runs {there.space}, not {self._sent.space}; "
                "begin anew: a sync brings the projects over, and search stays on what they have"
            )


def _even_parts(count: int, most: int) -> Iterator[slice]:
    """`count` in as few parts of at most `most` as will do, none much smaller than another."""
    parts = -(-count // most)
    ends = [count * number // parts for number in range(1, parts + 1)]
    yield from map(slice, [0, *ends], ends)


def _as_file(pixels: Any) -> str:
    # Lossless like PNG, and on both sides together thirty times cheaper; a network of machines that
    # share a GPU carries twice the bytes more easily.
    Image.fromarray(pixels).save(file := BytesIO(), "BMP")
    return base64.b64encode(file.getvalue()).decode()


def _plain(text: str) -> str:
    return text.encode(errors="replace").decode()  # JSON in UTF-8 has no lone surrogates
