"""Diverse selection: what each method promises, on vectors and on real projects."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from embed_pipeline.cli import app
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import QueryError
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.sample import make_sample
from embed_pipeline.search import distances, farthest
from embed_pipeline.search.candidates import Candidates, gathered
from embed_pipeline.search.choice import choose, choose_at_random, groups_of
from embed_pipeline.search.diverse import diverse
from embed_pipeline.search.selection import Method, Selected, Selection
from embed_pipeline.search.taking import Taking
from embed_pipeline.search.view import view_of
from embed_pipeline.settings import load_settings
from embed_pipeline.sync import sync
from embed_pipeline.vector_library import Halves, VectorLibrary
from embed_pipeline_tests.conftest import draw, draw_many

Start = Callable[..., ProjectRun]
PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "photos160"
METHODS: tuple[Method, ...] = ("farthest", "kmeans", "dbscan", "random")
MOST_BYTES = 10**9
SPARSE = 0.5  # how far a blob's members are from its middle


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a selection runs: the methods here are called without it."""
    with distances.one_thread_per_block():
        yield


def unit(vectors: np.ndarray) -> Halves:
    """Vectors as the library keeps them."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def candidates(points: Halves, before: Halves | None = None) -> Candidates:
    """Each point is one image, of dataset `all`."""
    images = pl.DataFrame({"point": np.arange(len(points)), "dataset_id": ["all"] * len(points)})
    return Candidates(images, points, points[:0] if before is None else before, [])


def blobs(count: int, size: int, dimension: int = 64, seed: int = 0) -> Halves:
    """`size` vectors around each of `count` middles, blob after blob."""
    rng = np.random.default_rng(seed)
    middles = np.repeat(rng.standard_normal((count, dimension)), size, axis=0)
    return unit(middles + SPARSE * rng.standard_normal(middles.shape))


def heavy_tailed() -> Halves:
    """Few large blobs, many small ones, and every vector several times."""
    rng = np.random.default_rng(1)
    middles = rng.standard_normal((100, 64))
    which = np.minimum(rng.zipf(1.5, 700) - 1, 99)
    vectors = middles[which] + SPARSE * rng.standard_normal((700, 64))
    return unit(vectors[rng.zipf(1.7, 1500) % 700])


def sphere(dimension: int) -> Halves:
    """Vectors of all directions: nothing to find."""
    return unit(np.random.default_rng(2).standard_normal((1000, dimension)))


def chosen(points: Halves, selection: Selection, before: Halves | None = None) -> list[int]:
    """The points that a selection takes, in order."""
    given_ = candidates(points, before)
    taking = given_.taking()
    choose(given_, groups_of(given_, selection, MOST_BYTES), selection, taking)
    return taking.points


def greedy(points: Halves, before: Halves, start: list[int], limit: int) -> list[int]:
    """K-centre as it is defined, in exact arithmetic, one pick at a time."""
    wide = points.astype(np.float64)

    def away(other: np.ndarray) -> np.ndarray:
        return np.square(wide - other).sum(axis=1)

    picks = [] if len(before) else start
    bounds = np.full(len(points), np.inf)
    for earlier in [*before.astype(np.float64), *wide[picks]]:
        bounds = np.minimum(bounds, away(earlier))
    while len(picks) < limit:
        picks.append(int(np.where(np.isin(np.arange(len(points)), picks), -1, bounds).argmax()))
        bounds = np.minimum(bounds, away(wide[picks[-1]]))
    return picks


# Whole numbers over eight: equal vectors and equal distances are frequent.
Grid = st.lists(st.lists(st.integers(-8, 8), min_size=2, max_size=2), min_size=1, max_size=40)


@settings(deadline=None)
@given(Grid, st.integers(0, 3), st.integers(1, 40), st.integers(1, 7), st.integers(1, 7))
def test_farthest_takes_exactly_what_the_greedy_definition_takes(
    grid: list[list[int]], earlier: int, limit: int, pool: int, rows: int
) -> None:
    """Whatever is chosen before, with ties, and with pools and blocks of any size."""
    vectors = (np.array(grid) / 8).astype(np.float16)
    before, points = vectors[:earlier], vectors[earlier:]
    if not len(points):
        return
    limit = min(limit, len(points))
    taking = candidates(points).taking()
    with (
        patch.object(farthest, "POOL", pool),
        patch.object(distances, "ROWS", rows),
        patch.object(distances, "CENTRES", rows),
    ):
        bounds = farthest.farthest(points, before, taking, limit, seed=0)
    assert taking.points == greedy(points, before, taking.points[:1], limit)
    everything = np.concatenate([before, points[taking.points]]).astype(np.float64)
    apart = np.square(points.astype(np.float64)[:, None] - everything[None]).sum(axis=2)
    assert (bounds == apart.min(axis=1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_choice_is_the_same_for_any_block_size_and_differs_by_seed(method: Method) -> None:
    """The same selection again gives the same images; only farthest and dbscan need no seed."""
    points = blobs(15, 20)
    selection = Selection(limit=50, method=method)
    first = chosen(points, selection)
    with (
        patch.object(distances, "ROWS", 37),
        patch.object(distances, "CENTRES", 11),
        patch.object(farthest, "POOL", 5),
    ):
        assert chosen(points, selection) == first
    assert len(set(first)) == 50
    if method in ("kmeans", "random"):
        assert chosen(points, selection.model_copy(update={"seed": 1})) != first


SETS: dict[str, Callable[[], Halves]] = {
    "blobs": lambda: blobs(40, 30),
    "heavy-tailed copies": heavy_tailed,
    "sphere, 16 dimensions": lambda: sphere(16),
    "sphere, 256 dimensions": lambda: sphere(256),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("limit", [5, 100])
def test_farthest_and_kmeans_cover_better_than_chance(name: str, limit: int) -> None:
    """Farthest leaves no image as far away as chance does; kmeans brings the mean image nearer."""
    points = SETS[name]()
    given_ = candidates(points)
    for seed in range(2):
        by_chance = np.sqrt(choose_at_random(given_, limit, seed, given_.taking()))
        away = {}
        for method in ("farthest", "kmeans"):
            selection = Selection(limit=limit, method=method, seed=seed)
            groups = groups_of(given_, selection, MOST_BYTES)
            away[method] = np.sqrt(choose(given_, groups, selection, given_.taking()))
        assert away["farthest"].max() < by_chance.max()
        assert away["kmeans"].mean() < by_chance.mean()


def test_dbscan_finds_the_clusters_by_itself_and_takes_noise_last() -> None:
    """Fault W31: a fixed eps made one cluster of everything, and noise was sampled as one more."""
    strangers = unit(np.random.default_rng(9).standard_normal((15, 64)))
    points = np.concatenate([blobs(6, 30), strangers])
    given_ = candidates(points)
    groups = groups_of(given_, Selection(limit=6, method="dbscan"), MOST_BYTES)
    blob = np.arange(len(points)) // 30
    assert set(groups.labels[180:]) == {-1}
    for number in range(6):
        (label,) = set(groups.labels[blob == number]) - {-1}
        assert set(blob[groups.labels == label]) == {number}
    everything = chosen(points, Selection(limit=len(points), method="dbscan"))
    assert len({*blob[everything[:6]]}) == 6
    noise = [groups.labels[point] == -1 for point in everything]
    assert noise == sorted(noise)
    assert len(everything) == len(points)


def test_clusters_far_more_than_a_sample_holds_are_still_told_apart() -> None:
    """Where DBSCAN of all would take too much memory, the rest joins the clusters of a sample."""
    points = blobs(4, 500)
    groups = groups_of(candidates(points), Selection(limit=4, method="dbscan"), 2_000_000)
    for number in range(4):
        labels = Counter(groups.labels[number * 500 : number * 500 + 500].tolist())
        assert labels.most_common(1)[0][1] > 400
    assert len(set(groups.labels) - {-1}) == 4


@pytest.mark.parametrize("members", ["medoid", "random"])
def test_kmeans_makes_as_many_clusters_as_asked_and_takes_from_them_in_turns(members: str) -> None:
    """Fault W31: the number of clusters was ignored. One chosen before was its cluster's turn."""
    points = blobs(5, 40)
    selection = Selection(limit=10, method="kmeans", clusters=5, members=members)  # type: ignore[arg-type]
    picks = chosen(points, selection)
    assert sorted(pick // 40 for pick in picks[:5]) == [0, 1, 2, 3, 4]
    assert Counter(pick // 40 for pick in picks) == dict.fromkeys(range(5), 2)
    four = selection.model_copy(update={"limit": 4})
    assert 2 not in {pick // 40 for pick in chosen(points, four, before=points[80:81])}


def test_quotas_hold_for_every_method_and_the_rest_makes_up() -> None:
    """At most so many from a dataset, from several together, and from none where the quota is 0."""
    points = blobs(3, 30)
    images = pl.DataFrame(
        {"point": np.arange(90), "dataset_id": [f"d{number % 4}" for number in range(90)]}
    )
    given_ = Candidates(images, points, points[:0], [])
    for method in METHODS:
        taking = Taking(images, [(["d0"], 0), (["d1", "d2"], 5), (["d2"], 2)])
        selection = Selection(limit=20, method=method)
        choose(given_, groups_of(given_, selection, MOST_BYTES), selection, taking)
        taken = Counter(images["dataset_id"][taking.rows].to_list())
        assert taken["d0"] == 0
        assert taken["d1"] + taken["d2"] <= 5
        assert taken["d2"] <= 2
        assert taken.total() == 20


def test_blocks_of_the_library_bring_what_its_look_up_brings(tmp_path: Path) -> None:
    """The newest vector of each content, in memory and in a file alike; unknown contents are left out."""
    library = VectorLibrary(tmp_path, 16)
    vectors = np.random.default_rng(3).standard_normal((60, 16)).astype(np.float32)
    hashes = pl.Series([bytes([number]) * 32 for number in range(60)], dtype=pl.Binary)
    library.add(hashes[:40], vectors[:40])
    library.add(hashes[30:50], vectors[30:50] + 1)
    asked = hashes[::-2].append(hashes[:1])
    found, expected = library.vectors(asked)
    known = dict(zip(found, expected.astype(np.float16), strict=True))
    with patch("embed_pipeline.vector_library.BLOCK_ROWS", 7):
        for most_bytes in (0, 10**6):
            points, numbers = gathered(library, asked, most_bytes, tmp_path)
            assert [asked[int(number)] for number in numbers] == [it for it in asked if it in known]
            assert isinstance(points.base, np.memmap) == (most_bytes == 0)
            for number, point in zip(numbers, points, strict=True):
                assert (known[asked[int(number)]] == point).all()


@pytest.fixture
def project(root: Path, start: Start) -> Callable[..., Selected]:
    """Selections from a synced project: dataset a (8 images), a/b (4 of them copies, 4 more), c (6)."""
    folder = root / "cats"
    draw_many(folder / "a", 8)
    for number in range(4):
        (folder / "a" / "b").mkdir(exist_ok=True)
        shutil.copy(folder / "a" / f"image-{number:04d}.png", folder / "a" / "b")
    draw_many(folder / "c", 6, first_seed=100)
    for number in range(4):
        draw(folder / "a" / "b" / f"own-{number}.png", 200 + number)
    (folder / "c" / "broken.png").write_bytes(b"no picture")
    sync(start())

    def select(found: list[str] | None = None, **asked: object) -> Selected:
        view = view_of(Deployment(load_settings()), "cats")
        return diverse(view, Selection.model_validate(asked), found)

    return select


def ids(selected: Selected) -> list[str]:
    """The images chosen, in order."""
    return [image.image_id for image in selected.images]


def test_copies_are_chosen_only_when_every_content_is(project: Callable[..., Selected]) -> None:
    """22 images of 18 contents, one unreadable: no candidate. Who asks for more gets what there is."""
    copies = [f"a/image-{number:04d}.png" for number in range(4)]  # a/b comes first
    for method in METHODS:
        everything = project(limit=100, method=method)
        assert everything.candidates == 22
        assert len(set(ids(everything))) == 22
        assert sorted(ids(everything)[18:]) == copies
        assert [image.distance for image in everything.images[18:]] == [0.0] * 4
        assert everything.images[0].distance is None
        assert all(image.distance for image in everything.images[1:18])
        assert everything.coverage.largest_distance == 0
        assert Path(everything.images[0].path).is_file()


def test_a_scope_is_a_dataset_with_nested_ones_a_list_or_what_a_search_found(
    project: Callable[..., Selected],
) -> None:
    """Names that are nowhere are errors that name them; a scope without images gives an empty answer."""
    assert {image.dataset for image in project(limit=100, datasets=["a"]).images} == {"a", "a/b"}
    listed = ["c/image-0001.png", "a/image-0002.png"]
    assert sorted(ids(project(limit=5, image_ids=listed))) == sorted(listed)
    assert ids(project(limit=5, found=listed, datasets=["c"])) == listed[:1]
    nothing = project(limit=5, found=[])
    assert (nothing.images, nothing.candidates) == ([], 0)
    for asked in ({"datasets": ["d"]}, {"chosen": ["e.png"]}, {"quotas": {"f": 1}}):
        with pytest.raises(QueryError, match=r"^(d|e\.png|f): no such"):
            project(limit=1, **asked)


def test_images_chosen_before_are_not_chosen_again_nor_are_their_copies(
    project: Callable[..., Selected],
) -> None:
    """And with quotas on nested datasets, a copy elsewhere stands for a content."""
    before = ["a/image-0000.png", "c/image-0000.png"]
    for method in METHODS:
        more = project(limit=16, method=method, chosen=before)
        assert not {*before, "a/b/image-0000.png"} & set(ids(more))
        assert len(more.images) == 16
        assert more.coverage.largest_distance == 0
        assert more.images[0].distance is not None
        few = project(limit=100, method=method, quotas={"a": 3, "a/b": 1})
        counted = Counter(image.dataset for image in few.images)
        assert counted["a"] + counted["a/b"] == 3
        assert counted["a/b"] <= 1
        assert counted["c"] == 6


def test_the_command_line_says_the_same(project: Callable[..., Selected]) -> None:
    """Every option reaches the selection; a table comes with its coverage, and a poor one with advice."""

    def told(*options: str) -> str:
        done = CliRunner().invoke(app, ["diverse", "cats", *options])
        assert done.exit_code == 0, done.output
        return done.output

    options = "--method dbscan --eps 0.9 --min-samples 2 --members random --dataset a --seed 3"
    more = ["--chosen", "a/image-0000.png", "--quota", "a/b=2", "--among", "a/b/own-1.png"]
    more += ["--among", "a/image-0005.png"]
    asked = {
        "limit": 9,
        "method": "dbscan",
        "eps": 0.9,
        "min_samples": 2,
        "members": "random",
        "datasets": ["a"],
        "seed": 3,
        "chosen": ["a/image-0000.png"],
        "quotas": {"a/b": 2},
        "image_ids": ["a/b/own-1.png", "a/image-0005.png"],
    }
    document = json.loads(told("--limit", "9", *options.split(), *more, "--json"))
    assert document == asdict(project(**asked))
    assert len(document["images"]) == 2
    table = told("--limit", "3")
    assert "a random choice: an image is" in table
    assert "warning" not in table
    # With everything in one cluster, it takes what is most central.
    assert "give --eps" in told("--limit", "3", "--method", "dbscan", "--eps", "2")
    refused = CliRunner().invoke(app, ["diverse", "cats", "--limit", "3", "--quota", "a"])
    assert str(refused.exception) == "--quota a: not of the form DATASET=N"


@pytest.mark.parametrize("name", ["scenes", "photographs"])
def test_on_real_projects_farthest_and_kmeans_cover_better_than_chance(
    root: Path, start: Start, name: str
) -> None:
    """Drawn scenes and photographs through the demo model, as the answer's own report says it."""
    if name == "scenes":
        make_sample(root, images=100)
    elif PHOTOGRAPHS.is_dir():
        (root / name).mkdir()
        for photograph in sorted(PHOTOGRAPHS.glob("*.JPEG"))[:100]:
            shutil.copy(photograph, root / name)
    else:
        pytest.skip("no ../shared/data/photos160 beside this checkout")
    sync(start(name))
    view = view_of(Deployment(load_settings()), name)
    for limit in (5, 20):
        farthest_ = diverse(view, Selection(limit=limit))
        assert farthest_.coverage.largest_distance < farthest_.random.largest_distance
        kmeans = diverse(view, Selection(limit=limit, method="kmeans"))
        assert kmeans.coverage.mean_distance < kmeans.random.mean_distance
        assert kmeans.coverage.clusters_touched == 1 > kmeans.random.clusters_touched
        assert [image.cluster is None for image in kmeans.images] == [False] * limit
