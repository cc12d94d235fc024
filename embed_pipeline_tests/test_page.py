"""The search page, driven in a real browser against a real service. None of it makes the console complain."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, JSHandle, Locator, Page, Request, expect

from embed_pipeline.api.app import create_app
from embed_pipeline.deployment import Deployment
from embed_pipeline.errors import StoreLocked
from embed_pipeline.models import clip
from embed_pipeline.project_run import ProjectRun
from embed_pipeline.sample import make_sample
from embed_pipeline.search.searcher import Searcher
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.sync import sync
from embed_pipeline_tests.browser import Told, chromium
from embed_pipeline_tests.conftest import draw_many, load_once
from embed_pipeline_tests.web import served

KEY = "a key of the tests alone"
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 900}

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for all tests of this file."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the projects of this file are."""
    return tmp_path_factory.mktemp("page") / "root"


@pytest.fixture(scope="module")
def settings(browser: Browser, root: Path) -> Iterator[Settings]:
    """Of a synced sample project, one that is behind its source, and one that was never synced."""
    make_sample(root, images=100)
    draw_many(root / "behind", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBED_SOURCE", f"folder:{root}")
        patch.setenv("EMBED_HOME", str(root.parent / "home"))
        patch.setenv("EMBED_MODEL", "demo")
        patch.setattr(clip, "load_encoder", load_once)
        settings = load_settings()
        deployment = Deployment(settings)
        for project in ("behind", "scenes"):
            sync(ProjectRun(deployment, project, "run"))
        deployment.close()
        draw_many(root / "behind" / "new", 3, first_seed=10)
        draw_many(root / "unknown", 2)
        yield settings


@pytest.fixture(scope="module")
def service(settings: Settings) -> Iterator[str]:
    """The address of a service that asks nobody for a key."""
    with serving(settings) as address:
        yield address


@pytest.fixture
def told() -> Iterator[Told]:
    """What the console tells; a test says what it expects of that."""
    told = Told()
    yield told
    assert told.unexpected() == []


@pytest.fixture
def visit(browser: Browser, told: Told) -> Iterator[Open]:
    """Open an address in a new window, with nothing kept from before."""
    contexts = []

    def visit(address: str, size: Any = DESKTOP, **options: Any) -> Page:
        allowed = ["clipboard-read", "clipboard-write"]
        context = browser.new_context(viewport=size, permissions=allowed, **options)
        contexts.append(context)
        context.set_default_timeout(15_000)
        page = context.new_page()
        told.listen(page)
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The address of a service with these settings."""
    deployment = Deployment(settings)
    with served(create_app(deployment)) as address:
        yield f"{address}/"
    deployment.close()


def cards(page: Page) -> Locator:
    """The images to be seen in the grid."""
    return page.locator(".card:not([hidden]):not(.frame)")


def names(page: Page) -> list[str]:
    """Their names, once they are there."""
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    expect(cards(page).first).to_be_visible()
    return cards(page).locator(".name").all_inner_texts()


def slide(page: Page, value: int) -> None:
    """Move the slider of least confidence."""
    page.get_by_label("Least confidence").fill(str(value))


def hits(address: str, **query: Any) -> list[dict[str, Any]]:
    """What the service finds, asked without the page."""
    body = {"project": "scenes", "query": query}
    found: list[dict[str, Any]] = httpx.post(f"{address}v1/search", json=body).json()["hits"]
    return found


def sent(request: Request) -> dict[str, Any]:
    """The query of a search that the page asked for."""
    body = request.post_data_json
    assert body
    query: dict[str, Any] = body["query"]
    return query


def test_a_prompt_shows_what_is_sure_enough_and_the_address_can_be_shared(
    service: str, visit: Open
) -> None:
    """Choosing a project and typing a prompt shows the hits with thumbnails; so does its address alone."""
    page = visit(service)
    page.get_by_role("button", name=re.compile("^scenes")).click()
    page.get_by_label("Text to find").fill("a red circle")
    page.keyboard.press("Enter")

    found = hits(service, texts=["a red circle"], limit=48)
    sure = [hit["name"] for hit in found if hit["confidence"] >= 0.5]
    assert names(page) == sure
    summary = f"{len(sure)} images; {48 - len(sure)} less sure are hidden."
    expect(page.locator("#summary")).to_have_text(summary)
    expect(page.locator("#project-state")).to_have_text("100 images, all can be searched")
    expect(cards(page).first.locator("img")).to_be_visible()
    widths = page.evaluate("[...document.querySelectorAll('.card img')].map(i => i.naturalWidth)")
    assert widths
    assert all(width > 0 for width in widths)

    assert names(visit(page.url)) == sure


def test_the_slider_filters_at_once_and_says_when_nothing_matches(
    service: str, visit: Open
) -> None:
    """Moving the slider asks the service nothing; where all are hidden, that is said, and can be undone."""
    page = visit(f"{service}?project=scenes&text=a+blue+star")
    shown = len(names(page))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    slide(page, 100)
    expect(page.get_by_role("heading", name="Nothing here matches")).to_be_visible()
    expect(cards(page)).to_have_count(0)
    page.get_by_role("button", name="Show the nearest 48 anyway").click()
    expect(cards(page)).to_have_count(48)
    slide(page, 50)
    expect(cards(page)).to_have_count(shown)
    assert not [url for url in asked if "v1/search" in url]


def test_a_file_is_a_reference_picked_or_dropped(service: str, visit: Open, root: Path) -> None:
    """A picked image finds its like, itself first; a dropped one can be left out; both can be removed."""
    page = visit(f"{service}?project=scenes&confidence=0")
    wanted, other = sorted((root / "scenes" / "single").iterdir())[:2]
    with page.expect_file_chooser() as choosing:
        page.get_by_role("button", name="Like an image", exact=True).click()
    choosing.value.set_files(wanted)
    assert names(page)[0] == wanted.name
    expect(page.get_by_alt_text(f"Like this image: {wanted.name}")).to_be_visible()

    with page.expect_request("**/v1/search") as asking:
        drop(page, other, "unlike")
    query = sent(asking.value)
    assert [len(query[side]) for side in ("like", "unlike")] == [1, 1]
    with page.expect_request("**/v1/search") as asking:
        paste(page, other)
    assert len(sent(asking.value)["like"]) == 2
    names(page)
    page.go_back()
    expect(page.locator(".chip")).to_have_count(2)
    names(page)
    page.get_by_role("button", name=f"Remove: Not like this image: {other.name}").click()
    page.get_by_role("button", name=f"Remove: Like this image: {wanted.name}").click()
    expect(cards(page)).to_have_count(0)


def drop(page: Page, file: Path, side: str) -> None:
    """Drop a file on one half of the page."""
    transfer = transfer_of(page, file)
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    page.dispatch_event(f"#drop [data-side={side}]", "drop", {"dataTransfer": transfer})


def paste(page: Page, file: Path) -> None:
    """Paste a file."""
    script = """clipboardData => document.body.dispatchEvent(
        new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}))"""
    page.evaluate(script, transfer_of(page, file))


def transfer_of(page: Page, file: Path) -> JSHandle:
    """What carries a file from another program."""
    return page.evaluate_handle(
        """async ([bytes, name]) => {
            const transfer = new DataTransfer();
            const file = new File([new Uint8Array(bytes)], name, {type: "image/jpeg"});
            transfer.items.add(file);
            return transfer;
        }""",
        [list(file.read_bytes()), file.name],
    )


def test_more_like_this_adds_an_image_of_the_grid_and_back_takes_it_out(
    service: str, visit: Open
) -> None:
    """The buttons of a result add it to the query by its id; the browser's Back undoes that."""
    page = visit(f"{service}?project=scenes&text=a+red+circle&confidence=0")
    before = names(page)
    cards(page).first.hover()
    page.get_by_role("button", name=f"More like this: {before[0]}").click()
    expect(page.get_by_alt_text(re.compile("^Like this image"))).to_be_visible()
    expect(page.get_by_role("group", name="Several texts or images")).to_be_visible()
    after = names(page)
    assert before[0] not in after
    assert "like=" in page.url
    page.go_back()
    expect(cards(page).locator(".name").first).to_have_text(before[0])
    assert names(page) == before


