"""The images of a Supervisely project, as the instance lists them: whole, or not at all."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from embed_pipeline.errors import SourceUnavailable
from embed_pipeline.sources.supervisely_http import Connection

Image = Mapping[str, Any]
Condition = Mapping[str, Any]

PAGE_IMAGES = 1_000
# As many as the SDK asks for in one filter.
IDS_PER_REQUEST = 50
REQUESTS_AT_ONCE = 4
PASSES = 3
MARKED: Condition = {"field": "embeddingsUpdatedAt", "operator": "not", "value": None}
UNMARKED: Condition = {"field": "embeddingsUpdatedAt", "operator": "eq", "value": None}


class ImageList:
    """Lists images that are not trashed, as far as nothing else is said."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def every(self, project: str, *conditions: Condition) -> Iterator[list[Image]]:
        """Pages of images, each image once, also where the list changes while it is read.

        Raises SourceUnavailable where it does not come to an end, or fewer images came than there are.
        """
        told: set[int] = set()
        for _ in range(PASSES):
            listed: set[int] = set()
            total = 0
            for page in self._pages(project, conditions):
                images = {image["id"]: image for image in page["entities"]}
                total = page["total"]
                listed |= images.keys()
                if new := [images[id_] for id_ in images.keys() - told]:
                    yield new
                told |= images.keys()
            if len(listed) >= total:
                return
        raise self._unsound(project, f"it gave {len(listed):,} of {total:,} images")

    def of_ids(self, project: str, ids: Sequence[int], *conditions: Condition) -> list[Image]:
        """Those of the images that are (still) there. A commit waits for this: some are asked at once."""

        def ask(start: int) -> list[Image]:
            chosen = list(ids[start : start + IDS_PER_REQUEST])
            condition = {"field": "id", "operator": "in", "value": chosen}
            page = self._ask(project, filter=[condition, *conditions], per_page=IDS_PER_REQUEST)
            images: list[Image] = page["entities"]
            return images

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            pages = pool.map(ask, range(0, len(ids), IDS_PER_REQUEST))
            return [image for page in pages for image in page]

    def trashed(self, project: str, *conditions: Condition) -> list[Image]:
        """The images in the trash."""
        found: list[Image] = []
        pages, number = 1, 0
        while number < pages:
            number += 1
            options = {"showDisabled": True, "page": number, "per_page": PAGE_IMAGES}
            page = self._ask(project, filter=list(conditions), **options)
            found += page["entities"]
            pages = page["pagesCount"]
        return found

    def _pages(self, project: str, conditions: Sequence[Condition]) -> Iterator[dict[str, Any]]:
        options: dict[str, Any] = {"pagination_mode": "token", "per_page": PAGE_IMAGES}
        after = None
        while True:
            page = self._ask(project, filter=list(conditions), **options)
            yield page
            if page["after"] is None:
                return
            if page["after"] == after:
                raise self._unsound(project, "it gives the same page again and again")
            after = options["after"] = page["after"]

    def _ask(self, project: str, **options: Any) -> dict[str, Any]:
        asked = {
            "projectId": int(project),
            "datasetId": None,
            "sort": "id",
            "sort_order": "asc",
            "forceMetadataForLinks": False,
            **options,
        }
        post = self._connection.post("images.list", asked, self._connection.calls)
        page: dict[str, Any] = post.json()
        expected = {"entities", "total", "after" if "pagination_mode" in options else "pagesCount"}
        if not isinstance(page, dict) or not expected <= page.keys():
            raise self._unsound(project, "an answer is not a page of images")
        return page

    def _unsound(self, project: str, reason: str) -> SourceUnavailable:
        return SourceUnavailable(
            f"{project}: Supervisely at {self._connection.where} does not list its images as a whole: "
            f"{reason}; nothing was changed, the next run tries again"
        )
