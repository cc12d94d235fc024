"""How far a run is, in a file that other processes read."""

import json
import time
from collections import deque
from dataclasses import asdict, dataclass

from embed_pipeline.home import ProjectHome
from embed_pipeline.lease import lease_holder

WRITE_SECONDS = 1.0
# The rate is that of the last minute: a run's first batches wait for the model to load.
RATE_SAMPLES = 60


@dataclass(frozen=True)
class RunProgress:
    """Where a run is. done, total: images (total None: not known yet); per_second: of late."""

    run_id: str
    step: str
    done: int
    total: int | None
    per_second: float | None
    seconds_left: float | None

    def __str__(self) -> str:
        """For people: `embed 1,200 of 20,000, 55/s, 6 min left`."""
        total = "" if self.total is None else f" of {self.total:,}"
        rate = f", {self.per_second:,.0f}/s" if self.per_second else ""
        left = "" if self.seconds_left is None else f", {_duration(self.seconds_left)} left"
        return f"{self.step} {self.done:,}{total}{rate}{left}"


class Pace:
    """Turns counts into rates and time left, step by step."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._step = ""
        self._samples: deque[tuple[float, int]] = deque(maxlen=RATE_SAMPLES)

    def at(self, step: str, done: int, total: int | None) -> RunProgress:
        """The run is here now. Call it about once a second."""
        if step != self._step:
            self._step = step
            self._samples.clear()
        self._samples.append((time.monotonic(), done))
        (then, before), (now, _) = self._samples[0], self._samples[-1]
        rate = (done - before) / (now - then) if now > then and done > before else None
        left = (total - done) / rate if rate and total is not None else None
        return RunProgress(self._run_id, step, done, total, rate, left)


class ProgressFile:
    """A Progress that keeps a project's progress file up to date, once a second."""

    def __init__(self, home: ProjectHome, run_id: str) -> None:
        self._path = home.progress
        self._pace = Pace(run_id)
        self._step = ""
        self._written_at = 0.0

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """Write where it is time to, or another step begins."""
        now = time.monotonic()
        if step != self._step or now - self._written_at >= WRITE_SECONDS:
            self._step, self._written_at = step, now
            temporary = self._path.with_suffix(".writing")
            temporary.write_text(json.dumps(asdict(self._pace.at(step, done, total))))
            temporary.replace(self._path)

    def close(self) -> None:
        """The run ended: nobody is anywhere."""
        self._path.unlink(missing_ok=True)


def progress_of(home: ProjectHome) -> RunProgress | None:
    """How far the run is that works on the project now; None where there is none, or it just began."""
    holder = lease_holder(home)
    try:
        told = RunProgress(**json.loads(home.progress.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    # A killed run leaves its file behind.
    return told if holder and holder.label == f"run {told.run_id}" else None


def _duration(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004  # a minute and a half
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004  # as above
