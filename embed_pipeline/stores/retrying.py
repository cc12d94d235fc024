"""Asking again what may succeed later: bounded in tries and in time, and never deaf to a stop."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_before_delay,
    stop_when_event_set,
    wait_random_exponential,
)

T = TypeVar("T")

_WAKE_SECONDS = 0.5


class Stopped(Exception):
    """Nothing was tried any more: whoever could stop it did."""


@dataclass(frozen=True)
class Patience:
    """How often and how long something is tried.

    tries: at most. try_seconds: what one may take. total_seconds: all tries and the waits between.
    A wait is drawn from zero to a bound, which doubles from first_wait_seconds to longest_wait_seconds:
    what many lost at once, they do not ask for again at once.
    """

    tries: int
    try_seconds: int
    total_seconds: float
    first_wait_seconds: float = 0.25
    longest_wait_seconds: float = 10.0

    def ask(
        self,
        call: Callable[[], T],
        may_pass: Callable[[BaseException], bool],
        tell: Callable[[RetryCallState], None],
        stop: Event,
    ) -> T:
        """Call until it succeeds; raise its last error, at once where that will not pass.

        tell: told of each wait before it begins. stop: ends a wait, and the asking.
        A wait that the error itself asks for (`retry_after_s`) is kept, if it ends in time.
        """

        def attempt() -> T:
            if stop.is_set():
                raise Stopped
            return call()

        return Retrying(
            retry=retry_if_exception(may_pass),
            # No try begins that could end too late.
            stop=stop_after_attempt(self.tries)
            | stop_before_delay(self.total_seconds - self.try_seconds)
            | stop_when_event_set(stop),
            wait=self._wait,
            sleep=sleep_using_event(stop),
            before_sleep=tell,
            reraise=True,
        )(attempt)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        drawn = wait_random_exponential(self.first_wait_seconds, self.longest_wait_seconds)(state)
        return float(getattr(error, "retry_after_s", 0)) + drawn


# Somebody may be waiting for a search. A sync rides out the restart of a large server.
READS = Patience(tries=10, try_seconds=10, total_seconds=25)
WRITES = Patience(tries=60, try_seconds=60, total_seconds=300)


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
            Thread(target=worker.work, name="store-write", daemon=True).start()
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
