"""The lease: the one run that works on a project. It dies with its process."""

from collections.abc import Iterator
from contextlib import contextmanager

from embed_pipeline.errors import LeaseHeld
from embed_pipeline.home import ProjectHome
from embed_pipeline.locks import FileLock, Locked


@contextmanager
def lease(home: ProjectHome, project: str, run_id: str, wait_seconds: float) -> Iterator[None]:
    """Hold the project's lease. Raises LeaseHeld, naming the holder, after `wait_seconds`."""
    home.make()
    try:
        lock = FileLock(home.lease).acquire(wait_seconds, f"run {run_id}")
    except Locked as error:
        raise LeaseHeld(
            f"{project}: {error.holder} works on this project; waited {wait_seconds:g} s. "
            "Wait for it or stop it, then try again (EMBED_LEASE_WAIT_SECONDS)"
        ) from error
    with lock:
        yield


def is_leased(home: ProjectHome) -> bool:
    """Whether a run works on the project now."""
    return FileLock(home.lease).is_locked()
