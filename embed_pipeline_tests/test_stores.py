"""What every vector store promises: the same suite on the embedded store and on the server store.

The server store runs on qdrant-client in memory, and over gRPC and REST on a double of a server; on a
real server when QDRANT_URL is set.
"""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import qdrant_edge as edge
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from qdrant_client import QdrantClient, models

from embed_pipeline.errors import CollectionMissing, InvalidPoints, StoreError
from embed_pipeline.points import POINTS
from embed_pipeline.settings import load_settings
from embed_pipeline.stores import open_store, qdrant_edge, qdrant_server
from embed_pipeline.stores.protocol import Collection, Filter, Vectors, VectorStore
from embed_pipeline.stores.qdrant_connection import Connection, Route
from embed_pipeline.stores.qdrant_edge import QdrantEdgeStore
from embed_pipeline.stores.qdrant_server import QdrantServerStore, connect
from embed_pipeline_tests.qdrant_double import QdrantDouble
from embed_pipeline_tests.store_samples import DIMENSION, points, vectors

pytestmark = pytest.mark.filterwarnings(
    "ignore:Payload indexes have no effect", "ignore:Local mode performs exact"
)

# Float16 in the store: 11 bits of each number survive.
ROUNDING = 1e-3


QDRANT_URL = os.environ.get("QDRANT_URL")
QDRANT_API_KEY = os.environ.get("QDRANT_API_KEY")
QDRANT_GRPC_PORT = int(os.environ.get("QDRANT_GRPC_PORT", "6334"))
STORES = ["edge", "memory", "grpc", "rest", *(["server"] if QDRANT_URL else [])]


class InMemory(Route):
    """No server at all."""

    writes_at_once = 1

    def __init__(self) -> None:
        super().__init__("http://memory", None, 6334)
        self._engine = QdrantClient(":memory:")

    def open(self, timeout_seconds: int) -> QdrantClient:
        """Always the same."""
        return self._engine


@pytest.fixture(scope="module", params=STORES)
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VectorStore]:
    """Each of the stores."""
    with ExitStack() as stack:
        store: VectorStore
        if request.param == "edge":
            store = QdrantEdgeStore(tmp_path_factory.mktemp("edge"), wait_seconds=20)
        elif request.param == "memory":
            store = QdrantServerStore(Connection(InMemory()))
        elif request.param == "server":
            store = connect(str(QDRANT_URL), QDRANT_API_KEY, QDRANT_GRPC_PORT)
        else:
            double = stack.enter_context(QdrantDouble(grpc=request.param == "grpc"))
            store = connect(double.url, None, double.grpc_port)
        stack.callback(store.close)
        yield store


@pytest.fixture
def space(store: VectorStore) -> Iterator[str]:
    """A space of its own for each test."""
    name = f"test-{uuid.uuid4().hex}"
    yield name
    if isinstance(store, QdrantServerStore):
        for made in [made for made in store._names("clean up") if name in made]:
            store._connection.write("clean up", partial(_delete_collection, made))


def _delete_collection(name: str, client: QdrantClient) -> None:
    client.delete_collection(name)


@pytest.fixture
def cats(store: VectorStore, space: str) -> Collection:
    """One project's collection, not made yet."""
    return store.collection(space, DIMENSION, "source/cats")


@pytest.fixture
def dogs(store: VectorStore, space: str) -> Collection:
    """Another project's, in the same space."""
    return store.collection(space, DIMENSION, "source/dogs")


def rows(collection: Collection) -> pl.DataFrame:
    """Everything that a collection holds, by point id."""
    return pl.concat([POINTS.to_frame(), *collection.scroll()]).sort("point_id")


def found(collection: Collection, vector: Vectors, where: Filter = Filter()) -> list[str]:
    """The image ids nearest to a vector, best first."""
    return collection.nearest(vector, 10, where)["image_id"].to_list()


