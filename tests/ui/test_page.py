"""The page: a face over the library, clicked through in a real browser, by keyboard alone and in a narrow window."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from plait import Assistant, Chat, Embedder, Index, Sample
from plait.cli import main
from plait.search.finding import Found, find
from plait.ui import page as ui
from plait.ui.passed import passing

pytest.importorskip("lancedb")

SAVED = Path(__file__).parents[1] / "fixtures" / "saved"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("page")
    rows: list[Any] = []
    for n, name in enumerate(("red", "green", "<b>blue</b>")):
        Image.new("RGB", (40, 30), ("red", "green", "blue")[n]).save(folder / f"{n}.png")
        rows.append(Sample(id=str(n), image=folder / f"{n}.png", text=name))
    made = Index.create(folder / "i", Embedder("nano"))
    made.add([*rows, Sample(id="note", text="a dog")], show_progress=False)
    return made


def test_cards_escape_what_comes_from_files_and_say_when_nothing_is_found(index: Index) -> None:
    shown = ui.cards_of(index, find(index, words="blue"))
    assert "&lt;b&gt;blue&lt;/b&gt;" in shown and "<b>blue" not in shown and "data:image" in shown
    assert "Nothing found" in ui.cards_of(index, Found([]))


def test_what_is_filled_in_becomes_one_query(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    film = str(tmp_path / "a.png")
    weights = {"text": 1.0, "image": 0.5, "audio": 1.0, "video": 1.0, "not": 0.3}
    assert ui.query_of({"text": "", "image": None}, weights, "night") is None
    query = ui.query_of({"text": "dog", "image": None, "video": film}, weights, "night")
    assert query == {
        "text": ["dog"], "image": [Path(film)], "not": {"text": "night"},
        "weights": {"text": 1.0, "image": 0.5, "not": 0.3},
    }  # fmt: skip
    assert ui.query_of({"text": "dog"}, weights | {"text": 0.0}, None) is None
    (tmp_path / "a.bin").write_bytes(b"no medium")
    with pytest.raises(ValueError, match="another file"):
        ui.query_of({"video": str(tmp_path / "a.bin")}, weights, None)


def test_modules_that_were_entered_are_listed_and_hooks_go() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 3), "unused": nn.Linear(2, 2)})
    with passing(model) as passed:
        model["used"](torch.zeros(1, 2))
        model["used"](torch.zeros(1, 2))
    model["unused"](torch.zeros(1, 2))
    assert [(one.name, one.times, one.parameters) for one in passed] == [("used", 2, 9)]


def test_the_place_that_was_looked_at_is_bright_and_everything_else_dark() -> None:
    frames = [Image.new("RGB", (40, 20), color) for color in ("white", "yellow")]
    shares = np.zeros((2, 2, 4), np.float32)
    shares[0, 0, 0], shares[1, 1, 3] = 0.1, 0.5
    shown, caption = ui.seen_there(frames, shares, "▁dog")
    assert shown.size == (40, 20) and caption == "dog: 60.0%, frame 2"
    assert shown.getpixel((39, 19)) == (255, 255, 0) and shown.getpixel((0, 0)) == (51, 51, 0)
    assert ui.seen_there(frames[:1], shares[:1], " ")[1] == "space: 10.0%"


def test_the_command_wants_something_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui"]) == 2
    assert "--index, --chat or --assist" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(index: Index) -> str:
    pytest.importorskip("gradio", reason="needs the extra ui")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    chat, assistant = Chat(SAVED / "mplug_owl2", max_new_tokens=6), Assistant(SAVED / "mplug2_grounding")
    return ui.launch(ui.Held(index, chat, assistant), port=port, wait=False)


@pytest.fixture(scope="module")
def writing() -> str:
    pytest.importorskip("gradio", reason="needs the extra ui")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    return ui.launch(ui.Held(None, None, Assistant(SAVED / "mplug2_captions")), port=port, wait=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as running:
        made = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_clicked_through(address: str, browser: Any, index: Index, width: int) -> None:
    asked: list[str] = []
    page = browser.new_context(viewport={"width": width, "height": 844}).new_page()
    page.set_default_timeout(90_000)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)

    def fits() -> bool:
        return page.evaluate("document.documentElement.scrollWidth") <= width

    page.get_by_label("Words", exact=True).fill("red")
    page.locator("#search").click()
    page.locator(".plait-found li").first.wait_for()
    assert page.locator(".plait-found li").count() == 4 and fits()
    page.locator("#chosen input").first.check()
    page.get_by_text(".png").last.wait_for()

    page.get_by_role("tab", name="Look").click()
    panel = page.get_by_role("tabpanel").filter(has=page.locator("#look"))
    panel.locator("input[type=file]").first.set_input_files(index.list(limit=1)[0]["path"])
    panel.locator("img").first.wait_for()
    page.locator("#asked textarea, #asked input").first.fill("the guitar")
    page.locator("#look").click()
    page.locator("#modules summary").click()
    assert page.locator("#modules tr").count() > 3 and page.locator("#boxed").is_visible() and fits()
    assert page.locator("#told textarea, #told input").first.input_value().count(",") == 3

    page.get_by_role("tab", name="Chat").click()
    page.locator("#question textarea").fill("what is this?")
    page.locator("#question textarea").press("Enter")
    page.locator("#talk .bot").first.wait_for()
    assert "no answer" not in page.locator("#talk").inner_text() and fits()
    own = address.rstrip("/")
    assert [url for url in asked if not url.startswith((own, "data:", "blob:"))] == []  # nothing from elsewhere


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("width", [1280, 390])
def test_where_an_answer_looked_is_shown(writing: str, browser: Any, index: Index, width: int) -> None:
    page = browser.new_context(viewport={"width": width, "height": 844}).new_page()
    page.set_default_timeout(90_000)
    page.goto(writing)
    page.locator("input[type=file]").first.set_input_files(index.list(limit=1)[0]["path"])
    page.locator("img").first.wait_for()
    page.get_by_label("answer", exact=True).check()
    page.locator("#asked textarea, #asked input").first.fill("what is this?")
    page.locator("#look").click()
    page.locator("#looked img").first.wait_for()
    assert "the whole answer" in page.locator("#looked").inner_text()
    assert page.locator("#looked img").count() > 1
    label, first = page.locator("#looked label").bounding_box(), page.locator("#looked img").first.bounding_box()
    assert label["y"] + label["height"] <= first["y"]  # the label hides nothing of what it names
    page.locator("#modules summary").click()
    assert page.locator("#modules table").evaluate("table => table.scrollWidth <= table.parentElement.clientWidth")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_keyboard_alone_searches_and_shows_a_file(address: str, browser: Any) -> None:
    page = browser.new_page()
    page.set_default_timeout(90_000)
    page.goto(address)
    page.get_by_label("Words", exact=True).wait_for()

    def tab_to(wanted: str, most: int = 60) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("wanted => !!document.activeElement.closest(wanted)", wanted):
                return
        raise AssertionError(f"Tab does not reach {wanted}")

    tab_to("#words")
    page.keyboard.type("green")
    tab_to("#search")
    page.keyboard.press("Enter")
    page.locator(".plait-found li").first.wait_for()
    tab_to("#chosen")
    page.keyboard.press("Space")
    page.get_by_text(".png").last.wait_for()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_other_file_is_shown(index: Index, address: str, tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    (tmp_path / "secret.txt").write_text("secret")
    for path in (tmp_path / "secret.txt", Path(index.list(limit=1)[0]["path"])):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}gradio_api/file={path}", timeout=20)
