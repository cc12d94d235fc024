"""Search in Dagster: a resource for anybody's assets, and a job whose run shows the answer."""

from pathlib import Path

import dagster as dg
import pytest

from embed_pipeline.defs.image_search import ImageSearch
from embed_pipeline.defs.jobs import query_project
from embed_pipeline.deployment import Deployment
from embed_pipeline.models import clip
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.search.query import Query
from embed_pipeline.search.selection import Selection
from embed_pipeline.settings import load_settings
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import draw_many, load_once


@pytest.fixture
def cats(root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A synced project of eight pictures."""
    monkeypatch.setattr(clip, "load_encoder", load_once)
    draw_many(root / "cats", 8)
    deployment = Deployment(load_settings())
    sync(ProjectRun(deployment, "cats", "run"))
    deployment.close()
    return "cats"


def test_an_asset_of_ones_own_searches(cats: str) -> None:
    """An asset asks for the resource by its type, searches and selects; outside Dagster it is an object."""
    found: list[str] = []

    @dg.asset
    def report(search: ImageSearch) -> None:
        found.extend(hit.name for hit in search.search(cats, Query(texts=["a cat"], limit=3)).hits)
        found.extend(each.name for each in search.diverse(cats, Selection(limit=2)).images)

    assert dg.materialize([report], resources={"search": ImageSearch()}).success
    assert len(found) == 5
    outside = ImageSearch()
    again = [hit.name for hit in outside.search(cats, Query(texts=["a cat"], limit=3)).hits]
    assert again == found[:3]
    outside.deployment.close()


def test_a_query_is_a_run(cats: str, dagster_storage: dg.DagsterInstance) -> None:
    """The config is the query; the run's page shows the hits as a table, and their pictures."""
    config = {"project": cats, "texts": ["a cat"], "like": ["image-0003.png"], "limit": 4}
    done = query_project.execute_in_process(
        run_config={"ops": {"answer": {"config": config}}},
        resources={"search": ImageSearch()},
        instance=dagster_storage,
    )
    [told] = [event for event in done.all_events if event.is_successful_output]
    metadata = told.step_output_data.metadata
    table = metadata["answer"].records
    assert len(table) == metadata["hits"].value == 4
    assert set(table[0].data) == {"score", "confidence", "name", "dataset", "image_id", "path"}
    assert metadata["images"].value.startswith("![images](data:image/jpeg;base64,")


def test_a_wrong_query_is_one_line_on_the_runs_page(
    cats: str, dagster_storage: dg.DagsterInstance
) -> None:
    """A query that cannot be answered fails with its reason, not with a stack trace of ours."""
    with pytest.raises(dg.Failure, match=r"nowhere\.png: neither an image id nor a name in cats"):
        query_project.execute_in_process(
            run_config={"ops": {"answer": {"config": {"project": cats, "like": ["nowhere.png"]}}}},
            resources={"search": ImageSearch()},
            instance=dagster_storage,
        )
