"""The shape of the project: which way imports point, and what is light to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import embed_pipeline

PACKAGE = Path(embed_pipeline.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lower rooms know nothing of higher ones. Inside a room, anything goes.
ROOMS = (
    {"errors", "settings", "progress"},
    {"durable", "locks", "home", "tables", "patience", "process", "side_by_side"},
    {
        "points",
        "manifest",
        "diff",
        "failures",
        "vector_library",
        "collection_state",
        "guard",
        "pause",
        "lease",
        "run_progress",
        "changes",
    },
    {"sources", "images", "models", "stores", "serving", "sample"},
    {"deployment"},
    {
        "project_run",
        "embedding",
        "sync",
        "space_sync",
        "model_change",
        "vector_health",
        "watching",
        "reporting",
        "retire",
        "rollback",
        "prune",
        "audit",
        "search",
        "projects",
        "pictures",
        "contact_sheet",
    },
    {
        "defs",
        "definitions",
        "dagster_home",
        "runs",
        "stopping",
        "doctor",
        "health",
        "demo",
        "dev",
        "terminal",
        "api",
        "serve",
        "cli",
        "cli_search",
    },
)
# Heavy or foreign libraries, and the only places that may know them.
FOREIGN = {
    "dagster": {"defs", "definitions", "runs", "stopping", "health", "api"},
    "qdrant_client": {"stores"},
    "qdrant_edge": {"stores"},
    "torch": {"models"},
    "transformers": {"models"},
    "supervisely": {"sources"},
    "httpx": {"sources", "models", "api"},
    "fastapi": {"api"},
    "starlette": {"api"},
    "uvicorn": {"serve"},
    "prometheus_client": {"api"},
    "dagster_graphql": {"api"},
    "sklearn": {"search"},
    "typer": {"cli", "cli_search"},
}


def room_of(module: Path) -> str:
    """The top-level name under embed_pipeline that a file belongs to."""
    return module.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(module: Path) -> set[str]:
    """Dotted names that a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def level(room: str) -> int:
    """How high a room is; a new room must be given a place above."""
    return next(number for number, rooms in enumerate(ROOMS) if room in rooms)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(module: Path) -> None:
    """A module imports only from its room and lower ones, and foreign libraries where they belong."""
    if module == PACKAGE / "__init__.py":
        return
    room = room_of(module)
    for name in imports_of(module):
        top, *rest = name.split(".")
        if top == "embed_pipeline" and rest:
            assert level(rest[0]) <= level(room), f"{room} imports {name}"
        assert room in FOREIGN.get(top, {room}), f"{room} imports {name}"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "embed_pipeline.cli",
            {"polars", "dagster", "torch", "numpy", "qdrant_edge", "rich.table"},
        ),
        (
            "embed_pipeline.definitions",
            {"torch", "transformers", "qdrant_client", "supervisely", "sklearn", "scipy"},
        ),
        ("embed_pipeline.sync", {"torch", "transformers", "dagster", "qdrant_client"}),
    ],
)
def test_heavy_imports_are_lazy(module: str, absent: set[str]) -> None:
    """What shows help, and what Dagster loads at every start, imports nothing heavy."""
    script = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not absent & set(loaded.stdout.split())
