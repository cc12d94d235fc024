"""The main flow on folders: what each change of the source does to the collection."""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline import embedding
from embed_pipeline.audit import verify
from embed_pipeline.collection_state import CollectionState
from embed_pipeline.errors import (
    OutOfSpace,
    ProjectNotFound,
    RemovalWithheld,
    SourceUnavailable,
    StoreError,
)
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.retire import retire
from embed_pipeline.stores.qdrant_edge import EdgeCollection
from embed_pipeline.sync import apply, diff, embed, scan, sync
from embed_pipeline_tests.conftest import draw, draw_many

Start = Callable[..., ProjectRun]


def counts(state: CollectionState) -> dict[str, int]:
    """The counts that are not zero."""
    names = ("embed", "reuse", "relabel", "remove", "unchanged", "failed")
    return {name: value for name, value in asdict(state).items() if name in names and value}


@pytest.fixture
def model_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each forward pass took."""
    calls: list[int] = []
    encode = embedding._encode

    def counted(batch: list[object], *rest: object) -> object:
        calls.append(len(batch))
        return encode(batch, *rest)

    monkeypatch.setattr(embedding, "_encode", counted)
    return calls


@pytest.fixture
def cats(root: Path, start: Start) -> Path:
    """A synced project of ten images in two datasets."""
    draw_many(root / "cats" / "indoors", 6)
    draw_many(root / "cats" / "outdoors", 4, first_seed=100)
    assert counts(sync(start())) == {"embed": 10}
    return root / "cats"


def test_every_change_of_the_source_gives_exactly_its_counts(
    cats: Path, root: Path, start: Start, model_calls: list[int]
) -> None:
    """Adding, changing, renaming, moving, copying, deleting and restoring do what DESIGN says, no more."""
    assert counts(sync(start())) == {"unchanged": 10}
    draw(cats / "indoors" / "new.png", 200)
    assert counts(sync(start())) == {"embed": 1, "unchanged": 10}
    draw(cats / "indoors" / "new.png", 201)
    assert counts(sync(start())) == {"embed": 1, "unchanged": 10}
    assert model_calls == [1, 1]

    (cats / "indoors" / "new.png").rename(cats / "indoors" / "renamed.png")
    assert counts(sync(start())) == {"reuse": 1, "remove": 1, "unchanged": 10}
    (cats / "indoors" / "renamed.png").rename(cats / "outdoors" / "renamed.png")
    assert counts(sync(start())) == {"reuse": 1, "remove": 1, "unchanged": 10}
    shutil.copytree(cats, root / "dogs")
    assert counts(sync(start("dogs"))) == {"reuse": 11}
    kept = (cats / "outdoors" / "renamed.png").rename(root / "kept.png")
    assert counts(sync(start())) == {"remove": 1, "unchanged": 10}
    kept.rename(cats / "outdoors" / "renamed.png")
    assert counts(sync(start())) == {"reuse": 1, "unchanged": 10}
    assert model_calls == [1, 1], "no rename, move, copy or restoring asks the model"
    assert verify(start(), vectors=True).equal


def test_same_content_is_embedded_once(root: Path, start: Start, model_calls: list[int]) -> None:
    """Five new files with the same content: embed 1, reuse 4."""
    for number in range(5):
        draw(root / "cats" / f"{number}.png", 7)
    assert counts(sync(start())) == {"embed": 1, "reuse": 4}
    assert model_calls == [1]


@pytest.mark.parametrize("fault", ["deleted", "added", "relabelled", "content altered", "moved"])
def test_verify_finds_planted_faults_and_sync_mends_them(
    cats: Path, start: Start, fault: str, model_calls: list[int]
) -> None:
    """A point deleted, added, or with another payload is found by verify and mended by the next sync."""
    run = start()
    points, vectors = next(run.collection.scroll_vectors())
    one, vector = points.head(1), vectors[:1]
    stranger = one.with_columns(point_id=pl.lit(os.urandom(16)))
    plant = {
        "deleted": lambda: run.collection.delete(one["point_id"]),
        "added": lambda: run.collection.upsert(stranger, vector),
        "relabelled": lambda: run.collection.relabel(one.with_columns(name=pl.lit("x"))),
        "content altered": lambda: run.collection.relabel(
            one.with_columns(content_hash=pl.lit(b"?" * 32))
        ),
        "moved": lambda: run.collection.relabel(one.with_columns(dataset_id=pl.lit("nowhere"))),
    }
    expected = {
        "deleted": ({"missing": 1}, {"reuse": 1, "unchanged": 9}),
        "added": ({"extra": 1}, {"remove": 1, "unchanged": 10}),
        "relabelled": ({"stale": 1}, {"relabel": 1, "unchanged": 9}),
        "content altered": ({"stale": 1}, {"reuse": 1, "unchanged": 9}),
        "moved": ({"stale": 1}, {"relabel": 1, "unchanged": 9}),
    }
    plant[fault]()
    found, mended = expected[fault]
    audit = asdict(verify(start()))
    assert {name: audit[name] for name in ("missing", "stale", "extra") if audit[name]} == found
    assert counts(sync(start())) == mended
    assert verify(start()).equal
    assert model_calls == []


def test_altered_vectors_are_found_and_mended(cats: Path, start: Start) -> None:
    """Only `verify --vectors` sees an altered vector; the next sync writes the point again."""
    run = start()
    points, vectors = next(run.collection.scroll_vectors())
    run.collection.upsert(points.head(2), -vectors[:2])
    assert verify(start()).equal
    assert verify(start(), vectors=True).stale == 2
    assert counts(sync(start())) == {"reuse": 2, "unchanged": 8}
    assert verify(start(), vectors=True).equal


def test_a_lost_store_is_filled_from_the_library(
    cats: Path, start: Start, model_calls: list[int]
) -> None:
    """A deleted embedded store is filled again with embed 0."""
    shutil.rmtree(start().deployment.home.qdrant)
    assert counts(sync(start())) == {"reuse": 10}
    assert model_calls == []
    assert verify(start(), vectors=True).equal


def test_everything_but_library_and_store_can_be_lost(cats: Path, start: Start) -> None:
    """Manifests, hashes, failures and states are rebuilt, and nothing is done to the collection."""
    shutil.rmtree(start().deployment.home.root / "projects")
    assert counts(sync(start())) == {"unchanged": 10}


def test_a_lost_library_costs_nothing_that_is_indexed(cats: Path, start: Start) -> None:
    """Points stay where the library is gone; only new content is embedded."""
    shutil.rmtree(start().deployment.home.root / "vectors")
    draw(cats / "new.png", 300)
    assert counts(sync(start())) == {"embed": 1, "unchanged": 10}


def test_what_another_project_embeds_meanwhile_is_counted_once(
    cats: Path, root: Path, start: Start, model_calls: list[int]
) -> None:
    """A content that another run embeds after our diff is reused: no second call, its image counts once."""
    draw(cats / "new.png", 800)
    draw(root / "dogs" / "same.png", 800)
    run = start()
    scan(run)
    diff(run)
    assert counts(sync(start("dogs"))) == {"embed": 1}
    model_calls.clear()
    embed(run)
    assert counts(apply(run)) == {"reuse": 1, "unchanged": 10}
    assert model_calls == []


def test_a_bad_image_is_a_row(cats: Path, start: Start) -> None:
    """An unreadable image is counted as failed in every sync and never tried again until it changes."""
    (cats / "broken.png").write_bytes(b"this is no picture")
    assert counts(sync(start())) == {"failed": 1, "unchanged": 10}
    assert counts(sync(start())) == {"failed": 1, "unchanged": 10}
    failure = start().all_failures().row(0, named=True)
    assert (failure["stage"], failure["reason"], failure["attempts"]) == (
        "decode",
        "unknown_format",
        1,
    )
    assert verify(start()).failed == 1
    draw(cats / "broken.png", 400)
    assert counts(sync(start())) == {"embed": 1, "unchanged": 10}
    assert start().all_failures().is_empty()


def test_odd_files_never_stop_a_project(root: Path, start: Start) -> None:
    """Hundreds of damaged and exotic files: each is indexed or recorded with stage and reason."""
    shared = Path(__file__).parents[2] / "shared" / "data"
    if not shared.is_dir():
        pytest.skip(f"needs the images in {shared}")
    for folder in ("odd_images", "pngsuite", "exif_orientation"):
        shutil.copytree(shared / folder, root / "odd" / folder)
    state = sync(start("odd"))
    assert state.images == state.indexed + state.failed > 500
    failures = start("odd").failures()
    assert failures.filter(pl.any_horizontal(pl.col("stage", "reason").is_null())).is_empty()
    assert verify(start("odd"), vectors=True).equal


def test_a_header_that_lies_is_a_bad_image_only(cats: Path, start: Start) -> None:
    """A bitmap that claims four thousand million columns is one failed image."""
    header = b"BM" + bytes(12) + (40).to_bytes(4, "little") + bytes.fromhex("81ffffff 81ffffff")
    (cats / "liar.bmp").write_bytes(header + bytes.fromhex("0100 1800") + bytes(100))
    assert counts(sync(start())) == {"failed": 1, "unchanged": 10}


def test_a_failed_image_is_tried_again_when_a_limit_changes(
    cats: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image over the pixel limit is embedded by the next sync once the limit allows it."""
    monkeypatch.setenv("EMBED_MAX_IMAGE_PIXELS", "10000")
    draw(cats / "large.png", 500, size=(200, 200))
    assert counts(sync(start())) == {"failed": 1, "unchanged": 10}
    monkeypatch.delenv("EMBED_MAX_IMAGE_PIXELS")
    assert counts(sync(start())) == {"embed": 1, "unchanged": 10}


