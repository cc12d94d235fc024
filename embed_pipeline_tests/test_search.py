"""Search: any mix of texts and images, ranked on one footing, with a confidence that can be trusted."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.relevance import Scenes, measure
from embed_pipeline import deployment as deployments
from embed_pipeline.cli import app
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import CollectionMissing, QueryError
from embed_pipeline.models import clip
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.sample import PROJECT, make_sample, matches
from embed_pipeline.search import calibration, searcher
from embed_pipeline.search.query import POOL, Answer, Image, Query, Text, query_of
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.settings import load_settings
from embed_pipeline.sync import sync
from embed_pipeline_tests.conftest import draw_many

IMAGES = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sample project lies, with a home beside it."""
    top = tmp_path_factory.mktemp("search")
    make_sample(top / "root", images=IMAGES)
    return top


@pytest.fixture(scope="module")
def deployment(place: Path) -> Iterator[Deployment]:
    """The sample project, synced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBED_SOURCE", f"folder:{place / 'root'}")
        patch.setenv("EMBED_HOME", str(place / "home"))
        patch.setenv("EMBED_MODEL", "demo")
        deployment = Deployment(load_settings())
    sync(ProjectRun(deployment, PROJECT, "run"))
    yield deployment
    deployment.close()


@pytest.fixture
def scenes(deployment: Deployment) -> Searcher:
    """A new searcher of that project."""
    return Searcher(deployment)


def names(found: Answer) -> list[str]:
    """The hits' names, best first."""
    return [hit.name for hit in found.hits]


def ask(scenes: Searcher, **asked: Any) -> Answer:
    """Search the sample."""
    return scenes.search(PROJECT, query_of(**asked))


def an_image(scenes: Searcher, **asked: Any) -> str:
    """The id of the best hit."""
    return ask(scenes, limit=1, **asked).hits[0].image_id


ANY_QUERY = st.fixed_dictionaries(
    {
        "texts": st.lists(st.sampled_from(["a red circle", "a star", "green"]), max_size=2),
        "like": st.lists(st.integers(0, IMAGES - 1), max_size=2),
        "not_texts": st.lists(st.sampled_from(["blue", "a heart"]), max_size=1),
        "mode": st.sampled_from(["weighted", "all", "any"]),
        "diversity": st.sampled_from([0.0, 0.5, 1.0]),
        "confidence": st.sampled_from([None, 0.2]),
        "with_references": st.booleans(),
    }
).filter(lambda asked: asked["texts"] or asked["like"])


