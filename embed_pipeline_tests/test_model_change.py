"""Another model: the project is brought over while search goes on, and can be taken back."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embed_pipeline import model_change
from embed_pipeline.audit import verify
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import ModelNotFound, NothingToRollBack, QualityGateFailed
from embed_pipeline.models.hub import model_directory
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.prune import prune
from embed_pipeline.rollback import roll_back_project
from embed_pipeline.search.query import Query
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.serving import serving_of
from embed_pipeline.settings import load_settings
from embed_pipeline.sync import diff, embed, scan, sync
from embed_pipeline_tests.conftest import draw, draw_many

Start = Callable[..., ProjectRun]


@pytest.fixture(scope="session")
def another_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with one weight changed: another space of the same dimension."""
    from safetensors.numpy import load_file, save_file

    directory = tmp_path_factory.mktemp("models") / "another"
    shutil.copytree(model_directory("demo"), directory)
    weights = load_file(directory / "model.safetensors")
    weights["logit_scale"] = np.asarray(weights["logit_scale"] + 1)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture
def change_model(
    another_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str | None], None]:
    """Set EMBED_MODEL to `demo`, or else to the other model."""
    return lambda name=None: monkeypatch.setenv("EMBED_MODEL", name or str(another_model))


@pytest.fixture
def cats(root: Path, start: Start) -> Path:
    """A project of forty images, synced with the demo model."""
    draw_many(root / "cats", 40)
    sync(start())
    return root / "cats"


def spaces(run: ProjectRun) -> list[str]:
    """Where the project has points."""
    return run.deployment.store.spaces(run.project_id)


def found(run: ProjectRun, limit: int = 100) -> int:
    """How many images a search finds."""
    return len(
        Searcher(run.deployment).search(run.project, Query(texts=["a cat"], limit=limit)).hits
    )


def test_search_stays_on_the_old_model_until_the_new_one_is_proved(
    cats: Path, start: Start, change_model: Callable[..., None]
) -> None:
    """It flips after the whole sync, in one write; the old space and its vectors stay."""
    before = start().card
    change_model()
    run = start()
    scan(run)
    diff(run)
    embed(run)
    assert start().card == before, "not proved yet"
    assert found(start()) == 40
    state = sync(start())
    assert (state.reuse, state.unchanged, state.space) == (0, 40, start().deployment.card.space)
    assert start().card == start().deployment.card != before
    assert spaces(start()) == sorted([before.space, start().card.space])
    assert found(start()) == 40
    assert verify(start(), vectors=True).equal