def test_texts_are_added_and_left_out(service: str, visit: Open) -> None:
    """Several texts and negative texts are sent as they were typed, commas and all."""
    page = visit(f"{service}?project=scenes&text=red,+round&confidence=0")
    names(page)
    page.get_by_role("button", name="Another text").click()
    page.keyboard.type("a star")
    page.get_by_role("button", name="Not this text").click()
    page.keyboard.type("blue")
    with page.expect_request("**/v1/search") as asking:
        page.keyboard.press("Enter")
    query = sent(asking.value)
    assert query["texts"] == ["red, round", "a star"]
    assert query["not_texts"] == ["blue"]
    with page.expect_request("**/v1/search") as asking:
        page.get_by_label("all must match").check()
    assert sent(asking.value)["mode"] == "all"


def test_a_dataset_takes_in_those_nested_in_it(service: str, visit: Open) -> None:
    """Only images of the chosen dataset and those inside it are shown."""
    page = visit(f"{service}?project=scenes&text=a+red+circle&confidence=0")
    names(page)
    with page.expect_response("**/v1/search"):
        page.get_by_role("checkbox", name="groups", exact=True).check()
    expect(page.get_by_role("checkbox", name="pairs", exact=True)).to_be_disabled()
    names(page)
    datasets = set(cards(page).locator(".dataset").all_inner_texts())
    assert datasets == {"groups/pairs", "groups/crowds"}
    page.get_by_role("button", name="All datasets").click()
    expect(cards(page).filter(has_text="single").first).to_be_visible()