class TestAnswers:
    @settings(max_examples=40, deadline=None)
    @given(asked=ANY_QUERY, cut=st.integers(1, 20))
    def test_pages_are_pieces_of_one_answer(
        self, deployment: Deployment, place: Path, asked: Any, cut: int
    ) -> None:
        """Any query, asked again or page by page, gives the same hits in the same order, each once."""
        scenes = Searcher(deployment)
        ids = sorted(p.name for p in (place / "root" / PROJECT).rglob("*.jpg"))
        asked = asked | {"like": [ids[number] for number in asked["like"]]}
        whole = ask(scenes, **asked, limit=30).hits
        pages = ask(scenes, **asked, limit=cut).hits
        pages += ask(scenes, **asked, limit=30 - cut, offset=cut).hits
        assert pages == whole
        assert len({hit.image_id for hit in whole}) == len(whole)
        if not asked["diversity"]:
            scores = [hit.score for hit in whole]
            assert scores == sorted(scores, reverse=True)

    def test_a_text_ranks_by_plain_cosine(self, scenes: Searcher) -> None:
        """One text alone is ordered, and scored, by its own cosine: nothing is added to it."""
        encoder = scenes.deployment.encoder(scenes.deployment.card)
        vector = encoder.encode_texts(["a blue star"]).vectors[0]
        collection = scenes.deployment.collection(PROJECT, scenes.deployment.card)
        nearest = collection.nearest(vector, 10)
        found = ask(scenes, texts=["a blue star"]).hits
        assert [hit.image_id for hit in found] == nearest["image_id"].to_list()
        assert [hit.score for hit in found] == pytest.approx(nearest["score"].to_list(), abs=1e-3)

    def test_confidence_rises_with_the_score(self, scenes: Searcher) -> None:
        """Within one query of one part, a better hit never has less confidence."""
        for asked in ({"texts": ["a green heart"]}, {"like": [an_image(scenes, texts=["a star"])]}):
            sure = [hit.confidence for hit in ask(scenes, **asked, limit=IMAGES).hits]
            assert sure == sorted(sure, reverse=True)
            assert sure[-1] < 0.1
            assert 0.5 < sure[0] <= 1

    def test_a_weight_moves_the_answer_towards_its_part(self, scenes: Searcher) -> None:
        """With all the weight on the text the answer is the text's, with all on the image the image's."""
        image = an_image(scenes, texts=["a blue star"])
        text = Text(text="a red circle", weight=100)
        alone = names(ask(scenes, texts=["a red circle"], limit=5))
        both = ask(scenes, texts=[text], like=[Image(image=image, weight=0.01)], limit=5)
        assert names(both) == alone
        alone = names(ask(scenes, like=[image], limit=5))
        light = Text(text="a red circle", weight=0.01)
        both = ask(scenes, texts=[light], like=[Image(image=image, weight=100)], limit=5)
        assert names(both) == alone

    def test_any_takes_the_best_part(self, scenes: Searcher) -> None:
        """`any` finds what shows one of two things, and some of each."""
        texts = ["a red circle", "a blue star"]
        either = names(ask(scenes, texts=texts, mode="any", limit=6))
        assert all(matches(n, "red", "circle") or matches(n, "blue", "star") for n in either)
        shown = {
            name: [matches(name, "red", "circle"), matches(name, "blue", "star")] for name in either
        }
        assert any(red for red, _ in shown.values())
        assert any(blue for _, blue in shown.values())

    def test_all_adds_up_reciprocal_ranks(self, scenes: Searcher) -> None:
        """`all` orders by the ranks that each part gives alone, whatever its scores are."""
        texts = ["a red circle", "a star"]
        fused: Counter[str] = Counter()
        for text in texts:
            for rank, hit in enumerate(ask(scenes, texts=[text], limit=IMAGES).hits, start=1):
                fused[hit.image_id] += 1 / (60 + rank) / (2 / 61)
        found = ask(scenes, texts=texts, mode="all", limit=IMAGES).hits
        assert {hit.image_id: hit.score for hit in found} == pytest.approx(fused, abs=1e-4)

    def test_diversity_takes_less_of_the_same(self, scenes: Searcher) -> None:
        """The more diversity, the less the hits resemble each other; the first is the best all the same."""
        card = scenes.deployment.card

        def alike(diversity: float) -> float:
            hits = ask(scenes, texts=["a star"], limit=8, diversity=diversity).hits
            ids = pl.Series([hashlib.sha256(Path(hit.path).read_bytes()).digest() for hit in hits])
            _, vectors = scenes.deployment.library(card).vectors(ids)
            return float((vectors @ vectors.T).mean())

        assert alike(1.0) < alike(0.6) < alike(0.0)
        best = ask(scenes, texts=["a star"], limit=1).hits[0]
        assert ask(scenes, texts=["a star"], limit=8, diversity=0.6).hits[0] == best

    def test_a_comma_means_nothing(self, scenes: Searcher) -> None:
        """A prompt with commas is one text; a list of texts is a list."""
        whole = ask(scenes, texts=["a circle, a star"], limit=20)
        pieces = ask(scenes, texts=["a circle", "a star"], limit=20)
        assert [hit.score for hit in whole.hits] != [hit.score for hit in pieces.hits]
        encoder = scenes.deployment.encoder(scenes.deployment.card)
        vector = encoder.encode_texts(["a circle, a star"]).vectors[0]
        nearest = scenes.deployment.collection(PROJECT, scenes.deployment.card).nearest(vector, 20)
        assert [hit.image_id for hit in whole.hits] == nearest["image_id"].to_list()


