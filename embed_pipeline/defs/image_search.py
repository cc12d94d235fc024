"""Search and diverse selection as a resource of Dagster's, and for any Python program."""

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import PrivateAttr

from embed_pipeline.deployment import Deployment, open_deployment
from embed_pipeline.search.query import Answer, Query
from embed_pipeline.search.selection import Selected, Selection

if TYPE_CHECKING:
    from embed_pipeline.search.searcher import Searcher


class ImageSearch(dg.ConfigurableResource):  # type: ignore[type-arg]  # it is what Dagster resolves to
    """Searches the projects that the EMBED_* environment names; reads only.

    In an asset or op, ask for it by a parameter of this type. Elsewhere: `ImageSearch().search(…)`.
    """

    _searcher: "Searcher | None" = PrivateAttr(default=None)

    def search(self, project: str, query: Query) -> Answer:
        """The images that match the query best. Raises CollectionMissing or QueryError."""
        return self._opened().search(project, query)

    def diverse(self, project: str, selection: Selection) -> Selected:
        """Images that differ from each other. Raises as `search`."""
        return self._opened().diverse(project, selection)

    @property
    def deployment(self) -> Deployment:
        """What the settings name."""
        return self._opened().deployment

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002  Dagster's signature
        """Let go of what was opened."""
        if self._searcher:
            self._searcher.deployment.close()
            self._searcher = None

    def _opened(self) -> "Searcher":
        if self._searcher is None:
            from embed_pipeline.search.searcher import Searcher

            self._searcher = Searcher(open_deployment())
        return self._searcher