def test_a_point_does_not_outlive_its_content(cats: Path, start: Start) -> None:
    """An image replaced by something that is no picture leaves search."""
    next(cats.rglob("*.png")).write_bytes(b"overwritten")
    assert counts(sync(start())) == {"failed": 1, "remove": 1, "unchanged": 9}
    assert verify(start()).equal


def test_a_file_changed_while_syncing_never_gets_a_wrong_vector(cats: Path, start: Start) -> None:
    """Bytes that are not the listed ones are a transient failure, and right in the next sync."""
    draw(cats / "new.png", 600)
    run = start()
    scan(run)
    diff(run)
    draw(cats / "new.png", 601)
    embed(run)
    assert counts(apply(run)) == {"failed": 1, "unchanged": 10}
    assert counts(sync(start())) == {"embed": 1, "unchanged": 10}
    assert verify(start(), vectors=True).equal


class TestGuard:
    """Removals are held back where the source may have lost its images by accident."""

    @pytest.fixture
    def many(self, root: Path, start: Start) -> Path:
        """A synced project of 120 images."""
        draw_many(root / "cats", 120)
        sync(start())
        return root / "cats"

    def test_too_many_removals_are_withheld_until_confirmed(self, many: Path, start: Start) -> None:
        """Additions go in, nothing is removed, the error tells the number; confirming it removes, once."""
        for path in sorted(many.iterdir())[:60]:
            path.unlink()
        draw(many / "new.png", 999)
        with pytest.raises(RemovalWithheld, match="--confirm-removals 60") as held:
            sync(start())
        assert held.value.count == 60
        assert start().collection.count() == 121
        with pytest.raises(RemovalWithheld):
            sync(start(), confirm_removals=59)
        assert counts(sync(start(), confirm_removals=60)) == {"remove": 60, "unchanged": 61}

    def test_few_removals_and_any_number_of_renames_are_free(
        self, many: Path, start: Start
    ) -> None:
        """Fifty deletions pass; renaming everything loses no content and passes too."""
        for path in sorted(many.iterdir())[:50]:
            path.unlink()
        assert counts(sync(start())) == {"remove": 50, "unchanged": 70}
        many.rename(many.with_name("x"))
        (many.with_name("x")).rename(many / "moved") if many.mkdir() is None else None
        assert counts(sync(start())) == {"reuse": 70, "remove": 70}

    def test_an_emptied_project_removes_nothing_by_itself(self, cats: Path, start: Start) -> None:
        """An empty listing never empties a collection, however small."""
        shutil.rmtree(cats)
        cats.mkdir()
        with pytest.raises(RemovalWithheld, match="--confirm-removals 10"):
            sync(start())
        assert start().collection.count() == 10
        sync(start(), confirm_removals=10)
        assert not start().collection.exists()

    def test_a_vanished_folder_or_root_is_an_error_and_removes_nothing(
        self, cats: Path, root: Path, start: Start
    ) -> None:
        """A project that is gone and a root that is not there are different errors."""
        shutil.rmtree(cats)
        with pytest.raises(ProjectNotFound, match="cats: no such project"):
            sync(start())
        shutil.rmtree(root)
        with pytest.raises(SourceUnavailable, match="cannot be listed"):
            sync(start())
        assert start().collection.count() == 10