def test_a_diverse_selection_is_shown_with_its_coverage(service: str, visit: Open) -> None:
    """So many images as asked for, no more of a dataset than its quota, and how they cover all others."""
    page = visit(f"{service}?project=scenes")
    page.get_by_label("Diverse selection").check()
    page.get_by_label("How many images").fill("8")
    page.get_by_label("At most so many from single").fill("2")
    page.get_by_role("button", name="Choose images").click()
    expect(cards(page)).to_have_count(8)
    expect(page.locator("#summary")).to_have_text("8 images chosen from 100.")
    assert cards(page).locator(".dataset").all_inner_texts().count("single") <= 2
    coverage = page.locator("#coverage")
    expect(coverage).to_contain_text("Against a random choice of as many")
    for name in ("Mean distance", "Largest gap", "Clusters reached"):
        expect(coverage.get_by_role("group", name=name)).to_contain_text("random")
    shared = visit(page.url)
    assert names(shared) == names(page)


def test_the_larger_view_is_driven_by_keys(service: str, visit: Open) -> None:
    """Enter opens an image, arrows go on, Escape closes; the focus is then at the image last seen."""
    page = visit(f"{service}?project=scenes&text=a+red+circle&confidence=0")
    listed = names(page)
    page.locator(".card .open").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    view = page.get_by_role("dialog")
    expect(view.get_by_role("heading")).to_have_text(listed[1])
    expect(view.get_by_alt_text(listed[1])).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(view.get_by_role("heading")).to_have_text(listed[2])
    expect(view).to_contain_text("3 of 48")
    view.get_by_role("button", name="Copy the id").click()
    expect(page.get_by_text("Copied the id.")).to_be_visible()
    for _ in range(12):
        page.keyboard.press("Tab")
        inside = (
            "document.activeElement === document.body || !!document.activeElement.closest('dialog')"
        )
        assert page.evaluate(inside)
    page.keyboard.press("Escape")
    expect(view).to_be_hidden()
    expect(page.locator(".card .open").nth(2)).to_be_focused()


