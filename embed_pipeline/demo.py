"""The sample project, synced through Dagster and searched: what the tool does, in one command."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from embed_pipeline.contact_sheet import Row, Thumbnail, contact_sheet
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import EmbedPipelineError
from embed_pipeline.manifest import MANIFEST
from embed_pipeline.pictures import picture
from embed_pipeline.runs import COUNTS, SyncOutcome, dagster_instance, run_sync
from embed_pipeline.sample import ALONE, DEMO_QUERIES, PROJECT, make_sample, matches
from embed_pipeline.search.query import Hit, query_of
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.settings import DEMO_MODEL, SAMPLE
from embed_pipeline.terminal import print_line, print_table, progress_bar

HITS = 5
SHEET_SIDE = 160


@dataclass(frozen=True)
class DemoSearch:
    """A search of the sample. right: how many hits show what was asked for."""

    query: str
    hits: list[Hit]
    right: int


@dataclass(frozen=True)
class DemoOutcome:
    """Counts of the sync, the searches, and where the contact sheet is."""

    project_id: str
    sync: SyncOutcome
    searches: list[DemoSearch]
    sheet: str


def run_demo(deployment: Deployment) -> DemoOutcome:
    """Make, sync and search the sample, whatever source and model the settings name."""
    chosen = {"source": SAMPLE, "source_id": None, "model_name": DEMO_MODEL}
    sample = Deployment(deployment.settings.model_copy(update=chosen))
    make_sample(sample.home.sample)
    with dagster_instance(sample.settings) as instance, progress_bar(PROJECT) as progress:
        outcome = run_sync(sample, instance, PROJECT, progress=progress)
    if outcome.error:
        raise EmbedPipelineError(outcome.error)
    searcher = Searcher(sample)
    searches = [_search_text(searcher, *pair) for pair in DEMO_QUERIES]
    searches.append(_search_like(searcher, searches))
    return DemoOutcome(PROJECT, outcome, searches, str(_draw(sample, searches)))


def show(outcome: DemoOutcome) -> None:
    """Print the outcome for people."""
    print_table([outcome.sync], ("project_id", "status", *COUNTS))
    for found in outcome.searches:
        print_line(f"\n{found.query}: {found.right} of {len(found.hits)} right")
        print_table(found.hits, ("score", "confidence", "name", "dataset"))
    print_line(f"\ncontact sheet: {outcome.sheet}")


def _search_text(searcher: Searcher, colour: str, shape: str) -> DemoSearch:
    query = f"a {colour} {shape}"
    hits = searcher.search(PROJECT, query_of(texts=[query], limit=HITS)).hits
    return DemoSearch(query, hits, sum(matches(hit.name, colour, shape) for hit in hits))


def _search_like(searcher: Searcher, searches: list[DemoSearch]) -> DemoSearch:
    """More like the first hit that shows one thing only; right are those that show it, too."""
    found = [(pair, hit) for pair, s in zip(DEMO_QUERIES, searches, strict=True) for hit in s.hits]
    pair, reference = next((each for each in found if each[1].dataset == ALONE), found[0])
    hits = searcher.search(PROJECT, query_of(like=[reference.image_id], limit=HITS)).hits
    right = sum(matches(hit.name, *pair) for hit in hits)
    return DemoSearch(f"like {reference.name}", hits, right)


def _draw(deployment: Deployment, searches: list[DemoSearch]) -> Path:
    manifest = MANIFEST.read(deployment.project_home(PROJECT).manifest)
    rows = [
        Row(
            f"{found.query}   ({found.right} of {len(found.hits)} right)",
            [_thumbnail(deployment, manifest, hit) for hit in found.hits],
        )
        for found in searches
    ]
    path = deployment.home.root / "demo.png"
    contact_sheet(rows, SHEET_SIDE).save(path)
    return path


def _thumbnail(deployment: Deployment, manifest: pl.DataFrame, hit: Hit) -> Thumbnail:
    row = manifest.filter(image_id=hit.image_id).row(0, named=True)
    image = picture(deployment, PROJECT, row["locator"], row["content_hash"], SHEET_SIDE)
    if image is None:
        raise EmbedPipelineError(f"{hit.path}: gone since it was found; run the demo again")
    return Thumbnail(image, f"{hit.score:.2f}  {hit.name}")
