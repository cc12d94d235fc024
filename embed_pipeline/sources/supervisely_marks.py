"""What a Supervisely instance shows of the state of a project: that it is worked on, what is embedded."""

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from embed_pipeline.sources.supervisely_http import Connection, Missing
from embed_pipeline.sources.supervisely_listing import MARKED, UNMARKED, Image, ImageList
from embed_pipeline.sources.supervisely_sdk import open_sdk

logger = logging.getLogger(__name__)

IMAGES_PER_REQUEST = 500


class Marks:
    """Sets flags and times of one instance. Nothing else of a project is ever written."""

    def __init__(self, connection: Connection, images: ImageList) -> None:
        self._connection = connection
        self._images = images

    def working(self, project: str, *, working: bool, error: str | None = None) -> None:
        """Set or clear `embeddings_in_progress`; a project that is gone has none."""
        try:
            self._sdk.project.set_embeddings_in_progress(int(project), working, error_message=error)
        except Missing:
            logger.info("%s: gone, its flag with it", project)

    def mark(
        self, project: str, written: Sequence[int], at: str, is_indexed: Callable[[Image], bool]
    ) -> list[Image]:
        """Give images that are indexed the time `at`: those that have none, and those `written` now.

        is_indexed: whether the image is in the collection with the content that it has. Returns the
        images that were marked, as they were before.
        """
        unmarked = [image for page in self._images.every(project, UNMARKED) for image in page]
        more = set(written) - {image["id"] for image in unmarked}
        found = unmarked + self._images.of_ids(project, sorted(more))
        marked = [image for image in found if is_indexed(image)]
        self._set([image["id"] for image in marked], at)
        return marked

    def unmark(self, project: str, failed: Sequence[int]) -> int:
        """Take the time from images that are not indexed: trashed ones, and those that failed."""
        images = [
            *self._images.trashed(project, MARKED),
            *self._images.of_ids(project, failed, MARKED),
        ]
        self._set([image["id"] for image in images], None)
        return len(images)

    def mark_project(self, project: str, at: str) -> None:
        """Say that the collection holds the project as it was at that time."""
        self._sdk.project.set_embeddings_updated_at(int(project), at)

    def _set(self, ids: Sequence[int], at: str | None) -> None:
        ids = sorted(set(ids))
        for start in range(0, len(ids), IMAGES_PER_REQUEST):
            chosen = ids[start : start + IMAGES_PER_REQUEST]
            self._sdk.image.set_embeddings_updated_at(chosen, [at] * len(chosen))

    @cached_property
    def _sdk(self) -> Any:
        return open_sdk(self._connection, self._connection.calls)
