"""The shipped demo model does what its card says, and the sample project shows what its names say."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from embed_pipeline.models.demo.evaluate import measure
from embed_pipeline.models.demo.scenes import (
    HELD_OUT_PAIRS,
    PAIRS,
    SEEN_PAIRS,
    describe,
    make_scene,
    render,
)
from embed_pipeline.models.demo.train import MODEL_DIR, make_tokenizer, train
from embed_pipeline.sample import DEMO_QUERIES, make_sample, matches


def test_the_shipped_model_finds_what_it_is_asked_for() -> None:
    """On unseen scenes "a COLOUR SHAPE" is answered rightly, and a caption finds its own scene."""
    figures = measure(MODEL_DIR)
    assert figures.precision >= 0.9
    assert figures.captions >= 0.7


def test_the_shipped_weights_are_small() -> None:
    """The weights take at most 8 MB, so that the package stays easy to install."""
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 8_000_000


def test_training_is_deterministic(tmp_path: Path) -> None:
    """The same seed and steps give the same weights."""
    for name in ("one", "two"):
        train(2, 5, tmp_path / name)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(one[name].equal(two[name]) for name in one)


def test_every_text_has_one_end() -> None:
    """CLIP pools at the first end token: no character, known or not, becomes one."""
    tokenizer = make_tokenizer(np.random.default_rng(0))
    for text in ("a red circle", "!", "7 é", "日本", "🙂", ""):
        ids = tokenizer(text)["input_ids"]
        assert ids.count(tokenizer.eos_token_id) == 1, text
        assert ids[-1] == tokenizer.eos_token_id, text


def test_held_out_pairs_are_never_drawn_for_training() -> None:
    """A default scene shows only seen pairs; each colour and shape of a held-out pair is seen."""
    rng = np.random.default_rng(0)
    shown = {(item.colour, item.shape) for _ in range(500) for item in make_scene(rng).objects}
    assert shown == set(SEEN_PAIRS)
    assert set(PAIRS) == set(SEEN_PAIRS) | set(HELD_OUT_PAIRS)
    for place in (0, 1):
        assert {pair[place] for pair in HELD_OUT_PAIRS} <= {pair[place] for pair in SEEN_PAIRS}


def test_a_seed_fixes_scene_picture_and_caption() -> None:
    """Two generators of one seed give the same scene, the same pixels and the same words."""
    (one, words), (two, same_words) = (
        (make_scene(rng), describe(make_scene(rng), rng))
        for rng in (np.random.default_rng(3), np.random.default_rng(3))
    )
    assert one == two
    assert words == same_words
    assert render(one, 90, 64).tobytes() == render(two, 90, 64).tobytes()


def _files(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_the_sample_is_reproducible(tmp_path: Path) -> None:
    """Two folders made with one seed hold the same names and bytes."""
    for name in ("one", "two"):
        make_sample(tmp_path / name, images=12)
    one, two = _files(tmp_path / "one"), _files(tmp_path / "two")
    assert len(one) == 12
    assert {name: content for name, (content, _) in one.items()} == {
        name: content for name, (content, _) in two.items()
    }


def test_making_the_sample_again_only_adds_what_is_missing(tmp_path: Path) -> None:
    """A second call touches no file that is there, and completes a first that was cut short."""
    make_sample(tmp_path, images=12)
    whole = _files(tmp_path)
    victim = next(tmp_path.rglob("*.jpg"))
    lost = str(victim.relative_to(tmp_path))
    victim.rename(victim.with_suffix(".part"))
    make_sample(tmp_path, images=12)
    again = _files(tmp_path)
    assert again.keys() == whole.keys()
    assert again[lost][0] == whole[lost][0]
    assert {n: f for n, f in again.items() if n != lost} == {
        n: f for n, f in whole.items() if n != lost
    }


def test_the_sample_answers_the_demo(tmp_path: Path) -> None:
    """Each of the demo's queries has eight right answers or more, in three datasets."""
    make_sample(tmp_path)
    pictures = list(tmp_path.rglob("*.jpg"))
    assert len(pictures) == 400
    assert {str(path.parent.relative_to(tmp_path / "scenes")) for path in pictures} == {
        "single",
        "groups/pairs",
        "groups/crowds",
    }
    for colour, shape in DEMO_QUERIES:
        assert sum(matches(path.name, colour, shape) for path in pictures) >= 8


@pytest.mark.parametrize(
    ("colour", "shape", "expected"),
    [
        ("red", "circle", True),
        ("blue", "star", True),
        ("red", "star", False),
        ("blue", "circle", False),
        ("white", "circle", False),
    ],
)
def test_a_file_name_tells_the_truth(colour: str, shape: str, *, expected: bool) -> None:
    """A colour counts only with its own shape."""
    name = "red-circle-blue-star-on-white-0007.jpg"
    assert matches(name, colour, shape) is expected