def test_changes_reach_both_spaces_until_the_flip(
    cats: Path, start: Start, change_model: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a long run fills the new space, the one that is searched follows the source."""
    monkeypatch.setattr(model_change, "REFRESH_SECONDS", 0.05)
    monkeypatch.setenv("EMBED_BATCH_SIZE", "4")
    monkeypatch.setenv("EMBED_DECODE_WORKERS", "1")
    change_model()
    run = start()
    scan(run)
    diff(run)
    draw(cats / "new.png", 900)
    (cats / "image-0000.png").unlink()
    embed(run)
    serving, target = run.spaces()
    assert (serving.collection.count(), target.collection.count()) == (40, 40)
    held = pl.concat(serving.collection.scroll())["image_id"].to_list()
    assert "new.png" in held
    assert "image-0000.png" not in held
    assert sync(start()).equal


def test_a_force_reaches_both_spaces(
    cats: Path, start: Start, change_model: Callable[..., None]
) -> None:
    """Where a project is brought over, wrong vectors of either model are made anew before the flip."""
    serving = start()
    points, vectors = next(serving.collection.scroll_vectors())
    right = dict(zip(points["point_id"], vectors, strict=True))
    change_model()
    target = start().spaces()[-1]
    for wrong in (serving, target):
        wrong.library.add(points["content_hash"], -vectors)
        wrong.collection.upsert(points, -vectors)
    state = sync(start(), force=True)
    assert (state.embed, state.unchanged, state.space) == (40, 0, target.card.space)
    assert start().card == target.card
    for mended in (serving, target):
        held, made = next(mended.collection.scroll_vectors())
        assert all(v @ right[i] > 0.999 for i, v in zip(held["point_id"], made, strict=True))
        assert verify(mended, vectors=True).equal


def test_a_broken_space_is_not_searched(
    cats: Path, start: Start, change_model: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points that a search does not find hold back the flip, and the next sync tries again."""
    change_model()
    with monkeypatch.context() as patched:
        patched.setattr(model_change, "_scores", lambda _c, _v, limit: np.zeros(limit, np.float32))
        with pytest.raises(
            QualityGateFailed, match=r"finds only 0% .* search stays on the old one"
        ):
            sync(start())
    assert start().card.name == "demo"
    assert sync(start()).unchanged == 40
    assert start().card.name != "demo"


def test_fewer_images_than_before_hold_back_the_flip(
    cats: Path, start: Start, change_model: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot embed what the old one could does not take over."""
    from embed_pipeline import embedding

    encode = embedding._encode

    def fails_once(batch: list[object], work: object, done: object) -> object:
        embedded = encode(batch, work, done)  # type: ignore[arg-type]
        return embedding.Embedded(embedded.contents[1:], embedded.vectors[1:])

    change_model()
    with monkeypatch.context() as patched:
        patched.setattr(embedding, "_encode", fails_once)
        state = None
        with pytest.raises(Exception, match="cats: the collection does not equal the source"):
            state = sync(start())
        assert state is None
    assert start().card.name == "demo"
    assert found(start()) == 40


def test_rolling_back_is_one_moment_and_lasts(
    cats: Path, start: Start, change_model: Callable[..., None]
) -> None:
    """After a rollback syncs keep to the old model, and follow the source there; once more undoes it."""
    change_model()
    sync(start())
    new = start().card
    draw(cats / "new.png", 900)
    (cats / "image-0000.png").unlink()
    sync(start())
    rolled_back = roll_back_project(start().deployment, "cats")
    assert rolled_back.model == "demo"
    assert found(start()) == 39, (
        "what was removed is gone there too; what was added is not there yet"
    )
    assert sync(start()).embed == 1
    assert (start().card.name, found(start())) == ("demo", 40)
    assert roll_back_project(start().deployment, "cats").space == new.space
    sync(start())
    assert (start().card, found(start())) == (new, 40)


def test_there_is_nothing_to_roll_back_to_at_first(cats: Path, start: Start) -> None:
    """A project with one model only says so."""
    with pytest.raises(NothingToRollBack, match="set EMBED_MODEL instead"):
        roll_back_project(start().deployment, "cats")


def test_a_model_that_is_gone_stops_nothing(
    cats: Path, start: Start, change_model: Callable[..., None], another_model: Path, tmp_path: Path
) -> None:
    """Where the model that a project is searched with was deleted, the next sync brings it over."""
    mine = shutil.copytree(another_model, tmp_path / "mine")
    change_model(str(mine))
    sync(start())
    shutil.rmtree(mine)
    change_model("demo")
    assert sync(start()).unchanged == 40
    assert (start().card.name, found(start())) == ("demo", 40)


def test_search_goes_on_where_the_new_model_is_not_to_be_had(
    cats: Path, start: Start, change_model: Callable[..., None]
) -> None:
    """EMBED_MODEL names something that is nowhere: a sync says so, search and audit do not mind."""
    change_model("/nowhere")
    with pytest.raises(ModelNotFound, match="/nowhere"):
        sync(start())
    assert found(start()) == 40
    assert verify(start()).equal


class TestPrune:
    def test_only_what_nothing_serves_goes(
        self, cats: Path, root: Path, start: Start, change_model: Callable[..., None]
    ) -> None:
        """The space before the last goes with its vectors; then there is nothing to roll back to."""
        old = start().card
        draw_many(root / "dogs", 5, first_seed=500)
        change_model()
        sync(start())
        assert prune(start().deployment) != []
        assert spaces(start()) == [start().card.space]
        assert not start().deployment.home.vectors(old.space).exists()
        assert prune(start().deployment) == []
        assert found(start()) == 40
        with pytest.raises(NothingToRollBack):
            roll_back_project(start().deployment, "cats")
        assert verify(start(), vectors=True).equal

    def test_a_project_that_was_not_brought_over_keeps_its_space(
        self, cats: Path, start: Start, change_model: Callable[..., None]
    ) -> None:
        """What is searched now is never dropped, whatever EMBED_MODEL says."""
        change_model()
        assert prune(start().deployment, now=True) == []
        assert found(start()) == 40

    def test_vectors_of_lost_content_are_kept_for_a_while(self, cats: Path, start: Start) -> None:
        """A deleted image that comes back costs no model time; after `--now` it does."""
        image = cats / "image-0000.png"
        content = image.read_bytes()
        image.unlink()
        sync(start())
        assert prune(start().deployment) == []
        image.write_bytes(content)
        assert sync(start()).reuse == 1
        image.unlink()
        sync(start())
        assert [(gone.what, gone.count) for gone in prune(start().deployment, now=True)] == [
            ("vectors", 1)
        ]
        image.write_bytes(content)
        assert sync(start()).embed == 1
        assert verify(start(), vectors=True).equal

    def test_projects_that_are_gone_go_when_asked(
        self, cats: Path, root: Path, start: Start
    ) -> None:
        """However many they are: that is the way to confirm what the sensor does not dare to retire."""
        run = start()
        cats.rename(root.parent / "elsewhere")
        assert prune(start().deployment) == []
        assert run.collection.exists()
        assert [gone.what for gone in prune(start().deployment, absent=True)] == ["project"]
        assert not run.collection.exists()


def test_search_never_sees_less_while_the_model_changes(
    root: Path, start: Start, change_model: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 images, searched all the time while images change: no search fails or finds fewer."""
    monkeypatch.setattr(model_change, "REFRESH_SECONDS", 1.0)
    draw_many(root / "cats", 1_000)
    sync(start())
    change_model()
    monkeypatch.setenv("EMBED_BATCH_SIZE", "16")
    seen: list[tuple[str, int]] = []
    errors: list[Exception] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            try:
                reader = Deployment(load_settings())
                serving = serving_of(reader.project_home("cats"))
                assert serving
                run = ProjectRun(reader, "cats", "search")
                seen.append((serving.now.space, found(run, 2_000)))
                reader.store.close()
            except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
                errors.append(error)

    def change() -> None:
        number = 0
        while not over.wait(0.2):
            draw(root / "cats" / f"new-{number:03}.png", 5_000 + number)
            draw(root / "cats" / f"image-{number:04}.png", 7_000 + number)
            number += 1

    threads = [threading.Thread(target=work) for work in (look, change)]
    for thread in threads:
        thread.start()
    try:
        while (serving := serving_of(start().home)) and serving.now.model == "demo":
            sync(start())
    finally:
        time.sleep(1)
        over.set()
        for thread in threads:
            thread.join()
    assert errors == []
    order = [space for space, _ in seen]
    assert order == sorted(order, key=order.index), "it flipped once"
    assert len(set(order)) == 2
    assert min(count for _, count in seen) >= 1_000
    sync(start())
    assert verify(start(), vectors=True).equal
    roll_back_project(start().deployment, "cats")
    assert found(start(), 2_000) >= 1_000
    sync(start())
    assert verify(start(), vectors=True).equal