@pytest.mark.skipif(QDRANT_URL is None, reason="QDRANT_URL is not set: no real server was tested")
def test_server_answers() -> None:
    """The suite runs on a real server too, where there is one."""
    assert connect(str(QDRANT_URL), QDRANT_API_KEY, QDRANT_GRPC_PORT).check()


def test_settings_choose_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QDRANT_URL unset: the embedded store under EMBED_HOME; set: that server. Neither is touched."""
    monkeypatch.setenv("EMBED_HOME", str(tmp_path))
    monkeypatch.delenv("QDRANT_URL", raising=False)
    assert f"embedded Qdrant in {tmp_path}" in open_store(load_settings()).check()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("QDRANT_URL", "http://localhost:6333")
    assert isinstance(open_store(load_settings()), QdrantServerStore)


def test_points_of_some_images(cats: Collection, dogs: Collection) -> None:
    """Images by their ids come with their payload and vector; those without a point are left out."""
    cats.upsert(points("source/cats", ["a", "b", "c"]), vectors(3))
    dogs.upsert(points("source/dogs", ["a"]), vectors(1, seed=9))
    got, of_them = cats.of_images(["c", "gone", "a"])
    order = got["image_id"].arg_sort()
    assert got[order].equals(
        rows(cats).filter(pl.col("image_id").is_in(["a", "c"])).sort("image_id")
    )
    np.testing.assert_allclose(of_them[order.to_numpy()], vectors(3)[[0, 2]], atol=ROUNDING)
    assert cats.of_images([])[0].is_empty()
    assert cats.of_images(["gone"])[0].is_empty()


def test_the_nearest_come_with_their_vectors(cats: Collection) -> None:
    """Where vectors are asked for, each hit's own stands beside its score."""
    cats.upsert(points("source/cats", ["a", "b", "c"]), vectors(3))
    hits = cats.nearest(vectors(3)[1], 2, with_vectors=True)
    assert hits["image_id"][0] == "b"
    expected = hits["vector"].to_numpy() @ vectors(3)[1]
    np.testing.assert_allclose(hits["score"].to_numpy(), expected, atol=ROUNDING)


def test_upsert_and_scroll_round_trip(cats: Collection) -> None:
    """What was upserted comes back: every column, whatever the strings hold, and the vectors."""
    names = ["a.jpg", "new\nline\t.jpg", "猫 🐈 e\u0301.jpg", "", "quote\"'\\%2F.jpg", "\x00\x7f"]
    cats.upsert(points("source/cats", names), vectors(len(names)))
    assert_frame_equal(points("source/cats", names).sort("point_id"), rows(cats))
    ((page, stored),) = cats.scroll_vectors()
    expected = points("source/cats", names).with_columns(v=vectors(len(names)))
    expected = page.join(expected, on="point_id", maintain_order="left")["v"].to_numpy()
    assert stored.dtype == np.float32
    np.testing.assert_allclose(stored, expected, atol=ROUNDING)


def test_nulls_round_trip(cats: Collection) -> None:
    """A payload field that is null stays null, and damages nothing."""
    sparse = points("source/cats", ["a"]).with_columns(
        pl.lit(None, pl.String).alias("dataset_name"),
        pl.lit(None, pl.Binary).alias("content_hash"),
        pl.lit(None, pl.Datetime("us", "UTC")).alias("updated_at"),
    )
    cats.upsert(sparse, vectors(1))
    assert_frame_equal(sparse, rows(cats))


def test_upsert_is_idempotent_and_replaces_whole_points(cats: Collection) -> None:
    """Upserting again changes nothing; other payload and vectors take the place of the old ones."""
    cats.upsert(points("source/cats", ["a", "b"]), vectors(2))
    cats.upsert(points("source/cats", ["a", "b"]), vectors(2))
    assert cats.count() == 2
    cats.upsert(points("source/cats", ["a"], dataset="d2"), -vectors(1))
    expected = pl.concat([points("source/cats", ["a"], "d2"), points("source/cats", ["b"])])
    assert_frame_equal(expected.sort("point_id"), rows(cats))
    assert cats.nearest(-vectors(1)[0], 1)["score"][0] == pytest.approx(1, abs=ROUNDING)


