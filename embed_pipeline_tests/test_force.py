"""Force: everything encoded anew, in place, with never less to search than before."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from embed_pipeline import embedding, failures, space_sync
from embed_pipeline.audit import verify
from embed_pipeline.cli import app
from embed_pipeline.collection_state import CollectionState
from embed_pipeline.errors import ImageError, StoreError
from embed_pipeline.models.protocol import Vectors
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.search.query import Query
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.sync import diff, scan, sync
from embed_pipeline_tests.conftest import draw, draw_many

Start = Callable[..., ProjectRun]
Fail = Callable[[str, str], None]
CONTENTS, COPIES = 8, 2
IMAGES = CONTENTS + COPIES


def counts(state: CollectionState) -> dict[str, int]:
    """The counts that are not zero; they add up to the images."""
    told = {
        name: value
        for name, value in asdict(state).items()
        if name in ("embed", "reuse", "relabel", "remove", "unchanged", "failed") and value
    }
    assert sum(told.values()) - state.remove == state.images
    return told


def searchable(run: ProjectRun) -> int:
    """How many images a search finds; a search by image works as well."""
    image = Searcher(run.deployment).search(run.project, Query(like=["image-0005.png"])).hits
    assert len(image) == IMAGES - 1
    return len(Searcher(run.deployment).search(run.project, Query(texts=["a cat"], limit=100)).hits)


def vectors_of(run: ProjectRun) -> dict[str, Vectors]:
    """Each image's vector in the collection."""
    pages = run.collection.scroll_vectors()
    return {
        image: vector
        for points, vectors in pages
        for image, vector in zip(points["image_id"], vectors, strict=True)
    }


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each content went through the model."""
    encoded: Counter[bytes] = Counter()
    encode = embedding._encode

    def counted(batch: list[tuple[embedding.Content, object]], *rest: object) -> object:
        made = encode(batch, *rest)
        encoded.update(content.content_hash for content, _ in batch)
        return made

    monkeypatch.setattr(embedding, "_encode", counted)
    return encoded


@pytest.fixture
def cats(root: Path, start: Start, encoded: Counter[bytes]) -> Path:
    """A synced project of ten images, two of them copies."""
    for number, image in enumerate(draw_many(root / "cats", CONTENTS)[:COPIES]):
        shutil.copy(image, image.with_name(f"copy-{number}.png"))
    assert counts(sync(start())) == {"embed": CONTENTS, "reuse": COPIES}
    encoded.clear()
    return root / "cats"


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is committed."""
    monkeypatch.setenv("EMBED_BATCH_SIZE", "2")
    monkeypatch.setattr(embedding, "COMMIT_SECONDS", 0.0)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Make an image's content fail from now on: "for good", or "for now"."""
    prepare = embedding._prepare

    def fail(image: str, how: str) -> None:
        def failing(content: embedding.Content, work: embedding.Work) -> embedding.Prepared:
            if content.image_id == image:
                error = ImageError("fetch", "unreadable", "so it is", transient=how == "for now")
                return embedding.Prepared(content, error)
            return prepare(content, work)

        monkeypatch.setattr(embedding, "_prepare", failing)

    return fail


def test_every_content_is_encoded_once_and_copies_share(
    cats: Path, start: Start, encoded: Counter[bytes]
) -> None:
    """A forced sync asks the model about each content, once, and ends as any other sync."""
    state = sync(start(), force=True)
    assert counts(state) == {"embed": CONTENTS, "reuse": COPIES}
    assert set(encoded.values()) == {1}
    assert len(encoded) == CONTENTS
    assert verify(start(), vectors=True).equal
    assert counts(sync(start())) == {"unchanged": IMAGES}
    assert not start().space_home.forced.exists()


def test_wrong_vectors_are_right_again(cats: Path, start: Start) -> None:
    """What is wrong in library and collection alike, so that no audit can see it, is made anew."""
    run = start()
    right = vectors_of(run)
    points, vectors = next(run.collection.scroll_vectors())
    run.library.add(points["content_hash"], np.roll(vectors, 1, axis=1))
    run.collection.upsert(points, np.roll(vectors, 1, axis=1))
    assert verify(start(), vectors=True).equal
    sync(start(), force=True)
    for image, vector in vectors_of(start()).items():
        assert vector @ right[image] > 0.9999
    hashes, held = start().library.vectors(points["content_hash"])
    at = dict(zip(hashes, held, strict=True))
    for content, image in points.select("content_hash", "image_id").iter_rows():
        assert at[content] @ right[image] > 0.9999
    assert verify(start(), vectors=True).equal


