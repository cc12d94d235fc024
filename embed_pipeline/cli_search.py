"""The commands `search` and `diverse`, each in a short form and as a JSON document."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from embed_pipeline.errors import QueryError
from embed_pipeline.terminal import print_json, print_table, say, show_warnings

if TYPE_CHECKING:
    from embed_pipeline.search.searcher import Searcher

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Project = Annotated[str, typer.Argument(help="The project's name.")]
Datasets = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset", help="Look only in this dataset (id or name) and those nested in it."
    ),
]
Images = Annotated[
    list[str] | None, typer.Option("--among", help="Look only at this image: its id.")
]
Document = Annotated[
    Path | None,
    typer.Option(
        "--query", help="The whole query as JSON, as POST /v1/search takes it; - is stdin."
    ),
]


def search(
    project: Project,
    text: Annotated[list[str] | None, typer.Argument(help="What to search for.")] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="An image id, a name in the project, or a file.")
    ] = None,
    not_text: Annotated[list[str] | None, typer.Option("--not", help="What not to find.")] = None,
    unlike: Annotated[
        list[str] | None, typer.Option(help="An image not to find the like of.")
    ] = None,
    mode: Annotated[
        Literal["weighted", "all", "any"],
        typer.Option(
            help="weighted: parts add up; all: each must match; any: the best one counts."
        ),
    ] = "weighted",
    limit: Annotated[int, typer.Option(help="How many images.", min=1, max=10_000)] = 10,
    offset: Annotated[int, typer.Option(help="How many to leave out first.", min=0)] = 0,
    dataset: Datasets = None,
    among: Images = None,
    threshold: Annotated[float | None, typer.Option(help="Least score.")] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Least confidence.", min=0, max=1)
    ] = None,
    diversity: Annotated[
        float, typer.Option(help="0: best first; up to 1: unlike each other.", min=0, max=1)
    ] = 0.0,
    with_references: Annotated[
        bool, typer.Option("--with-references", help="Also show images that were given.")
    ] = False,
    query: Document = None,
    as_json: Json = False,
) -> None:
    """Find images by text, by image, or both, and away from others."""
    from embed_pipeline.search.query import query_of

    searcher, name = _searcher(), _typed(project)
    if query:
        asked = _document(query)
    else:
        asked = {
            "texts": text or [],
            "like": _images(searcher, name, like or []),
            "not_texts": not_text or [],
            "unlike": _images(searcher, name, unlike or []),
            "mode": mode,
            "limit": limit,
            "offset": offset,
            "datasets": dataset,
            "image_ids": among,
            "threshold": threshold,
            "confidence": confidence,
            "diversity": diversity,
            "with_references": with_references,
        }
    answer = searcher.search(name, query_of(**asked))
    for cut in answer.truncated:
        say(f"warning: longer than the model takes in, its end was left out: {cut[:60]}…")
    if as_json:
        print_json(answer.hits)
    else:
        print_table(answer.hits, ("score", "confidence", "name", "dataset", "path"))


def diverse(
    project: Project,
    limit: Annotated[int, typer.Option(help="How many images.", min=1)],
    method: Annotated[
        Literal["farthest", "kmeans", "dbscan", "random"], typer.Option(help="How to choose.")
    ] = "farthest",
    clusters: Annotated[
        int | None, typer.Option(help="How many clusters; default: as many as images.", min=1)
    ] = None,
    members: Annotated[
        Literal["medoid", "random"], typer.Option(help="Which of a cluster's images come first.")
    ] = "medoid",
    eps: Annotated[
        float | None,
        typer.Option(
            help="dbscan: how near neighbours are; default: from the images.", min=0, max=2
        ),
    ] = None,
    min_samples: Annotated[
        int, typer.Option(help="dbscan: how many neighbours make a cluster.", min=1, max=1000)
    ] = 5,
    dataset: Datasets = None,
    among: Images = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Choose among what a search for this finds.")
    ] = None,
    query: Document = None,
    chosen: Annotated[
        list[str] | None, typer.Option(help="An image chosen before: the new ones differ from it.")
    ] = None,
    quota: Annotated[
        list[str] | None, typer.Option(help="DATASET=N: at most N images from a dataset.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same images.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Choose images that differ from each other, and say how well they cover the rest."""
    from embed_pipeline.search.query import POOL, query_of
    from embed_pipeline.search.selection import selection_of

    searcher, name = _searcher(), _typed(project)
    found = query_of(texts=text, limit=POOL) if text else None
    selection = selection_of(
        limit=limit,
        method=method,
        clusters=clusters,
        members=members,
        eps=eps,
        min_samples=min_samples,
        datasets=dataset,
        image_ids=among,
        query=query_of(**_document(query)) if query else found,
        chosen=chosen or [],
        quotas=_quotas(quota or []),
        seed=seed,
    )
    selected = searcher.diverse(name, selection)
    if as_json:
        print_json(selected)
        return
    print_table(selected.images, ("name", "dataset", "cluster", "distance", "path"))
    for who, coverage in (("these", selected.coverage), ("a random choice", selected.random)):
        say(
            f"{who}: an image is {coverage.mean_distance:.2f} from the nearest chosen one on average, "
            f"{coverage.largest_distance:.2f} at most; {coverage.clusters_touched:.0%} of clusters touched"
        )
    if method == "dbscan" and selected.coverage.mean_distance > selected.random.mean_distance:
        say(
            "warning: these cover less than chance: dbscan found no clusters of use here; give --eps, or "
            "--method farthest or kmeans"
        )


def _searcher() -> "Searcher":
    from embed_pipeline.deployment import open_deployment
    from embed_pipeline.search.searcher import Searcher

    show_warnings()
    return Searcher(open_deployment())


def _typed(project: str) -> str:
    from embed_pipeline.sources.names import typed

    return typed(project)


def _images(searcher: "Searcher", project: str, given: Sequence[str]) -> list[dict[str, Any]]:
    return [_image(searcher, project, each) for each in given]


def _image(searcher: "Searcher", project: str, given: str) -> dict[str, Any]:
    """An image of the project, or else a file. Only here: programs send bytes."""
    if searcher.has_image(project, _typed(given)):
        return {"image": _typed(given)}
    if not Path(given).is_file():
        raise QueryError(f"{given}: neither an image id nor a name in {project}, nor a file")
    return {"data": Path(given).read_bytes()}


def _document(path: Path) -> dict[str, Any]:
    try:
        asked = json.loads(sys.stdin.read() if str(path) == "-" else path.read_text())
    except OSError as error:
        raise QueryError(f"--query {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise QueryError(f"--query {path}: not JSON ({error})") from error
    if not isinstance(asked, dict):
        raise QueryError(f"--query {path}: not a JSON object")
    return asked


def _quotas(given: Sequence[str]) -> dict[str, int] | None:
    quotas = {}
    for each in given:
        dataset, _, most = each.rpartition("=")
        if not (dataset and most.isdecimal()):
            raise QueryError(f"--quota {each}: not of the form DATASET=N")
        quotas[dataset] = int(most)
    return quotas or None
