"""Asking again what may succeed later: bounded in tries and in time, and never deaf to a stop."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
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
