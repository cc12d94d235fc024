"""A Supervisely instance as a source: its image projects with AI search, by their numbers.

What is trashed or removed there is not listed. A project's token is the platform's own time of its
last change, as one listing of all projects tells it.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any

import polars as pl

from embed_pipeline.errors import ProjectNotFound, SourceUnavailable, TableError
from embed_pipeline.models.protocol import ORIGINAL
from embed_pipeline.sources.protocol import Listing, Proof, Wanted
from embed_pipeline.sources.supervisely_http import Connection
from embed_pipeline.sources.supervisely_images import (
    LINKS,
    Contents,
    Locator,
    manifest_rows,
    platform_hash,
)
from embed_pipeline.sources.supervisely_listing import PASSES, Image, ImageList
from embed_pipeline.sources.supervisely_marks import Marks
from embed_pipeline.sources.supervisely_pictures import Pictures, preview
from embed_pipeline.sources.supervisely_projects import Project, Projects
from embed_pipeline.sources.supervisely_sdk import open_sdk


class SuperviselySource:
    """The projects of one instance. `links_of` names the file that remembers a project's linked images.

    resizer: where previews are made, if not at the instance. originals: use no previews.
    """

    def __init__(
        self,
        connection: Connection,
        source_id: str,
        links_of: Callable[[str], Path],
        *,
        resizer: str | None = None,
        originals: bool = False,
    ) -> None:
        self.source_id = source_id
        self._connection = connection
        self._links_of = links_of
        self._originals = originals
        self._projects = Projects(connection)
        self._images = ImageList(connection)
        self._pictures = Pictures(connection, resizer)
        self._marks = Marks(connection, self._images)
        # Of projects that were scanned by this process.
        self._contents: dict[str, Contents] = {}
        self._scanned: dict[str, Project] = {}

    def projects(self) -> list[str]:
        """The numbers of the image projects with AI search, in order."""
        return list(self._projects.look().projects)

    def left_out(self) -> dict[str, list[str]]:
        """Projects of teams whose plan is without AI search."""
        return self._projects.listed.left_out

    def title(self, project: str) -> str:
        """The project's name."""
        listed = self._projects.listed.projects.get(project)
        scanned = self._scanned.get(project)
        info = listed or (scanned and scanned.info)
        return str(info.name) if info else project

    def revision(self, project: str, *, as_listed: bool = False) -> tuple[int, str]:
        """How many images it counts, and when it was changed last."""
        listed = self._projects.listed.projects.get(project) if as_listed else None
        info = listed or self._projects.now(project).info
        return info.items_count or 0, str(info.updated_at)

    def scan(self, project: str) -> Iterator[Listing]:
        """List the images, 1,000 at a time."""
        scanned = self._projects.now(project)
        info = scanned.info
        if reason := self._projects.why_left_out(info):
            raise ProjectNotFound(f"{project}: left out: {reason}")
        page = f"/app/images/{info.team_id}/{info.workspace_id}/{project}"
        datasets = self._datasets(project)
        contents = Contents(self._remembered(project))
        for images in self._images.every(project):
            yield Listing(manifest_rows(images, contents, datasets, page))
        self._contents[project], self._scanned[project] = contents, scanned
        self._remember(project, contents.links())

    def rendition(self, side: int) -> str:
        """Previews whose shorter side is the model's input, unless originals are wanted."""
        return ORIGINAL if self._originals else preview(side)

    def fetch(self, project: str, wanted: Wanted, stop: Event) -> bytes:
        """The preview, or the original where that fails."""
        return self._pictures.fetch(wanted, stop)

    def changed(self, project: str, wanted: Sequence[Wanted]) -> set[bytes]:
        """Of previews and links, those whose image has other content by now, or is gone.

        Nothing in their bytes can be compared with the listed hash.
        """
        located = [(Locator.of(each.locator), each) for each in wanted]
        doubtful = {
            locator.id: each.content_hash
            for locator, each in located
            if each.rendition != ORIGINAL or not locator.hashed
        }
        listed = self._contents_of(project)
        now = self._images.of_ids(project, list(doubtful))
        same = {listed.hash_of(image) for image in now}
        return set(doubtful.values()) - same

    def where(self, project: str, locator: str) -> str:
        """The image's page."""
        return self._connection.where + Locator.of(locator).page

    def working(self) -> set[str]:
        """Projects whose `embeddings_in_progress` is set."""
        listed = self._projects.listed.projects
        return {name for name, info in listed.items() if info.embeddings_in_progress}

    def begin(self, project: str) -> None:
        """Set `embeddings_in_progress`."""
        self._marks.working(project, working=True)

    def prove(self, project: str, proof: Proof) -> None:
        """Set `embeddings_updated_at` of what is indexed, and take it from what is not.

        The time is that of the scan, by the instance's clock: what is changed after it counts as newer.
        """
        contents = self._contents_of(project)
        scanned = self._scanned.get(project) or self._projects.now(project)
        at = scanned.asked_at

        indexed = proof.images.filter(~pl.col("image_id").is_in(proof.failed.implode()))
        content_of = dict(indexed.select("image_id", "content_hash").iter_rows())

        def is_indexed(image: Image) -> bool:
            return content_of.get(str(image["id"])) == contents.hash_of(image)

        marked = self._marks.mark(project, list(map(int, proof.written)), at, is_indexed)
        self._keep_keys(project, contents, marked)
        unmarked = self._marks.unmark(project, list(map(int, proof.failed)))
        if marked or unmarked or _is_older(scanned.info.embeddings_updated_at, scanned):
            self._marks.mark_project(project, at)

    def end(self, project: str, error: str | None = None) -> bool:
        """Clear `embeddings_in_progress`, where it is set; people see the error in Supervisely."""
        try:
            info = self._projects.now(project).info
        except ProjectNotFound:
            return False
        if info.embeddings_in_progress or error:
            self._marks.working(project, working=False, error=error)
        return bool(info.embeddings_in_progress or error)

    def close(self) -> None:
        """Close the connections to the instance."""
        self._connection.close()

    def _datasets(self, project: str) -> dict[int, str]:
        """Names by number; a nested one's begin with those that it is in."""
        for _ in range(PASSES):
            try:
                datasets = self._sdk.dataset.get_list(int(project), recursive=True)
            except RuntimeError:  # a dataset came or went between two pages
                continue
            return _paths({dataset.id: dataset for dataset in datasets})
        raise SourceUnavailable(
            f"{project}: the list of datasets changes while it is read; nothing was changed, the next "
            "run tries again"
        )

    def _keep_keys(self, project: str, contents: Contents, marked: Sequence[Image]) -> None:
        """Where marking a linked image changed its time, that is no change of its content."""
        linked = [image["id"] for image in marked if platform_hash(image) is None]
        if linked:
            for image in self._images.of_ids(project, linked):
                contents.marked(image)
            known = pl.concat([contents.links(), self._remembered(project)])
            self._remember(project, known.unique("image_id", keep="first", maintain_order=True))

    def _contents_of(self, project: str) -> Contents:
        scanned = self._contents.get(project)
        return Contents(scanned.links() if scanned else self._remembered(project))

    def _remembered(self, project: str) -> pl.DataFrame:
        try:
            return LINKS.read(self._links_of(project))
        except TableError:
            return LINKS.empty()  # only a cache: linked images are embedded again

    def _remember(self, project: str, links: pl.DataFrame) -> None:
        path = self._links_of(project)
        if links.height or path.exists():
            LINKS.write(links, path)

    @cached_property
    def _sdk(self) -> Any:
        return open_sdk(self._connection, self._connection.calls)


def _paths(datasets: dict[int, Any]) -> dict[int, str]:
    def path(dataset: Any) -> str:
        parent = datasets.get(dataset.parent_id)
        return f"{path(parent)}/{dataset.name}" if parent else str(dataset.name)

    return {id_: path(dataset) for id_, dataset in datasets.items()}


def _is_older(marked: str | None, scanned: Project) -> bool:
    """Whether a time on the project is from before its last change."""
    changed = datetime.fromisoformat(scanned.info.updated_at)
    return marked is None or datetime.fromisoformat(marked) < changed