def test_upsert_of_nothing_makes_nothing(cats: Collection) -> None:
    """No rows: no collection."""
    cats.upsert(points("source/cats", []), vectors(0))
    assert not cats.exists()


def test_vectors_are_compared_by_direction_alone(cats: Collection) -> None:
    """The length of a vector, of a point or of a query, makes no difference, however short or long."""
    cats.upsert(points("source/cats", ["long", "short"]), vectors(2) * [[1e18], [1e-18]])
    for scale in (1e-18, 1, 1e18):
        hits = cats.nearest(vectors(2)[1] * np.float32(scale), 1)
        assert hits["image_id"].to_list() == ["short"]
        assert hits["score"][0] == pytest.approx(1, abs=ROUNDING)


def test_relabel_changes_the_payload_only(cats: Collection) -> None:
    """After a relabel the payload is the new one and the vectors are what they were, to the bit."""
    names = [f"{i}" for i in range(300)]
    cats.upsert(points("source/cats", names), vectors(300))
    before = np.concatenate([v for _, v in cats.scroll_vectors()])
    cats.relabel(points("source/cats", names[:290], dataset="d2"))
    expected = [points("source/cats", names[:290], "d2"), points("source/cats", names[290:])]
    assert_frame_equal(pl.concat(expected).sort("point_id"), rows(cats))
    np.testing.assert_array_equal(np.concatenate([v for _, v in cats.scroll_vectors()]), before)


def test_relabel_makes_no_points(cats: Collection) -> None:
    """Points that are not there stay away, and those beside them are relabelled."""
    cats.relabel(points("source/cats", ["a"]))
    assert not cats.exists()
    cats.upsert(points("source/cats", ["a", "b"]), vectors(2))
    cats.relabel(points("source/cats", ["missing", "b"], "d2"))
    expected = pl.concat([points("source/cats", ["a"]), points("source/cats", ["b"], "d2")])
    assert_frame_equal(expected.sort("point_id"), rows(cats))


def test_delete_ignores_what_is_not_there(cats: Collection) -> None:
    """Deleted points are gone, the others stay; deleting twice, or from nothing, is no error."""
    cats.delete(points("source/cats", ["a"])["point_id"])
    cats.upsert(points("source/cats", [f"{i}" for i in range(600)]), vectors(600))
    for _ in range(2):
        cats.delete(points("source/cats", [f"{i}" for i in range(1, 800)])["point_id"])
    assert_frame_equal(points("source/cats", ["0"]), rows(cats))


def test_a_collection_lasts_until_its_last_point(cats: Collection) -> None:
    """Without its last point a collection is missing, as before its first, and can be made again."""
    cats.upsert(points("source/cats", ["a"]), vectors(1))
    assert cats.exists()
    cats.delete(points("source/cats", ["a"])["point_id"])
    assert not cats.exists()
    with pytest.raises(CollectionMissing):
        cats.count()
    cats.upsert(points("source/cats", ["b"]), vectors(1))
    assert cats.count() == 1