@pytest.mark.usefixtures("small_batches")
def test_interrupted_anywhere_the_next_sync_goes_on(
    cats: Path,
    start: Start,
    encoded: Counter[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Searches find all images all the time; both runs together encode each content exactly once."""
    encode = embedding._encode
    seen: set[int] = set()

    def stop_after(batches: int, error: type[BaseException], run: ProjectRun) -> None:
        calls = iter(range(batches))

        def stopping(*arguments: object) -> object:
            seen.add(searchable(run))
            if next(calls, None) is None:
                raise error("enough")
            return encode(*arguments)

        monkeypatch.setattr(embedding, "_encode", stopping)

    errors = (KeyboardInterrupt, RuntimeError, KeyboardInterrupt, MemoryError)
    for batches, error in enumerate(errors):
        encoded.clear()
        run = start(run_id=f"forced {batches}")
        stop_after(batches, error, run)
        with pytest.raises(error):
            sync(run, force=True)
        assert searchable(start()) == IMAGES
        assert encoded.total() == 2 * batches
        assert verify(start()).stale >= CONTENTS - 2 * batches
        monkeypatch.setattr(embedding, "_encode", encode)
        state = sync(start(run_id=f"plain {batches}"))
        assert (state.equal, state.embed) == (True, CONTENTS - 2 * batches)
        assert len(encoded) == encoded.total() == CONTENTS
        assert verify(start(), vectors=True).equal
    assert seen == {IMAGES}


@pytest.mark.usefixtures("small_batches")
def test_killed_between_library_and_points(
    cats: Path, start: Start, monkeypatch: pytest.MonkeyPatch, encoded: Counter[bytes]
) -> None:
    """Where a vector reached the library only, its points have the old one until the next sync."""
    upsert = space_sync._upsert
    calls = iter(range(2))

    def failing(*arguments: object) -> None:
        if next(calls, None) is None:
            raise StoreError("gone")
        upsert(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(space_sync, "_upsert", failing)
        with pytest.raises(StoreError):
            sync(start(), force=True)
    assert searchable(start()) == IMAGES
    assert sync(start(run_id="next")).equal
    assert len(encoded) == CONTENTS
    assert encoded.total() <= CONTENTS + 4
    assert verify(start(), vectors=True).equal


def test_steps_alone_never_lose_anything(cats: Path, start: Start) -> None:
    """A forced diff and an apply without an embed between them: all is served, and a sync ends it."""
    from embed_pipeline.sync import apply

    run = start()
    scan(run)
    diff(run, force=True)
    assert apply(run).stale == IMAGES
    assert searchable(start()) == IMAGES
    assert counts(sync(start(run_id="next"))) == {"embed": CONTENTS, "reuse": COPIES}


def test_what_fails_for_good_keeps_its_point(cats: Path, start: Start, fail: Fail) -> None:
    """It is counted as failed, found as before, and not asked about again."""
    fail("image-0005.png", "for good")
    state = sync(start(), force=True)
    assert state.equal
    assert counts(state) == {"embed": CONTENTS - 1, "reuse": COPIES, "failed": 1}
    assert searchable(start()) == state.indexed == IMAGES
    assert start().failures().height == 1
    assert verify(start(), vectors=True).equal
    for _ in range(2):
        assert counts(sync(start())) == {"unchanged": IMAGES}
    assert start().failures().is_empty()
    assert counts(sync(start(), force=True))["failed"] == 1, "who asks again gets it tried again"


def test_what_fails_for_now_is_tried_again(
    cats: Path,
    start: Start,
    fail: Fail,
    monkeypatch: pytest.MonkeyPatch,
    encoded: Counter[bytes],
) -> None:
    """It is found as before, and encoded anew by the first sync after a while."""
    fail("image-0005.png", "for now")
    forced = sync(start(), force=True)
    assert (forced.equal, forced.failed, forced.retry_at is not None) == (True, 1, True)
    again = sync(start(run_id="too soon"))
    assert (again.equal, counts(again)) == (True, {"failed": 1, "unchanged": IMAGES - 1})
    monkeypatch.setattr(failures, "FIRST_RETRY", 0 * failures.FIRST_RETRY)
    again = sync(start(run_id="still failing"))
    assert (again.equal, counts(again)) == (True, {"failed": 1, "unchanged": IMAGES - 1})
    assert searchable(start()) == IMAGES
    fail("none", "for now")
    assert counts(sync(start(run_id="mended"))) == {"embed": 1, "unchanged": IMAGES - 1}
    assert set(encoded.values()) == {1}
    assert start().failures().is_empty()


@pytest.mark.parametrize("how", ["for now", "for good"])
def test_an_image_that_moves_while_its_content_fails_is_found_at_its_new_place(
    cats: Path, start: Start, fail: Fail, how: str
) -> None:
    """Renamed and forced at once: the new point gets the vector that the old one had."""
    fail("renamed.png", how)
    (cats / "image-0007.png").rename(cats / "renamed.png")
    state = sync(start(), force=True)
    told = {"embed": CONTENTS - 1, "reuse": COPIES, "remove": 1, "failed": 1}
    assert (state.equal, counts(state)) == (True, told)
    assert searchable(start()) == IMAGES
    assert "renamed.png" in vectors_of(start())
    assert verify(start(), vectors=True).equal


def test_a_point_does_not_outlive_its_content(cats: Path, start: Start) -> None:
    """An image overwritten by something that is no picture leaves search, forced or not."""
    (cats / "image-0007.png").write_bytes(b"no picture")
    state = sync(start(), force=True)
    assert counts(state) == {"embed": CONTENTS - 1, "reuse": COPIES, "failed": 1, "remove": 1}
    assert (state.equal, state.indexed) == (True, IMAGES - 1)
    assert counts(sync(start())) == {"failed": 1, "unchanged": IMAGES - 1}


def test_contents_that_disappear_are_forgotten(
    cats: Path, start: Start, encoded: Counter[bytes]
) -> None:
    """What was to be encoded anew and is gone by then costs nothing; what is new is embedded."""
    run = start()
    scan(run)
    diff(run, force=True)
    (cats / "image-0007.png").unlink()
    draw(cats / "new.png", 500)
    told = {"embed": CONTENTS, "reuse": COPIES, "remove": 1}
    assert counts(sync(start(run_id="next"))) == told
    assert encoded.total() == CONTENTS
    assert not start().space_home.forced.exists()


def test_copies_in_other_projects_are_seen_to_by_verify(
    cats: Path, root: Path, start: Start
) -> None:
    """Points of another project keep their vectors; where those differ, `verify --vectors` says so."""
    shutil.copytree(cats, root / "dogs")
    sync(start("dogs"))
    points, vectors = next(start("dogs").collection.scroll_vectors())
    for project in ("cats", "dogs"):
        held = pl.concat(start(project).collection.scroll())
        start(project).collection.upsert(
            held.join(points.select("image_id"), on="image_id", maintain_order="right"),
            np.roll(vectors, 1, axis=1),
        )
    start().library.add(points["content_hash"], np.roll(vectors, 1, axis=1))
    sync(start(), force=True)
    assert verify(start(), vectors=True).equal
    assert verify(start("dogs"), vectors=True).stale == IMAGES
    assert counts(sync(start("dogs"))) == {"reuse": IMAGES}
    assert verify(start("dogs"), vectors=True).equal


class TestDagster:
    def test_the_command_line_asks_for_it(
        self, cats: Path, start: Start, encoded: Counter[bytes]
    ) -> None:
        """`sync cats --force` is one Dagster run that encodes everything anew; a plain one nothing."""
        for arguments, embed, reuse in ((["--force"], CONTENTS, COPIES), ([], 0, 0)):
            done = CliRunner().invoke(app, ["sync", "cats", "--json", *arguments])
            [outcome] = json.loads(done.stdout)
            assert (done.exit_code, outcome["status"]) == (0, "success")
            assert (outcome["embed"], outcome["reuse"]) == (embed, reuse)
        assert set(encoded.values()) == {1}

    def test_a_run_tried_again_goes_on(
        self, cats: Path, start: Start, encoded: Counter[bytes]
    ) -> None:
        """Dagster's retry of a forced run whose process died does not force what was done again."""
        from embed_pipeline.definitions import defs
        from embed_pipeline.defs.assets import FORCED_TAG, RETRY_NUMBER_TAG
        from embed_pipeline.runs import dagster_instance, register_projects

        deployment = start().deployment
        job = defs.resolve_job_def("sync_project")
        with dagster_instance(deployment.settings) as instance:
            register_projects(deployment, instance)

            def execute(tags: dict[str, str]) -> dict[str, str]:
                config = {"ops": {"image_diff": {"config": {"force": True}}}}
                done = job.execute_in_process(
                    config, instance=instance, partition_key="cats", tags=tags
                )
                return dict(instance.get_run_by_id(done.run_id).tags)

            tags = execute({})
            assert encoded.total() == CONTENTS
            execute({FORCED_TAG: tags[FORCED_TAG], RETRY_NUMBER_TAG: "1"})
            assert encoded.total() == CONTENTS
            execute({RETRY_NUMBER_TAG: "1"})
            assert encoded.total() == 2 * CONTENTS, "it died before it had forced"