class TestScope:
    def test_a_dataset_has_those_nested_in_it(self, scenes: Searcher) -> None:
        """A dataset by its name holds what lies deeper, and nothing beside it."""
        groups = ask(scenes, texts=["a star"], datasets=["groups"], limit=IMAGES).hits
        assert {hit.dataset for hit in groups} == {"groups/pairs", "groups/crowds"}
        everything = ask(scenes, texts=["a star"], limit=IMAGES).hits
        single = ask(scenes, texts=["a star"], datasets=["single"], limit=IMAGES).hits
        assert len(groups) + len(single) == len(everything) == IMAGES

    def test_only_the_images_of_a_list(self, scenes: Searcher) -> None:
        """A list of a hundred ids is searched whole, and ids that are gone do no harm."""
        ids = [hit.image_id for hit in ask(scenes, texts=["a star"], limit=IMAGES).hits][:100]
        found = ask(scenes, texts=["a star"], image_ids=[*ids, "gone.jpg"], limit=IMAGES).hits
        assert [hit.image_id for hit in found] == ids

    def test_references_are_left_out_unless_asked_for(self, scenes: Searcher) -> None:
        """An image never finds itself, however it was named, but where it is wanted."""
        image = an_image(scenes, texts=["a star"])
        for given_as in (image, Path(image).name):
            assert image not in {hit.image_id for hit in ask(scenes, like=[given_as]).hits}
            first = ask(scenes, like=[given_as], with_references=True).hits[0]
            assert (first.image_id, first.score) == (image, pytest.approx(1, abs=1e-3))

    def test_a_file_of_the_project_costs_no_forward_pass(
        self, scenes: Searcher, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bytes embedded before are known by their content; others are encoded as the pipeline does."""
        image = an_image(scenes, texts=["a star"])
        data = (place / "root" / PROJECT / image).read_bytes()
        by_id = ask(scenes, like=[image], with_references=True).hits
        with monkeypatch.context() as patch:
            patch.setattr(clip.ClipEncoder, "encode_images", None)
            assert ask(scenes, like=[data]).hits == by_id
        changed = ask(scenes, like=[data + b"\0"]).hits
        assert changed[0].image_id == image
        assert changed[0].score == pytest.approx(1, abs=1e-3)

    @pytest.mark.parametrize("least", [{"threshold": 0.3}, {"confidence": 0.5}])
    def test_a_least_score_or_confidence_cuts_the_answer(
        self, scenes: Searcher, least: dict[str, float]
    ) -> None:
        """What does not reach it is not in the answer, and nothing that does is missing."""
        [(field, value)] = [("score" if k == "threshold" else k, v) for k, v in least.items()]
        every = ask(scenes, texts=["a red circle"], limit=IMAGES).hits
        expected = [hit for hit in every if getattr(hit, field) >= value]
        assert 0 < len(expected) < len(every)
        assert ask(scenes, texts=["a red circle"], limit=IMAGES, **least).hits == expected


class TestRefusals:
    @pytest.mark.parametrize(
        ("asked", "said"),
        [
            ({}, "nothing to search for"),
            ({"not_texts": ["a dog"]}, "nothing to search for"),
            ({"texts": ["a"], "limit": 0}, "limit: Input should be greater than or equal to 1"),
            ({"texts": ["a"], "mode": "most"}, "mode: Input should be 'weighted', 'all' or 'any'"),
            (
                {"texts": ["a"], "mode": "all", "offset": POOL},
                "offset \\+ limit may be 1000 at most",
            ),
            ({"texts": [{"text": "a", "weight": 0}]}, "weight: Input should be greater than 0"),
            ({"texts": ["a"], "colour": "red"}, "colour: Extra inputs are not permitted"),
            ({"like": ["nowhere.jpg"]}, "nowhere.jpg: neither an image id nor a name in scenes"),
            ({"like": [b"no picture"]}, "an image of the query cannot be read: decode"),
            (
                {"texts": ["a"], "datasets": ["x"]},
                "x: no such dataset in the project; it has: groups/",
            ),
            ({"texts": ["a"], "not_texts": ["a", "a", "a"]}, None),
        ],
    )
    def test_a_wrong_question_gets_one_line(
        self, scenes: Searcher, asked: dict[str, Any], said: str | None
    ) -> None:
        """Each names the thing and the reason; odd but possible ones are answered."""
        if said is None:
            assert ask(scenes, **asked).hits
            return
        with pytest.raises(QueryError, match=said) as error:
            ask(scenes, **asked)
        assert "\n" not in str(error.value)

    def test_a_project_that_was_never_synced_is_said_to_be(self, scenes: Searcher) -> None:
        """Searching makes nothing: no folder, no collection."""
        with pytest.raises(CollectionMissing, match="nothing to search, it was never synced"):
            scenes.search("strangers", query_of(texts=["a star"]))
        assert not scenes.deployment.project_home("strangers").root.exists()


class TestCalibration:
    def test_it_is_kept_for_the_next_process_and_made_anew_after_a_sync(
        self, scenes: Searcher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second searcher measures nothing; after a sync, or where the file is damaged, it does again."""
        measured = []
        measure_it = calibration.calibrate
        monkeypatch.setattr(
            calibration, "calibrate", lambda *a: measured.append(a) or measure_it(*a)
        )
        first = ask(scenes, texts=["a star"])
        measured.clear()
        assert ask(Searcher(scenes.deployment), texts=["a star"]) == first
        assert not measured
        home = scenes.deployment.project_home(PROJECT)
        kept = home.space(scenes.deployment.card.space).calibration
        kept.write_bytes(kept.read_bytes()[:1000])
        assert ask(Searcher(scenes.deployment), texts=["a star"]) == first
        assert len(measured) == 1
        sync(ProjectRun(scenes.deployment, PROJECT, "another run"))
        assert ask(scenes, texts=["a star"]) == first
        assert len(measured) == 2

    @pytest.mark.parametrize("images", [1, 2, 5])
    def test_a_project_of_a_few_images_is_searched(
        self, start: Any, root: Path, images: int
    ) -> None:
        """Even one image is found, by text and by image, with a score and a confidence between 0 and 1."""
        draw_many(root / "cats", images)
        run = start()
        sync(run)
        searching = Searcher(run.deployment)
        for query in (Query(texts=["a cat"]), Query(like=["image-0000.png"], with_references=True)):
            hits = searching.search("cats", query).hits
            assert len(hits) == images
            assert all(0 <= hit.confidence <= 1 and -1 <= hit.score <= 1.001 for hit in hits)

    def test_more_images_raise_what_chance_finds(self) -> None:
        """The same best scores mean less in a larger project."""
        best = np.random.default_rng(0).gumbel(0.3, 0.02, 64)
        small, large = (calibration.Best.fitted(best, times) for times in (1, 100))
        score = np.array([0.35])
        assert large.below(score) < small.below(score)
        assert small.location == pytest.approx(0.3, abs=0.02)


def test_views_are_few(scenes: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A searcher of many projects keeps the tables of the last ones only."""
    monkeypatch.setattr(searcher, "VIEWS_KEPT", 2)
    for project in ("a", "b", "c"):
        with pytest.raises(CollectionMissing):
            scenes.search(project, query_of(texts=["a star"]))
    ask(scenes, texts=["a star"])
    assert len(scenes._slots) == 2


def test_relevance_on_unseen_scenes(tmp_path: Path) -> None:
    """Like this but red; a star but nothing red; is there one at all: the promises on unseen scenes."""
    figures = measure(Scenes(tmp_path, 300), references=60)
    assert figures.composed >= 0.85 > figures.composed_max_raw
    assert figures.negative >= 0.9
    assert figures.negative_left_out >= 0.9
    assert figures.confidence_near_misses >= 0.9
    assert figures.confidence_unrelated >= 0.9


def test_the_command_line_takes_the_whole_query(
    deployment: Deployment, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options and a JSON document say the same; a file is an image; a bad document is one line."""
    monkeypatch.setattr(deployments, "open_deployment", lambda: deployment)
    monkeypatch.setattr(logging.getLogger("embed_pipeline"), "handlers", [])

    def found(*options: str) -> Any:
        done = CliRunner().invoke(app, ["search", PROJECT, *options, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    picture = next((place / "root" / PROJECT / "single").glob("*.jpg"))
    (file := tmp_path / "like.jpg").write_bytes(picture.read_bytes())
    options = ["--like", str(file), "--not", "blue", "--dataset", "groups", "--mode", "all"]
    by_options = found("a star", *options, "--limit", "4")
    assert len(by_options) == 4
    document = {
        "texts": ["a star"],
        "like": [f"single/{picture.name}"],
        "not_texts": [{"text": "blue"}],
        "datasets": ["groups"],
        "mode": "all",
        "limit": 4,
    }
    (query := tmp_path / "query.json").write_text(json.dumps(document))
    assert found("--query", str(query)) == by_options
    for text, told in (("{", "not JSON"), ("[]", "not a JSON object"), (None, "cannot be read")):
        query.unlink() if text is None else query.write_text(text)
        refused = CliRunner().invoke(app, ["search", PROJECT, "--query", str(query)]).exception
        assert isinstance(refused, QueryError)
        assert str(refused).startswith(f"--query {query}: {told}")
