"""What can be asked of a diverse selection, and what is answered. The same from every door."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from embed_pipeline.search.query import Query, Scope, in_one_line

MOST_CHOSEN = 100_000

Method = Literal["farthest", "kmeans", "dbscan", "random"]


class Selection(Scope):
    """A choice of images that differ from each other.

    farthest: each next one is as far as can be from those before (k-centre). kmeans, dbscan: clusters,
    from which one image each is taken in turns. random: for comparison. clusters: how many; default: as
    many as images are chosen. members: `medoid` takes a cluster's most central images first, `random`
    any of them. eps, min_samples: dbscan's, whose noise comes last; eps in Euclidean distance of unit
    vectors, default from the data. query: choose among the answer of a search. chosen: ids of images
    chosen before: the new ones differ from them, too. quotas: at most so many new ones from a dataset (id
    or name, with nested ones). seed: the same selection again gives the same images.
    """

    limit: int = Field(ge=1, le=MOST_CHOSEN)
    method: Method = "farthest"
    clusters: int | None = Field(default=None, ge=1, le=MOST_CHOSEN)
    members: Literal["medoid", "random"] = "medoid"
    eps: float | None = Field(default=None, gt=0, le=2)
    min_samples: int = Field(default=5, ge=1, le=1000)
    query: Query | None = None
    chosen: Sequence[str] = ()
    quotas: Mapping[str, Annotated[int, Field(ge=0)]] | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)


@dataclass(frozen=True)
class Chosen:
    """An image that was chosen.

    cluster: its cluster's number, from 0; None where the method has none. distance: Euclidean distance of
    unit vectors (0..2) to the nearest one chosen before it; None for the first.
    """

    image_id: str
    name: str
    dataset: str
    path: str
    cluster: int | None
    distance: float | None


@dataclass(frozen=True)
class Coverage:
    """How well a choice stands for all images in scope. Distances: Euclidean, of unit vectors, 0..2.

    mean_distance, largest_distance: from an image to the nearest chosen one. clusters_touched: share,
    0..1, of the scope's clusters with a chosen image in them.
    """

    mean_distance: float
    largest_distance: float
    clusters_touched: float


@dataclass(frozen=True)
class Selected:
    """images: in the order in which they were chosen. candidates: how many there were to choose from.

    random: what a random choice of the same size covers.
    """

    images: list[Chosen]
    candidates: int
    coverage: Coverage
    random: Coverage


def selection_of(**asked: Any) -> Selection:
    """A Selection, or QueryError in one line."""
    with in_one_line():
        return Selection(**asked)
