"""The real daemon notices what other processes do to folders, with no command given."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embed_pipeline.audit import verify
from embed_pipeline.errors import EmbedPipelineError
from embed_pipeline_tests.conftest import draw, draw_many
from embed_pipeline_tests.places import Place, make_place, visible
from embed_pipeline_tests.processes import Services, answer, wait_until

TICK_SECONDS = 4
# Who asks holds up for a moment what it asks about: the webserver, and the shard.
EVERY = 0.3


def searchable(place: Place, project: str) -> bool:
    """Whether a project's collection equals its folder."""
    try:
        return place.run(project).collection.exists() and verify(place.run(project)).equal
    except EmbedPipelineError:
        return False  # a run holds the shard


def test_changes_are_searchable_within_two_ticks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images added, changed, removed; a folder added, a folder removed (three ticks); then quiet.

    A quiet source starts no run, and `health` says that all is well.
    """
    place = make_place(tmp_path, EMBED_INTERVAL_MINUTES=TICK_SECONDS / 60)
    visible(place, monkeypatch)
    root = place.root
    with Services(place.env, tmp_path) as services:
        ui = services.ui

        def within(ticks: int, done: Callable[[], bool], what: str) -> None:
            """All runs that it takes are asked for in so many ticks; what they take is not counted."""
            before = len(ui.ticks())
            wait_until(done, 120, what, EVERY)
            wait_until(lambda: not ui.unfinished(), 60, "its runs to end", EVERY)
            later = ui.ticks()[: -before - ticks or None]
            assert not any(tick["runIds"] for tick in later), what

        for project in ("cats", "dogs"):
            draw_many(root / project, 6)
        within(2, lambda: all(searchable(place, p) for p in ("cats", "dogs")), "new folders")

        some = sorted((root / "cats").iterdir())
        draw(some[0], 100)
        some[1].unlink()
        draw(root / "cats" / "new.png", 101)
        draw_many(root / "birds", 3, first_seed=200)
        gone = place.run("dogs")
        shutil.rmtree(root / "dogs")
        within(2, lambda: all(searchable(place, p) for p in ("cats", "birds")), "the changes")
        within(2, lambda: not gone.collection.exists(), "the folder that is gone to be retired")
        wait_until(lambda: sorted(ui.partitions()) == ["birds", "cats"], 5, "its partition to go")

        runs = ui.run_count()
        quiet = len(ui.ticks()) + 2
        wait_until(lambda: len(ui.ticks()) >= quiet, 90, "two more ticks", EVERY)
        assert ui.run_count() == runs
        assert ui.ticks()[0]["skipReason"] == "2 projects; unchanged: 2"
        assert {tick["status"] for tick in ui.ticks()} == {"SUCCESS", "SKIPPED"}

        found = answer("health", env=place.env)
        assert (found["status"], set(found["checks"].values())) == ("healthy", {"healthy"})
        assert list(found["checks"]) == ["qdrant", "clip", "source", "scheduler", "sensor"]
