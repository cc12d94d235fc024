"""The guard: a source that lost its images by accident must not empty the collection."""

import polars as pl

from embed_pipeline.diff import Difference

FREE_REMOVALS = 50
FREE_SHARE = 0.3


def withheld_removals(difference: Difference, wanted: pl.DataFrame, confirmed: int | None) -> int:
    """How many removals need a confirmation that was not given; 0 when all may go.

    Counted are points whose content is nowhere in the manifest: a rename removes a point, too, but
    loses nothing. Free are FREE_REMOVALS or FREE_SHARE of the collection, whichever is more, and
    none at all when the manifest is empty.
    """
    removals = difference.actions.filter(action="remove")
    lost = removals.join(wanted, on="content_hash", how="anti", nulls_equal=True).height
    free = max(FREE_REMOVALS, int(FREE_SHARE * difference.held)) if difference.images else 0
    return 0 if lost <= free or confirmed == lost else lost
