"""The demo as `make demo` runs it, twice."""

from pathlib import Path

from PIL import Image

from embed_pipeline_tests.processes import answer, environment


def test_the_demo_finds_what_it_searches_for_and_embeds_nothing_twice(tmp_path: Path) -> None:
    """Three text searches with at least four of five right hits, one by image, a sheet of all of them."""
    env = environment(
        EMBED_HOME=tmp_path, EMBED_SOURCE="folder:/of/somebody", EMBED_MODEL="another"
    )
    first = answer("demo", env=env)
    assert (first["sync"]["status"], first["sync"]["embed"]) == ("success", 400)
    *texts, image = first["searches"]
    assert len(texts) == 3
    assert all(found["right"] >= 4 for found in texts)
    assert image["hits"]
    with Image.open(first["sheet"]) as sheet:
        assert sheet.height > 4 * 160

    again = answer("demo", env=env)
    assert (again["sync"]["embed"], again["sync"]["unchanged"]) == (0, 400)
    assert again["searches"] == first["searches"]
