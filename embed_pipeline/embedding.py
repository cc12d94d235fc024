"""Contents to vectors: fetch, decode, batch, encode and write side by side, with bounded queues."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from threading import Event
from typing import NamedTuple, Self

import numpy as np

from embed_pipeline.errors import ImageError
from embed_pipeline.images.decode import decode
from embed_pipeline.images.preprocess import preprocess
from embed_pipeline.models.protocol import ImageTextEncoder, Pixels, Vectors

logger = logging.getLogger(__name__)

# A commit makes one library part and the points of its contents: often enough to be searchable soon
# and to lose little work, rarely enough that parts and turns at the store stay few.
COMMIT_SECONDS = 5.0
COMMIT_CONTENTS = 4096
# A run that is told to stop has about ten seconds.
FLUSH_SECONDS = 6.0
# Some libraries' signal handlers make waits without an end deaf to Ctrl-C.
POLL_SECONDS = 0.5
# How far reading runs ahead of the encoder, in batches.
BATCHES_AHEAD = 2


class Content(NamedTuple):
    """Something to embed: its hash, and one image that has it."""

    content_hash: bytes
    image_id: str
    locator: str


class Embedded(NamedTuple):
    """Contents and their vectors (len(contents), dimension), unit norm."""

    contents: list[Content]
    vectors: Vectors

    def without(self, content_hashes: set[bytes]) -> "Embedded":
        """Those that are none of `content_hashes`."""
        if not content_hashes:
            return self
        kept = [i for i, c in enumerate(self.contents) if c.content_hash not in content_hashes]
        return Embedded([self.contents[i] for i in kept], self.vectors[kept])


@dataclass(frozen=True)
class Work:
    """How contents become vectors and where they go.

    read: an image's bytes, or ImageError; called from many threads, until `stop` is set. turn: entered
    for each forward pass. commit: makes vectors durable; called one at a time, from a thread of its
    own. failed: told of each content that cannot be embedded. progress: told how many more contents
    are done with. abandon: makes a commit that hangs end.
    """

    read: Callable[[Content], bytes]
    encoder: ImageTextEncoder
    turn: Callable[[], AbstractContextManager[None]]
    stop: Event
    commit: Callable[[Embedded], None]
    abandon: Callable[[], None]
    failed: Callable[[Content, ImageError], None]
    progress: Callable[[int], None]
    batch_size: int
    workers: int
    max_pixels: int


@dataclass
class Throughput:
    """What `embed_contents` did: contents embedded, seconds in all and inside the encoder.

    complete: no content was left for want of time.
    """

    embedded: int = 0
    seconds: float = 0.0
    encoder_seconds: float = 0.0
    complete: bool = True

    def __add__(self, later: "Throughput") -> "Throughput":
        """Both together; complete where the later one is."""
        return Throughput(
            self.embedded + later.embedded,
            self.seconds + later.seconds,
            self.encoder_seconds + later.encoder_seconds,
            later.complete,
        )


def embed_contents(
    contents: Sequence[Content], work: Work, deadline: float = float("inf")
) -> Throughput:
    """Embed every content. However this ends, vectors that were made are committed first.

    None but the first is begun after `deadline`, on time.monotonic's clock. A killed process loses no
    more than it made since the last commit, COMMIT_SECONDS ago at most.
    """
    done = Throughput()
    started = time.monotonic()
    readers = ThreadPoolExecutor(work.workers)
    with Committer(work) as committer:
        try:
            in_time = _until(deadline, contents, done)
            for batch in _batches(_read_ahead(in_time, work, readers), work):
                committer.add(_encode(batch, work, done))
                work.progress(len(batch))
        finally:
            # Not waited for: where this was interrupted, some may hang in a download.
            work.stop.set()
            readers.shutdown(wait=False, cancel_futures=True)
    done.seconds = time.monotonic() - started
    return done


def _until(deadline: float, contents: Sequence[Content], done: Throughput) -> Iterator[Content]:
    for number, content in enumerate(contents):
        # The first one always: who asks again must come to an end.
        if number and time.monotonic() > deadline:
            done.complete = False
            return
        yield content


class Prepared(NamedTuple):
    """A content ready for the encoder, or why it is not."""

    content: Content
    pixels: Pixels | ImageError


def _read_ahead(
    contents: Iterator[Content], work: Work, readers: ThreadPoolExecutor
) -> Iterator[Prepared]:
    """Contents as they get ready, in whatever order: a slow image delays no other."""
    ready: SimpleQueue[Future[Prepared]] = SimpleQueue()

    def begin(at_most: int) -> int:
        begun = [readers.submit(_prepare, each, work) for each in islice(contents, at_most)]
        for future in begun:
            future.add_done_callback(ready.put)
        return len(begun)

    reading = begin(BATCHES_AHEAD * work.batch_size + work.workers)
    while reading:
        try:
            future = ready.get(timeout=POLL_SECONDS)
        except Empty:
            continue
        reading += begin(1) - 1
        yield future.result()


def _prepare(content: Content, work: Work) -> Prepared:
    preprocessing = work.encoder.card.preprocessing
    try:
        data = work.read(content)
        image = decode(data, target=preprocessing.size, max_pixels=work.max_pixels)
        return Prepared(content, preprocess(image, preprocessing))
    except ImageError as error:
        return Prepared(content, error)


def _batches(prepared: Iterator[Prepared], work: Work) -> Iterator[list[tuple[Content, Pixels]]]:
    batch: list[tuple[Content, Pixels]] = []
    for content, pixels in prepared:
        if isinstance(pixels, ImageError):
            work.failed(content, pixels)
            work.progress(1)
            continue
        batch.append((content, pixels))
        if len(batch) == work.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _encode(batch: list[tuple[Content, Pixels]], work: Work, done: Throughput) -> Embedded:
    pixels = np.stack([pixels for _, pixels in batch])
    with work.turn():
        started = time.monotonic()
        vectors = work.encoder.encode_images(pixels)
        done.encoder_seconds += time.monotonic() - started
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    for (content, _), good in zip(batch, finite, strict=True):
        if not good:
            work.failed(
                content, ImageError("encode", "not_finite", "the model gave no finite vector")
            )
    embedded = [content for (content, _), good in zip(batch, finite, strict=True) if good]
    done.embedded += len(embedded)
    return Embedded(embedded, vectors[finite])


class Committer:
    """Commits what was added, in a thread of its own, every COMMIT_SECONDS and when left.

    An error of the commit is raised by the next `add`, or on leaving. One commit runs at a time; a
    slow one holds up the adding, so that no more than two commits' worth is ever in memory. When left
    by an interrupt, a commit that hangs is given up after FLUSH_SECONDS.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._added: list[Embedded] = []
        self._committed_at = time.monotonic()
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupted = kind is not None and not issubclass(kind, Exception)
        deadline = time.monotonic() + (FLUSH_SECONDS if interrupted else float("inf"))
        with self._thread:
            try:
                self._start(deadline)
                self._finish(deadline)
            except _GivenUp:
                self._work.abandon()
            except Exception as failed:
                if not interrupted:
                    raise
                logger.warning("interrupted, and the last commit failed: %s", failed)

    def add(self, embedded: Embedded) -> None:
        """Take vectors to commit soon."""
        self._added.append(embedded)
        contents = sum(len(part.contents) for part in self._added)
        waited = time.monotonic() - self._committed_at
        if contents >= COMMIT_CONTENTS or waited >= COMMIT_SECONDS:
            self._start()

    def _start(self, deadline: float = float("inf")) -> None:
        self._finish(deadline)
        self._committed_at = time.monotonic()
        contents = [content for part in self._added for content in part.contents]
        if contents:
            vectors = np.concatenate([part.vectors for part in self._added])
            self._running = self._thread.submit(self._work.commit, Embedded(contents, vectors))
        self._added = []

    def _finish(self, deadline: float = float("inf")) -> None:
        running = self._running
        while running and not running.done():
            wait([running], timeout=POLL_SECONDS)
            if time.monotonic() > deadline:
                raise _GivenUp
        self._running = None
        if running:
            running.result()


class _GivenUp(Exception):
    """A commit hangs, and somebody wants us to end."""