@pytest.mark.parametrize("size", [1, 7, 24, 25, 26])
def test_scroll_gives_every_point_once(
    cats: Collection, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Whatever the page size, each point comes once, with its own vector, in the order of the ids."""
    for module in (qdrant_edge, qdrant_server):
        monkeypatch.setattr(module, "_PAGE_POINTS", size)
        monkeypatch.setattr(module, "_PAGE_POINTS_WITH_VECTORS", size)
    cats.upsert(points("source/cats", [f"{i}" for i in range(25)]), vectors(25))
    pages = list(cats.scroll())
    assert max(page.height for page in pages) == min(size, 25)
    assert min(page.height for page in pages) > 0
    expected = points("source/cats", [f"{i}" for i in range(25)]).with_columns(v=vectors(25))
    assert_frame_equal(expected.drop("v").sort("point_id"), pl.concat(pages))
    with_vectors = [page.with_columns(v=v) for page, v in cats.scroll_vectors()]
    assert_frame_equal(expected.sort("point_id"), pl.concat(with_vectors), abs_tol=ROUNDING)


def test_scroll_while_others_write(cats: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the pages of a scroll points come and go; those that stay are given exactly once."""
    monkeypatch.setattr(qdrant_edge, "_PAGE_POINTS", 10)
    monkeypatch.setattr(qdrant_server, "_PAGE_POINTS", 10)
    stay = [f"stay {i}" for i in range(50)]
    cats.upsert(points("source/cats", stay), vectors(50))
    cats.upsert(points("source/cats", [f"go {i}" for i in range(50)]), vectors(50))
    pages = []
    for i, page in enumerate(cats.scroll()):
        pages.append(page)
        cats.upsert(points("source/cats", [f"come {i}"]), vectors(1))
        cats.delete(points("source/cats", [f"go {j}" for j in range(i * 5, i * 5 + 5)])["point_id"])
    seen = pl.concat(pages)["image_id"].to_list()
    assert sorted(stay) == sorted(i for i in seen if i.startswith("stay"))
    assert len(seen) == len(set(seen))


def test_nearest_is_sorted_and_scored(cats: Collection) -> None:
    """Best first, with the cosine as score, as many as there are at most."""
    cats.upsert(points("source/cats", [f"{i}" for i in range(50)]), vectors(50))
    cosines = vectors(50) @ vectors(1, seed=9)[0]
    hits = cats.nearest(vectors(1, seed=9)[0], 10)
    assert {**POINTS, "score": pl.Float64} == hits.schema
    assert [f"{i}" for i in np.argsort(-cosines)[:10]] == hits["image_id"].to_list()
    np.testing.assert_allclose(hits["score"], np.sort(cosines)[::-1][:10], atol=ROUNDING)
    expected = points("source/cats", hits["image_id"].to_list())
    assert_frame_equal(expected, hits.drop("score"))
    assert [cats.nearest(vectors(1)[0], limit).height for limit in (99, 0)] == [50, 0]


def test_nearest_filters(cats: Collection) -> None:
    """Datasets, images and excluded images restrict what is found, alone and together."""
    cats.upsert(points("source/cats", ["a", "b"], "d1"), vectors(2))
    cats.upsert(points("source/cats", ["c", "d"], "d2"), vectors(2, seed=1))
    cats.upsert(points("source/cats", ["e"], "d3"), vectors(1, seed=2))
    query = vectors(1, seed=3)[0]
    assert {"a", "b", "e"} == set(found(cats, query, Filter(datasets=("d1", "d3"))))
    assert {"b", "c"} == set(found(cats, query, Filter(image_ids=("b", "c", "no such image"))))
    for nowhere in (["no such image"], [f"no such image {i}" for i in range(300)]):
        without = Filter(exclude_image_ids=("b", *nowhere, "c"))
        assert {"a", "d", "e"} == set(found(cats, query, without))
        assert cats.nearest(query, 3, without).height == 3
    narrow = Filter(datasets=("d1", "d2"), image_ids=("a", "b", "e"), exclude_image_ids=("a",))
    assert cats.nearest(query, 10, narrow)["image_id"].to_list() == ["b"]
    assert [] == found(cats, query, Filter(datasets=())) == found(cats, query, Filter(image_ids=()))
    assert {"a", "b", "c", "d", "e"} == set(found(cats, query))


@pytest.mark.parametrize("limit", [1, 7, 39, 40, 45])
def test_ties_are_in_the_order_of_ids(cats: Collection, limit: int) -> None:
    """Images with the same vector come in the order of their point ids, also across the limit."""
    same = points("source/cats", [f"same {i}" for i in range(40)])
    cats.upsert(same.sample(fraction=1, shuffle=True, seed=1), np.repeat(vectors(1), 40, axis=0))
    cats.upsert(
        points("source/cats", ["best", "worst"]), np.stack([vectors(2, 5)[1], -vectors(1)[0]])
    )
    query = vectors(1)[0] + vectors(2, 5)[1] * 0.01
    ranked = ["best", *same.sort("point_id")["image_id"], "worst"]
    if vectors(2, 5)[1] @ query < vectors(1)[0] @ query:
        ranked = [*ranked[1:-1], "best", "worst"]
    assert cats.nearest(query, limit)["image_id"].to_list() == ranked[:limit]


def test_projects_never_meet(cats: Collection, dogs: Collection) -> None:
    """Two projects of one space do not see, count, change or delete each other's points."""
    cats.upsert(points("source/cats", ["a", "b"]), vectors(2))
    with pytest.raises(CollectionMissing):
        dogs.count()
    dogs.upsert(points("source/dogs", ["a"]), vectors(1))
    dogs.relabel(points("source/cats", ["a"], "changed"))
    dogs.delete(points("source/cats", ["b"])["point_id"])
    assert_frame_equal(points("source/cats", ["a", "b"]).sort("point_id"), rows(cats))
    assert (cats.count(), dogs.count()) == (2, 1)
    assert found(dogs, vectors(1)[0]) == ["a"]
    dogs.drop()
    assert (cats.exists(), dogs.exists()) == (True, False)
    assert cats.count() == 2


def test_two_deployments_on_one_store_never_meet(store: VectorStore, space: str) -> None:
    """Sources `a` and `b` both have a project `cats` of the same images: neither reaches the other's."""
    ids = ("a/cats", "b/cats")
    here, there = (store.collection(space, DIMENSION, project_id) for project_id in ids)
    names = [f"{i}" for i in range(40)]
    here.upsert(points("a/cats", names), vectors(40))
    assert (there.exists(), store.spaces("b/cats")) == (False, [])
    there.upsert(points("b/cats", names), vectors(40))
    before = rows(there)
    stored = np.concatenate([v for _, v in there.scroll_vectors()])

    here.upsert(points("a/cats", names, "d2"), -vectors(40))
    here.relabel(points("a/cats", names, "d3"))
    here.relabel(points("b/cats", names, "d3"))
    here.delete(points("b/cats", names)["point_id"])
    here.delete(points("a/cats", names[:39])["point_id"])
    assert (here.count(), there.count()) == (1, 40)
    assert set(rows(here)["project_id"]) == {"a/cats"}
    assert_frame_equal(before, rows(there))
    assert there.nearest(vectors(1)[0], 1)["project_id"].to_list() == ["b/cats"]
    wanted = Filter(datasets=("d1", "d3"), image_ids=tuple(names))
    assert set(here.nearest(vectors(1)[0], 40, wanted)["project_id"]) == {"a/cats"}

    here.drop()
    assert (here.exists(), there.exists()) == (False, True)
    assert_frame_equal(before, rows(there))
    after = np.concatenate([v for _, v in there.scroll_vectors()])
    np.testing.assert_allclose(after, stored, atol=1e-6)  # in memory, reading rounds


def test_spaces_lists_where_a_project_has_points(store: VectorStore, space: str) -> None:
    """The spaces of a project, sorted: from its first point in each to its last; others' do not count."""
    cats, dogs = (f"source/{animal} {space}" for animal in ("cats", "dogs"))
    assert store.spaces(cats) == []
    second, first = (store.collection(space + end, DIMENSION, cats) for end in ("-b", "-a"))
    for collection in (second, first):
        collection.upsert(points(cats, ["a"]), vectors(1))
    store.collection(f"{space}-a", DIMENSION, dogs).upsert(points(dogs, ["a"]), vectors(1))
    assert (store.spaces(cats), store.spaces(dogs)) == (
        [f"{space}-a", f"{space}-b"],
        [f"{space}-a"],
    )
    first.delete(points(cats, ["a"])["point_id"])
    assert store.spaces(cats) == [f"{space}-b"]
    second.drop()
    assert (store.spaces(cats), store.spaces(dogs)) == ([], [f"{space}-a"])


def test_spaces_never_meet(store: VectorStore, space: str, cats: Collection) -> None:
    """The same project in another space, here of another dimension, is another collection."""
    wide = store.collection(f"{space}-wide", 2 * DIMENSION, "source/cats")
    cats.upsert(points("source/cats", ["a", "b"]), vectors(2))
    assert not wide.exists()
    wide.upsert(points("source/cats", ["a"]), np.hstack([vectors(1), vectors(1)]))
    cats.drop()
    assert (cats.exists(), wide.count()) == (False, 1)
    wide.drop()


def test_wrong_dimension_of_a_collection_is_refused(
    store: VectorStore, space: str, cats: Collection
) -> None:
    """A collection that was made for another dimension is refused with the dimension named."""
    cats.upsert(points("source/cats", ["a"]), vectors(1))
    wrong = store.collection(space, 2 * DIMENSION, "source/cats")
    with pytest.raises(StoreError, match=f"{2 * DIMENSION}"):
        wrong.upsert(points("source/cats", ["b"]), np.hstack([vectors(1), vectors(1)]))
    assert cats.count() == 1


def test_reads_create_nothing(store: VectorStore, space: str, cats: Collection) -> None:
    """Reading, relabelling and deleting where there is no collection makes none."""
    reads = [
        cats.count,
        lambda: list(cats.scroll()),
        lambda: list(cats.scroll_vectors()),
        lambda: cats.nearest(vectors(1)[0], 1),
    ]
    for read in reads:
        with pytest.raises(CollectionMissing, match="sync the project first"):
            read()
    cats.relabel(points("source/cats", ["a"]))
    cats.delete(points("source/cats", ["a"])["point_id"])
    cats.drop()
    assert not cats.exists()
    if isinstance(store, QdrantEdgeStore):
        assert not (store._root / space).exists()
    else:
        assert f"images_{space}" not in store._names("look")


@pytest.mark.parametrize(
    "bad",
    [
        np.array([vectors(1)[0], [np.nan] * DIMENSION]),
        np.array([vectors(1)[0], [*vectors(1)[0][:-1], np.inf]]),
        np.array([vectors(1)[0], np.zeros(DIMENSION)]),
        vectors(3),
        vectors(2)[:, :-1],
        vectors(2)[0],
    ],
    ids=["NaN", "inf", "zero", "count", "dimension", "flat"],
)
def test_invalid_vectors_are_refused(cats: Collection, bad: Vectors) -> None:
    """Vectors that are NaN, infinite, zero, mis-sized or too many: refused, and nothing is written."""
    with pytest.raises(InvalidPoints, match="nothing was written"):
        cats.upsert(points("source/cats", ["a", "b"]), bad)
    assert not cats.exists()
    cats.upsert(points("source/cats", ["c"]), vectors(1))
    with pytest.raises(InvalidPoints):
        cats.nearest(np.full(DIMENSION, np.nan), 1)
    assert cats.count() == 1


def test_drop_is_idempotent(cats: Collection) -> None:
    """A dropped collection is gone; dropping it again, or one that never was, is no error."""
    cats.drop()
    cats.upsert(points("source/cats", ["a"]), vectors(1))
    cats.drop()
    cats.drop()
    assert not cats.exists()
    cats.upsert(points("source/cats", ["b"]), vectors(1))
    assert_frame_equal(points("source/cats", ["b"]), rows(cats))


def test_a_space_is_dropped_without_its_model(
    store: VectorStore, cats: Collection, dogs: Collection, space: str
) -> None:
    """The model that tells the dimension may be gone; another project's points stay."""
    for collection, project in ((cats, "source/cats"), (dogs, "source/dogs")):
        collection.upsert(points(project, ["a"]), vectors(1))
    store.collection(space, 1, "source/cats").drop()
    assert not cats.exists()
    assert dogs.count() == 1


def test_damaged_payloads_come_back_as_null(store: VectorStore, cats: Collection) -> None:
    """Fields altered by hand into something else, and points planted by hand, come back and can go."""
    cats.upsert(points("source/cats", ["a", "b"]), vectors(2))
    plant(store, cats)
    damaged = rows(cats).filter(pl.col("image_id").is_null())
    assert damaged["point_id"].to_list() == [(7).to_bytes(16, "big")]
    assert damaged.select("name", "content_hash", "updated_at").row(0) == (None, None, None)
    cats.delete(damaged["point_id"])
    assert_frame_equal(points("source/cats", ["a", "b"]).sort("point_id"), rows(cats))


def plant(store: VectorStore, collection: Collection) -> None:
    """Add a point behind our back: a number as id, and a payload that makes no sense."""
    payload = {
        "project_id": "source/cats",
        "image_id": 5,
        "name": ["x"],
        "content_hash": "zz",
        "updated_at": "yesterday",
    }
    if isinstance(store, QdrantEdgeStore):
        point = edge.Point(7, vectors(1)[0].tolist(), payload)
        with collection._turns.shard("plant") as shard:
            shard.update(edge.UpdateOperation.upsert_points([point]))
            shard.flush()
    else:
        batch = models.Batch(ids=[7], vectors=vectors(1).tolist(), payloads=[payload])
        store._connection.write("plant", lambda c: c.upsert(collection._name, points=batch))


def test_check_says_what_there_is(store: VectorStore, cats: Collection) -> None:
    """One line for doctor: where the store is and how many collections it holds."""
    cats.upsert(points("source/cats", ["a"]), vectors(1))
    assert "\n" not in store.check()
    assert " collections" in store.check()


IMAGES = st.lists(st.sampled_from([f"image {i}" for i in range(8)]), unique=True, max_size=8)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["upsert", "upsert", "relabel", "delete", "drop", "reopen"]),
        IMAGES,
        st.sampled_from(["d1", "d2", "d3"]),
        st.integers(0, 3),
    ),
    max_size=10,
)