def test_small_and_empty_projects_end_in_a_clear_state(root: Path, start: Start) -> None:
    """An empty project, one of one image and one of broken images only: each syncs and verifies."""
    for name in ("empty", "one", "broken"):
        (root / name).mkdir()
    draw(root / "one" / "only.jpg", 1)
    (root / "broken" / "a.jpg").write_bytes(b"")
    (root / "broken" / "b.jpg").write_bytes(b"\xff\xd8\xff")
    assert counts(sync(start("empty"))) == {}
    assert counts(sync(start("one"))) == {"embed": 1}
    assert counts(sync(start("broken"))) == {"failed": 2}
    for name in ("empty", "one", "broken"):
        assert verify(start(name)).equal


def test_a_full_disk_loses_nothing(
    cats: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OutOfSpace while writing leaves what was recorded; with room again the sync completes."""
    draw_many(cats / "more", 5, first_seed=700)
    run = start()
    scan(run)
    diff(run)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("embed_pipeline.durable.os.fsync", full)
        with pytest.raises(OutOfSpace, match="the disk is full"):
            embed(run)
    assert run.collection.count() == 10
    assert verify(start()).missing == 5
    assert counts(sync(start())) == {"embed": 5, "unchanged": 10}


def test_an_interrupted_run_keeps_what_it_encoded(
    root: Path, start: Start, monkeypatch: pytest.MonkeyPatch, model_calls: list[int]
) -> None:
    """An interrupt while embedding commits the finished batches; the next run does only the rest."""
    draw_many(root / "cats", 40)
    monkeypatch.setenv("EMBED_BATCH_SIZE", "8")
    run = start()
    scan(run)
    diff(run)

    def interrupt(step: str, done: int, total: int | None) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(ProjectRun(run.deployment, run.project, run.run_id, interrupt))
    assert run.collection.count() == 16
    assert counts(sync(start(run_id="next"))) == {"embed": 24, "unchanged": 16}
    assert sum(model_calls) == 40
    assert verify(start(), vectors=True).equal


def test_an_interrupted_run_does_not_wait_for_a_store_that_hangs(
    root: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the store some seconds, gives it up, and ends as interrupted; nothing is lost."""
    monkeypatch.setattr(embedding, "COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(embedding, "FLUSH_SECONDS", 0.3)
    monkeypatch.setenv("EMBED_BATCH_SIZE", "8")
    draw_many(root / "cats", 40)
    run, closed = start(), threading.Event()
    scan(run)
    diff(run)

    def hang(*_: object) -> None:
        assert closed.wait(20)
        raise StoreError("closed")

    def interrupt(step: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(EdgeCollection, "upsert", hang)
        patched.setattr(run.deployment.store, "close", closed.set)
        with pytest.raises(KeyboardInterrupt):
            embed(ProjectRun(run.deployment, run.project, run.run_id, interrupt))
    assert closed.is_set()
    assert counts(sync(start(run_id="next"))) == {"embed": 32, "reuse": 8}


def test_two_deployments_never_touch_each_others_points(
    cats: Path, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two roots, both with a project `cats`, in one store and one EMBED_HOME."""
    monkeypatch.delenv("EMBED_SOURCE_ID")
    other = tmp_path / "other" / "root"
    draw_many(other / "cats", 3, first_seed=900)
    sources = (f"folder:{cats.parent}", f"folder:{other}")
    held = {}
    for source, images in zip(sources, (10, 3), strict=True):
        monkeypatch.setenv("EMBED_SOURCE", source)
        assert sync(start()).indexed == images
        held[source] = pl.concat(start().collection.scroll())
    draw(other / "cats" / "new.png", 950)
    assert counts(sync(start())) == {"embed": 1, "unchanged": 3}
    retire(start().deployment, "cats")
    assert not start().collection.exists()
    monkeypatch.setenv("EMBED_SOURCE", sources[0])
    assert pl.concat(start().collection.scroll()).equals(held[sources[0]])
    assert counts(sync(start())) == {"unchanged": 10}


def test_points_are_searchable_before_the_run_ends(
    root: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a run still embeds, the points of its finished batches are in the collection."""
    monkeypatch.setattr(embedding, "COMMIT_SECONDS", 0.0)
    monkeypatch.setenv("EMBED_BATCH_SIZE", "8")
    draw_many(root / "cats", 40)
    seen: list[int] = []

    def look(step: str, done: int, total: int | None) -> None:
        if step == "embed" and run.collection.exists():
            seen.append(run.collection.count())

    run = start()
    sync(ProjectRun(run.deployment, run.project, run.run_id, look))
    assert seen
    assert min(seen) < 40