def test_ids_are_copied(service: str, visit: Open) -> None:
    """Ids of the selected images, or of all that are shown, as JSON or as lines."""
    page = visit(f"{service}?project=scenes&text=a+red+circle&confidence=0")
    names(page)
    ids = [hit["image_id"] for hit in hits(service, texts=["a red circle"], limit=48)]
    page.get_by_role("button", name="Copy 48 ids").click()
    expect(page.get_by_text("Copied the ids of 48 images.")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()").splitlines() == ids
    boxes = page.get_by_role("checkbox", name=re.compile("^Select "))
    boxes.nth(1).check()
    boxes.nth(3).click(modifiers=["Shift"])
    page.get_by_label("Form of the ids").select_option("json")
    page.get_by_role("button", name="Copy 3 ids").click()
    expect(page.get_by_text("Copied the ids of 3 images.")).to_be_visible()
    assert json.loads(page.evaluate("navigator.clipboard.readText()")) == ids[1:4]


def test_more_can_be_loaded_until_all_are_there(service: str, visit: Open) -> None:
    """Each page goes on where the one before ended, and the last one offers no more."""
    page = visit(f"{service}?project=scenes&text=a+red+circle&confidence=0")
    more = page.get_by_role("button", name="Load more")
    for count in (96, 100):
        more.click()
        expect(cards(page)).to_have_count(count)
    expect(more).to_be_hidden()
    assert len(set(names(page))) == 100


def test_an_error_is_told_in_the_services_words(
    service: str, visit: Open, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went wrong is said in one line, and trying again shows the images once it works."""
    told.expected = ("status of 503", "status of 404")
    with monkeypatch.context() as patch:

        def locked(*_: object) -> None:
            raise StoreLocked("scenes: another process holds it; try again")

        patch.setattr(Searcher, "search", locked)
        page = visit(f"{service}?project=scenes&text=a+red+circle")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("scenes: another process holds it; try again")
    alert.get_by_role("button", name="Try again").click()
    assert names(page)
    page.goto(f"{service}?project=unknown&text=a+red+circle")
    expect(alert).to_contain_text("embed-pipeline sync unknown")


def test_a_project_says_how_far_it_is(service: str, visit: Open) -> None:
    """The list and the top of the page tell what can be searched, and what changed since."""
    page = visit(f"{service}?project=behind")
    words = "4 of 7 images can be searched · changed since it was indexed"
    expect(page.locator("#project-state")).to_have_text(words)
    page.get_by_role("button", name="Project behind").click()
    rows = page.locator("#project-list button")
    expect(rows).to_have_count(3)
    expect(rows.nth(2)).to_contain_text("not indexed yet")
    rows.nth(1).click()
    expect(page.locator("#project-state")).to_have_text("100 images, all can be searched")
    assert "project=scenes" in page.url


def test_a_key_is_asked_for_and_kept_in_the_tab_only(
    settings: Settings, visit: Open, told: Told
) -> None:
    """A wrong key is told; with the right one all goes on, pictures too; another window asks again."""
    told.expected = ("status of 401",)
    with serving(settings.model_copy(update={"api_key": KEY})) as address:
        page = visit(f"{address}?project=scenes&text=a+red+circle&confidence=0")
        form = page.get_by_role("dialog")
        form.get_by_label("API key").fill("a wrong key of the tests")
        form.get_by_role("button", name="Go on").click()
        expect(form).to_contain_text("the API key is not the one")
        form.get_by_label("API key").fill(KEY)
        form.get_by_role("button", name="Go on").click()
        assert len(names(page)) == 48
        expect(cards(page).first.locator("img")).to_be_visible()
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        assert len(names(page)) == 48
        expect(visit(page.url).get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize("address", ["", "&text=a+red+circle&like=x&not=star", "&task=diverse"])
def test_nothing_is_wider_than_a_phone(service: str, visit: Open, told: Told, address: str) -> None:
    """At 360 pixels nothing has to be scrolled sideways, with the filters open, and everything has a name."""
    told.expected = ("status of 400", "status of 404")  # there is no image x
    page = visit(f"{service}?project=scenes{address}", PHONE, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Filters").click()
    expect(page.get_by_role("checkbox", name="groups", exact=True)).to_be_visible()
    page.wait_for_load_state("networkidle")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert nameless(page) == []


def nameless(page: Page) -> list[str]:
    """Roles of controls that a screen reader has no name for."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "textbox", "searchbox", "slider", "checkbox", "radio", "combobox", "link"}
    roles = [
        (node.get("role", {}).get("value"), node.get("name", {}).get("value"))
        for node in tree
        if not node["ignored"]
    ]
    return [role for role, name in roles if role in controls | {"spinbutton"} and not name]
