"""The diff as a pure function: held against a plain model of what a collection should become."""

import random
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from embed_pipeline.diff import Difference, Knowledge, diff, wanted_points
from embed_pipeline.guard import withheld_removals
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.points import POINTS

CONTENTS = [bytes([i]) * 32 for i in range(6)]
Image = tuple[str, bytes | None]  # dataset, content

images = st.dictionaries(
    st.sampled_from([f"image {i}" for i in range(8)]),
    st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([*CONTENTS, None])),
)
contents = st.sets(st.sampled_from(CONTENTS))


def manifest_of(images: dict[str, Image]) -> pl.DataFrame:
    """A manifest of these images."""
    now = datetime.now(UTC)
    rows = [
        (name, dataset, dataset, name, content, now, 1, 1, 1, name)
        for name, (dataset, content) in images.items()
    ]
    return pl.DataFrame(rows, schema=MANIFEST.schema, orient="row")


def points_of(images: dict[str, Image]) -> pl.DataFrame:
    """What a collection of exactly these images holds."""
    return wanted_points("s/p", manifest_of(images)).select(POINTS.names())


def knowledge(
    embedded: AbstractSet[bytes],
    failed: AbstractSet[bytes],
    hopeless: AbstractSet[bytes],
    forced: AbstractSet[bytes] = frozenset(),
) -> Knowledge:
    """What is known of contents; no suspects."""

    def series(hashes: AbstractSet[bytes]) -> pl.Series:
        return pl.Series(sorted(hashes), dtype=pl.Binary)

    return Knowledge(
        embedded=lambda asked: asked.filter(asked.is_in(series(embedded).implode())),
        failed=series(failed),
        hopeless=series(failed & hopeless),
        suspects=series(set()),
        forced=series(forced),
    )


@given(
    now=images,
    before=images,
    embedded=contents,
    failed=contents,
    hopeless=contents,
    forced=contents,
)
@settings(deadline=None)
def test_doing_the_actions_makes_the_collection_equal(
    now: dict[str, Image],
    before: dict[str, Image],
    embedded: set[bytes],
    failed: set[bytes],
    hopeless: set[bytes],
    forced: set[bytes],
) -> None:
    """Whatever was held, the actions lead to what is wanted, failures left out, and no step more."""
    before = {name: image for name, image in before.items() if image[1]}
    wanted, held = wanted_points("s/p", manifest_of(now)), points_of(before)
    found = diff(wanted, held, knowledge(embedded, failed, hopeless, forced), "run")

    counted = (
        found.unchanged
        + len(found.failed)
        + found.actions.filter(pl.col("action") != "remove").height
    )
    assert counted == found.images == len(now)
    embeds = found.actions.filter(action="embed")["content_hash"]
    assert embeds.n_unique() == embeds.len(), "a content is embedded once"
    assert not set(embeds) & (embedded - forced), "nothing known is embedded"
    assert set(wanted["content_hash"]) & (forced - failed) <= set(embeds), "what is forced, is"
    kept = {name for name, image in before.items() if image == now.get(name)}
    removed = set(found.actions.filter(action="remove")["image_id"])
    assert not kept & removed, "a point that may stay does"
    with_vector = wanted.filter(pl.col("content_hash").is_in(list(embedded)))["point_id"]
    assert set(with_vector) <= {*held["point_id"], *found.actions["point_id"]}, "it is searched"
    after = knowledge(embedded | set(embeds), failed, hopeless, forced & failed)
    assert diff(wanted, _done(held, found), after, "run").actions.is_empty()
    assert (
        not set(held["point_id"])
        & set(found.failed)
        & set(found.actions.filter(~pl.col("action").is_in(["remove"]))["point_id"])
    )


def _done(held: pl.DataFrame, found: Difference) -> pl.DataFrame:
    written = found.actions.filter(pl.col("action") != "remove").select(POINTS.names())
    touched = found.actions.select("point_id").to_series()
    return pl.concat([held.filter(~pl.col("point_id").is_in(touched.implode())), written])


def test_a_transient_failure_keeps_the_old_point_and_a_permanent_one_does_not() -> None:
    """Search keeps what may still be replaced; it drops what never can be."""
    wanted = wanted_points("s/p", manifest_of({"x": ("a", CONTENTS[1])}))
    held = points_of({"x": ("a", CONTENTS[0])})
    failed = {CONTENTS[1]}
    transient = diff(wanted, held, knowledge(set(), failed, set()), "run")
    permanent = diff(wanted, held, knowledge(set(), failed, failed), "run")
    assert (transient.count("remove"), len(transient.failed)) == (0, 1)
    assert (permanent.count("remove"), len(permanent.failed)) == (1, 1)


def test_the_guard_counts_lost_contents_only() -> None:
    """Up to 50 or 30 % may go; a content that is still somewhere is not lost; empty manifests lose none."""
    rng = random.Random(0)
    held = {f"{i}": ("a", rng.randbytes(32)) for i in range(200)}
    known = knowledge(set(), set(), set())

    def withheld(now: dict[str, Image], confirmed: int | None = None) -> int:
        wanted = wanted_points("s/p", manifest_of(now))
        return withheld_removals(diff(wanted, points_of(held), known, "run"), wanted, confirmed)

    def first(count: int) -> dict[str, Image]:
        return dict(list(held.items())[:count])

    assert withheld(first(140)) == 0
    assert withheld(first(139)) == 61
    assert withheld(first(139), confirmed=61) == 0
    assert withheld(first(139), confirmed=60) == 61
    assert withheld({f"renamed {name}": image for name, image in held.items()}) == 0
    assert withheld({}) == 200
