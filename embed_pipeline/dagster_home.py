"""Dagster's home: the same one for the command line, the UI and the daemon."""

import os
import shutil
from pathlib import Path

from embed_pipeline.settings import Settings

_PACKAGE = Path(__file__).parent


def prepare_dagster_home(settings: Settings) -> Path:
    """Make DAGSTER_HOME with our `dagster.yaml` where it has none, and set the variable.

    Dagster reads it from the environment, and so do the processes that it starts.
    """
    home = settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copyfile(shipped("dagster.yaml"), home / "dagster.yaml")
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def shipped(name: str) -> Path:
    """A file that lies at the top of a checkout, and inside the package once that is installed."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name
