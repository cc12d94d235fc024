"""The lease: the one run that works on a project. It dies with its process."""

from collections.abc import Iterator
from contextlib import contextmanager

from embed_pipeline.errors import LeaseHeld, ProjectPaused
from embed_pipeline.home import ProjectHome
from embed_pipeline.locks import FileLock, Holder, Locked
from embed_pipeline.pause import pause_of


@contextmanager
def lease(home: ProjectHome, project: str, label: str, wait_seconds: float) -> Iterator[None]:
    """Hold the project's lease; label: who holds it, such as `run 5f0c…`.

    Raises LeaseHeld, naming the holder, after `wait_seconds`.
    """
    home.make()
    try:
        lock = FileLock(home.lease).acquire(wait_seconds, label)
    except Locked as error:
        raise LeaseHeld(
            f"{project}: {error.holder} works on this project; waited {wait_seconds:g} s. "
            "Wait for it or stop it, then try again (EMBED_LEASE_WAIT_SECONDS)"
        ) from error
    with lock:
        yield


@contextmanager
def working_lease(
    home: ProjectHome, project: str, run_id: str, wait_seconds: float
) -> Iterator[None]:
    """As `lease`, for a run that changes the project. Raises ProjectPaused where nobody may."""
    with lease(home, project, f"run {run_id}", wait_seconds):
        if (found := pause_of(home)) and found.paused:
            raise ProjectPaused(
                f"{project}: paused since {found.at:%Y-%m-%d %H:%M} UTC; to let it go on: "
                f"embed-pipeline resume {project}"
            )
        yield


def lease_holder(home: ProjectHome) -> Holder | None:
    """Who works on the project now."""
    return FileLock(home.lease).holder()