@given(steps=STEPS)
@settings(max_examples=15, deadline=None)
def test_any_sequence_of_writes(
    store: VectorStore, steps: list[tuple[str, list[str], str, int]]
) -> None:
    """After any sequence of writes the collection holds what a plain dictionary would."""
    cats = store.collection("test-model", DIMENSION, f"source/{uuid.uuid4()}")
    expected: dict[str, tuple[str, int]] = {}
    for verb, images, dataset, seed in steps:
        mine = points(cats._project_id, images, dataset)
        if verb == "upsert":
            cats.upsert(mine, np.repeat(vectors(1, seed), len(images), axis=0))
            expected |= dict.fromkeys(images, (dataset, seed))
        elif verb == "relabel":
            cats.relabel(mine)
            expected |= {i: (dataset, expected[i][1]) for i in images if i in expected}
        elif verb == "delete":
            cats.delete(mine["point_id"])
            expected = {i: kept for i, kept in expected.items() if i not in images}
        elif verb == "drop":
            cats.drop()
            expected = {}
        elif isinstance(store, QdrantEdgeStore):
            store.close()
    assert bool(expected) == cats.exists()
    if expected:
        assert len(expected) == cats.count()
        assert expected == held(cats)
    cats.drop()


def held(collection: Collection) -> dict[str, tuple[str, int]]:
    """Each image's dataset, and the seed of the vector that it has."""
    seeds = np.concatenate([vectors(1, seed) for seed in range(4)])
    return {
        image: (dataset, int(np.argmax(seeds @ vector)))
        for page, stored in collection.scroll_vectors()
        for image, dataset, vector in zip(page["image_id"], page["dataset_id"], stored, strict=True)
    }
