"""Jobs side by side, which end when one fails or somebody interrupts."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

_WAKE_SECONDS = 0.5


def run_all(jobs: Sequence[Callable[[], object]], at_once: int, stop: Event) -> None:
    """Run all jobs, so many at once. The first error, or an interrupt, sets `stop` and is raised.

    It does not wait for jobs under way: `stop` must end them, and those that begin after it is set.
    Their threads hold up no exit.
    """
    if len(jobs) == 1 or at_once == 1:
        for job in jobs:
            job()
        return
    ended: SimpleQueue[BaseException | None] = SimpleQueue()
    worker = _Worker(jobs, ended)
    workers = min(at_once, len(jobs))
    try:
        for _ in range(workers):
            Thread(target=worker.work, name="side-by-side", daemon=True).start()
        for _ in range(workers):
            _raise_next(ended)
    except BaseException:
        stop.set()
        raise


def _raise_next(ended: "SimpleQueue[BaseException | None]") -> None:
    error: BaseException | None = None
    waiting = True
    while waiting:
        # Never without an end: where polars was imported, no signal wakes such a wait.
        with suppress(Empty):
            error = ended.get(timeout=_WAKE_SECONDS)
            waiting = False
    if error:
        raise error


class _Worker:
    """Takes the next job until there is none, or one failed, and says how it ended."""

    def __init__(
        self,
        jobs: Sequence[Callable[[], object]],
        ended: "SimpleQueue[BaseException | None]",
    ) -> None:
        self._jobs = iter(jobs)
        self._lock = Lock()
        self._ended = ended

    def work(self) -> None:
        """Run in as many threads as jobs may run at once."""
        try:
            while job := self._next():
                job()
            self._ended.put(None)
        except BaseException as error:  # noqa: BLE001  # it is raised where the jobs were handed in
            self._ended.put(error)

    def _next(self) -> Callable[[], object] | None:
        with self._lock:
            return next(self._jobs, None)
