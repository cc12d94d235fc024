"""Fixtures: a clean environment, folders of small images, a deployment over them."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from embed_pipeline import cli
from embed_pipeline.deployment import Deployment
from embed_pipeline.models import clip
from embed_pipeline.models.clip import ClipEncoder, Device, Precision, load_encoder
from embed_pipeline.models.protocol import ModelCard
from embed_pipeline.process import collect_rarely
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.settings import load_settings

if TYPE_CHECKING:
    import dagster as dg

    from embed_pipeline_tests.supervisely_place import Platform

collect_rarely()
# Tests run side by side: torch's own threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests wait for a disk longer than they work: each event of a Dagster run, for one, is synced to it three
# times. What they write lies in memory, where there is room, and goes when all have passed.
MEMORY = Path("/dev/shm")
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 2 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

OUR_VARIABLES = (
    *("EMBED_", "QDRANT_", "DAGSTER_HOME", "LOG_LEVEL"),
    *("SERVER_ADDRESS", "API_TOKEN", "SUPERVISELY_", "IMGPROXY_ADDRESS", "UPDATE_INTERVAL"),
)


# Of two workers, neither is to be left with a long file at the end.
LONGEST_FIRST = (
    *("test_stopping", "test_dagster", "test_api_services", "test_supervisely_kills", "test_page"),
    *("test_search", "test_cli", "test_sensor", "test_qdrant_server", "test_diverse"),
    *("test_old_faults_api", "test_embeddings_api", "test_remote_encoder", "test_supervisely"),
    *("test_old_faults_data", "test_old_faults_runs", "test_docker", "test_force", "test_demo"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the person who runs the tests reaches them, and no hub is asked for anything."""
    for name in os.environ:
        if name.startswith(OUR_VARIABLES) and name != "QDRANT_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # A test's process is for more than one command.
    monkeypatch.setattr(cli, "give_way", lambda: None)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root folder that EMBED_SOURCE names, with EMBED_HOME beside it and the demo model."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("EMBED_SOURCE", f"folder:{root}")
    monkeypatch.setenv("EMBED_SOURCE_ID", "test")
    monkeypatch.setenv("EMBED_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EMBED_MODEL", "demo")
    return root


@cache
def load_once(
    card: ModelCard, directory: Path, device: Device, precision: Precision
) -> ClipEncoder:
    """The real model, loaded once for all tests of this process."""
    return load_encoder(card, directory, device=device, precision=precision)


@pytest.fixture
def start(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ProjectRun]:
    """Start a run on a project of `root`: everything but the model is opened anew, as in a new process."""
    monkeypatch.setattr(clip, "load_encoder", load_once)

    def start(project: str = "cats", run_id: str = "run") -> ProjectRun:
        return ProjectRun(Deployment(load_settings()), project, run_id)

    return start


@pytest.fixture(scope="module")
def dagster_storage(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator["dg.DagsterInstance"]:
    """Dagster, of which one serves all tests of a file; what its runs tell lies in memory.

    In files it would cost a third of the time of these tests; those with processes have it there.
    """
    from embed_pipeline.runs import dagster_instance
    from embed_pipeline_tests.places import configure_dagster

    home = tmp_path_factory.mktemp("dagster")
    in_memory = {
        "module": "dagster._core.storage.event_log.in_memory",
        "class": "InMemoryEventLogStorage",
    }
    configure_dagster(home, event_log_storage=in_memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        with dagster_instance(load_settings()) as instance:
            yield instance


@pytest.fixture
def platform(
    tmp_path: Path, dagster_storage: "dg.DagsterInstance", monkeypatch: pytest.MonkeyPatch
) -> Iterator["Platform"]:
    """A stand-in Supervisely instance without a project, that the settings name."""
    from embed_pipeline_tests.supervisely_place import platform_of

    monkeypatch.setattr(clip, "load_encoder", load_once)
    with platform_of(dagster_storage, tmp_path / "home", monkeypatch) as platform:
        yield platform


def draw(path: Path, seed: int, size: tuple[int, int] = (80, 60)) -> Path:
    """A small picture that differs from that of any other seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(cells).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def draw_many(folder: Path, count: int, first_seed: int = 0) -> list[Path]:
    """`count` different pictures."""
    return [draw(folder / f"image-{i:04d}.png", first_seed + i) for i in range(count)]
