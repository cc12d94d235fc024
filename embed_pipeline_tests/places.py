"""A root of projects and an EMBED_HOME that real processes share with a test."""

from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

from embed_pipeline.dagster_home import shipped
from embed_pipeline.deployment import Deployment
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.settings import load_settings
from embed_pipeline_tests.processes import Environment, environment


@dataclass(frozen=True)
class Place:
    """A root of projects, and the EMBED_HOME that the UI and the command line share."""

    root: Path
    home: Path
    env: Environment

    def durable(self) -> Counter[bytes]:
        """How often each content hash stands in the vector library."""
        parts = self.home.glob("vectors/*/part-*.parquet")
        return Counter(hash_ for part in parts for hash_ in pl.read_parquet(part)["content_hash"])

    def run(self, project: str) -> ProjectRun:
        """The project as this process sees it."""
        return ProjectRun(Deployment(load_settings()), project, "test")


def make_place(top: Path, **settings: object) -> Place:
    """An empty root under `top`, the demo model, and a Dagster whose run monitoring looks every second."""
    root, home = top / "root", top / "home"
    root.mkdir()
    dagster_home = home / "dagster"
    dagster_home.mkdir(parents=True)
    configure_dagster(dagster_home, run_monitoring={"poll_interval_seconds": 1})
    ours = {
        "EMBED_SOURCE": f"folder:{root}",
        "EMBED_SOURCE_ID": "test",
        "EMBED_MODEL": "demo",
        "EMBED_HOME": home,
        "DAGSTER_HOME": dagster_home,
    }
    env = environment(**(ours | settings))
    return Place(root, home, env)


def configure_dagster(home: Path, **sections: dict[str, Any]) -> None:
    """Our dagster.yaml, but for these values."""
    ours = yaml.safe_load(shipped("dagster.yaml").read_text())
    for name, values in sections.items():
        ours[name] = ours.get(name, {}) | values
    (home / "dagster.yaml").write_text(yaml.safe_dump(ours))


def visible(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the place's settings."""
    for name in ("EMBED_SOURCE", "EMBED_SOURCE_ID", "EMBED_MODEL", "EMBED_HOME"):
        monkeypatch.setenv(name, place.env[name])


def draw_slow(folder: Path, count: int, first_seed: int) -> None:
    """`count` different contents in few bytes, of eight pictures with 36 million pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for seed in range(first_seed, first_seed + 8):
        rng = np.random.default_rng(seed)
        picture = Image.new("P", (6000, 6000))
        picture.putpalette(rng.bytes(768))
        picture.paste(1, tuple(map(int, rng.integers(0, [3000, 3000, 6000, 6000]))))
        picture.save(file := BytesIO(), "PNG", compress_level=1)
        pictures.append(file.getvalue())
    for number in range(count):
        behind_the_picture = number.to_bytes(2)
        (folder / f"slow-{number:03}.png").write_bytes(pictures[number % 8] + behind_the_picture)
