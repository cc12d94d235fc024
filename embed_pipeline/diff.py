"""The diff: manifest against what the collection holds, one row per needed action."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl

from embed_pipeline.points import PAYLOAD, point_ids
from embed_pipeline.tables import Table

Action = Literal["embed", "reuse", "relabel", "remove"]
ACTIONS: tuple[Action, ...] = ("embed", "reuse", "relabel", "remove")

# held: the collection has this point already (with other content, labels or vector).
# For `remove` the payload columns say what the point held; locator is null.
DIFF = Table(
    "diff",
    1,
    pl.Schema(
        {
            "action": pl.Enum(ACTIONS),
            "held": pl.Boolean(),
            "point_id": pl.Binary(),
            **PAYLOAD,
            "locator": pl.String(),
            "run_id": pl.String(),
        }
    ),
)

LABELS = ("project_id", "dataset_id", "dataset_name", "image_id", "name")
_SUFFIX = "_held"


@dataclass(frozen=True)
class Knowledge:
    """What is known of contents and points beside the manifest and the collection.

    embedded: given content hashes, those that the vector library has. failed: content hashes that
    could not be embedded and are not due to be tried again. hopeless: those of `failed` that a later
    try cannot help. suspects: ids of points whose stored vector is not the library's. forced: content
    hashes that must be encoded anew; one that is also `failed` keeps the vector that it has.
    """

    embedded: Callable[[pl.Series], pl.Series]
    failed: pl.Series
    hopeless: pl.Series
    suspects: pl.Series
    forced: pl.Series

    @property
    def to_encode_anew(self) -> pl.Series:
        """Those of `forced` that have not failed."""
        return self.forced.filter(~self.forced.is_in(self.failed.implode()))


@dataclass(frozen=True)
class Difference:
    """What must happen. images = unchanged + embed + reuse + relabel + failed.

    actions: DIFF rows. failed: ids of the points of images that cannot be embedded (anew, or yet).
    held: points in the collection.
    """

    actions: pl.DataFrame
    images: int
    unchanged: int
    failed: pl.Series
    held: int

    def count(self, action: Action) -> int:
        """Rows with that action."""
        return self.actions.filter(pl.col("action") == action).height

    @property
    def missing(self) -> int:
        """Images that the collection does not hold."""
        return self.actions.filter((pl.col("action") != "remove") & ~pl.col("held")).height

    @property
    def stale(self) -> int:
        """Images that the collection holds with other content, labels or vector."""
        return self.actions.filter((pl.col("action") != "remove") & pl.col("held")).height

    @property
    def extra(self) -> int:
        """Points that must not be there."""
        return self.count("remove")


def wanted_points(project_id: str, manifest: pl.DataFrame) -> pl.DataFrame:
    """The points that the manifest asks for: POINTS columns and locator."""
    return manifest.with_columns(
        point_ids(project_id, manifest["image_id"]), project_id=pl.lit(project_id)
    ).select("point_id", *PAYLOAD.names(), "locator")


def diff(wanted: pl.DataFrame, held: pl.DataFrame, known: Knowledge, run_id: str) -> Difference:
    """What must happen for the collection to hold exactly `wanted`.

    `wanted`: from wanted_points. `held`: a scroll of the collection, POINTS columns.
    """
    compared = _compare(wanted, held, known)
    changed = _decide(compared.filter(pl.col("state") != "unchanged"), known)
    failed = changed.filter(pl.col("action").is_null())
    # A point must not outlive its content: one that can never be replaced is removed.
    hopeless = pl.col("content_hash").is_in(known.hopeless.implode())
    outlived = failed.filter("held", hopeless, state="vector")
    removed = pl.concat([changed.filter(action="remove"), outlived])
    kept = changed.filter(pl.col("action").is_in(["embed", "reuse", "relabel"]))
    actions = pl.concat([kept.select(_KEPT), removed.select(_REMOVED)])
    return Difference(
        actions=actions.with_columns(run_id=pl.lit(run_id)).cast(DIFF.schema),
        images=wanted.height,
        unchanged=compared.height - changed.height,
        failed=failed["point_id"],
        held=held.height,
    )


_KEPT: tuple[str, ...] = ("action", "held", "point_id", *PAYLOAD.names(), "locator")
_REMOVED: tuple[pl.Expr | str, ...] = (
    pl.lit("remove").alias("action"),
    "held",
    "point_id",
    *(pl.col(name + _SUFFIX).alias(name) for name in PAYLOAD.names()),
    pl.lit(None, pl.String).alias("locator"),
)


def _compare(wanted: pl.DataFrame, held: pl.DataFrame, known: Knowledge) -> pl.DataFrame:
    """Both sides joined, with a `state`: unchanged, relabel, vector, unreadable, kept or remove.

    kept: it was to be encoded anew, which failed.
    """
    joined = wanted.with_columns(wanted=True).join(
        held.with_columns(held=True), on="point_id", how="full", suffix=_SUFFIX, coalesce=True
    )
    same_content = pl.col("content_hash").eq_missing(pl.col("content_hash" + _SUFFIX))
    same_labels = pl.all_horizontal(
        pl.col(label).eq_missing(pl.col(label + _SUFFIX)) for label in LABELS
    )
    suspect = pl.col("point_id").is_in(known.suspects.implode())
    anew = pl.col("content_hash").is_in(known.to_encode_anew.implode())
    sound = same_content & ~suspect & ~anew
    state = (
        pl.when(pl.col("wanted").is_null())
        .then(pl.lit("remove"))
        .when(pl.col("content_hash").is_null())
        .then(pl.lit("unreadable"))
        .when(sound & same_labels & pl.col("content_hash").is_in(known.forced.implode()))
        .then(pl.lit("kept"))
        .when(sound & same_labels)
        .then(pl.lit("unchanged"))
        .when(sound)
        .then(pl.lit("relabel"))
        .otherwise(pl.lit("vector"))
    )
    return joined.with_columns(state=state, held=pl.col("held").fill_null(value=False))


def _decide(changed: pl.DataFrame, known: Knowledge) -> pl.DataFrame:
    """An `action` for each changed row; null where the image cannot be embedded."""
    needed = changed.filter(state="vector")["content_hash"].unique()
    content = pl.col("content_hash")
    embedded = content.is_in(known.embedded(needed).implode())
    anew = content.is_in(known.to_encode_anew.implode())
    action = (
        pl.when(pl.col("state").is_in(["remove", "relabel"]))
        .then("state")
        .when(pl.col("state").is_in(["unreadable", "kept"]))
        .then(None)
        .when(embedded & ~anew)
        .then(pl.lit("reuse"))
        .when(content.is_in(known.failed.implode()))
        .then(None)
        .when(content.is_first_distinct())
        .then(pl.lit("embed"))
        .otherwise(pl.lit("reuse"))
    )
    # Sorted, so that which of several copies is embedded does not depend on the join's order.
    # Relabelled and removed rows last: their content must not count as the first of its kind.
    order = pl.col("state") != "vector"
    return changed.sort(order, "image_id").with_columns(action=action)
