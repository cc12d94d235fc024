"""Contents that could not be embedded: what went wrong, how often, and when to try again."""

from datetime import UTC, datetime, timedelta

import polars as pl

from embed_pipeline.errors import ImageError
from embed_pipeline.tables import Table

# One row per (content_hash, space, limits): when a setting, the decoder or the model changes, the
# key changes and the content is tried again. attempts: tries so far. image_id: one image with it.
FAILURES = Table(
    "failures",
    1,
    pl.Schema(
        {
            "content_hash": pl.Binary(),
            "space": pl.String(),
            "limits": pl.String(),
            "image_id": pl.String(),
            "stage": pl.String(),
            "reason": pl.String(),
            "detail": pl.String(),
            "transient": pl.Boolean(),
            "attempts": pl.Int32(),
            "tried_at": pl.Datetime("us", "UTC"),
        }
    ),
)
KEY = ("content_hash", "space", "limits")

FIRST_RETRY = timedelta(minutes=1)
LAST_RETRY = timedelta(days=1)


def failure_row(
    content_hash: bytes, image_id: str, space: str, limits: str, error: ImageError
) -> pl.DataFrame:
    """One FAILURES row for a first failure, now."""
    row = (
        *(content_hash, space, limits, image_id, error.stage, error.reason, error.detail),
        *(error.transient, 1, datetime.now(UTC)),
    )
    return pl.DataFrame([row], schema=FAILURES.schema, orient="row")


def record(before: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """`before` with the `new` failures counted in."""
    earlier = before.select(*KEY, pl.col("attempts").alias("earlier"))
    counted = new.join(earlier, on=KEY, how="left").with_columns(
        attempts=pl.col("attempts") + pl.col("earlier").fill_null(0)
    )
    return pl.concat(
        [before.join(new, on=KEY, how="anti"), counted.select(FAILURES.schema.names())]
    )


def still_failing(
    failures: pl.DataFrame, content_hashes: pl.Series, embedded: pl.Series, space: str
) -> pl.DataFrame:
    """Those of contents that the project still has, less those `embedded` in the space meanwhile."""
    content = pl.col("content_hash")
    mended = (pl.col("space") == space) & content.is_in(embedded.implode())
    return failures.filter(content.is_in(content_hashes.implode()) & ~mended)


def of_settings(failures: pl.DataFrame, space: str, limits: str) -> pl.DataFrame:
    """The failures that happened in this space under these limits."""
    return failures.filter(space=space, limits=limits)


def not_due(failures: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """The failures that it is not time to try again: permanent, or tried a short while ago.

    A transient one waits a minute after its first try, then twice as long each time, at most a day.
    """
    return failures.filter(~pl.col("transient") | (_due_at() > now))


def first_due(failures: pl.DataFrame) -> datetime | None:
    """When the first of the transient failures is to be tried again; None where there is none."""
    at: datetime | None = failures.filter("transient").select(_due_at().min()).item()
    return at


def _due_at() -> pl.Expr:
    doublings = (pl.col("attempts") - 1).clip(0, 16)
    seconds = FIRST_RETRY.total_seconds() * pl.lit(2.0).pow(doublings)
    return pl.col("tried_at") + pl.duration(seconds=seconds.clip(0, LAST_RETRY.total_seconds()))
