"""The page: tabs over `plait.search`, `Chat` and `Assistant`, built of gradio's components.

what a person types, shows or says -> one call of the library -> cards, words, boxes -> the browser

Only what a person uploads and rows of the index reach the browser, each file by itself: no folder is opened to it.
Everything has a label and is reached by Tab, and columns stand below one another in a narrow window.
"""

from __future__ import annotations

import hashlib
import html
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from plait.embedder.parts import parts_of
from plait.errors import import_extra
from plait.media import kind_of
from plait.media.image import load_image
from plait.media.video import load_video
from plait.modalities import names
from plait.processing.videos import chooser
from plait.report.page import picture_uri
from plait.search.finding import Found, find
from plait.search.page import clock
from plait.search.thumbnails import thumbnail
from plait.ui.passed import Passed, passing

if TYPE_CHECKING:
    from PIL.Image import Image

    from plait.assistant import Assistant
    from plait.chat import Chat
    from plait.search.hits import Hit
    from plait.search.index import Index

_STYLE = Path(__file__).with_name("style.css")
_TASKS = ("caption", "answer", "ground", "classify", "match")
_ASKED = {
    "caption": "", "answer": "Question", "ground": "Phrase to find", "classify": "Labels, divided by commas",
    "match": "Text that may fit",
}  # fmt: skip
"""Task -> what its words are."""
_PIECES, _SIDE = 24, 512
"""Pieces of an answer that are shown beside the whole of it, and pixels of the longer side of their pictures."""


class Held(NamedTuple):
    """What the page is over; None where there is none, and then no tab."""

    index: Index | None = None
    chat: Chat | None = None
    assistant: Assistant | None = None


def launch(held: Held, *, host: str = "127.0.0.1", port: int = 7860, wait: bool = True) -> str:
    """Show the page.

    Args:
        held: what it is over.
        host, port: where it listens; it asks nobody for a name, so other machines are a decision of whoever starts it.
        wait: until it is interrupted; False returns at once, and a thread serves.

    Returns:
        The address.
    """
    gradio = import_extra("gradio")
    page = build(held)
    fonts = ["system-ui", "sans-serif"]  # of the machine: the theme's own are fetched from elsewhere
    _, address, _ = page.queue(default_concurrency_limit=1).launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, show_error=True,
        theme=gradio.themes.Base(font=fonts, font_mono=["monospace"], primary_hue="emerald"), css=_STYLE.read_text(),
        footer_links=[], max_file_size="512mb", ssr_mode=False, pwa=False, enable_monitoring=False,
    )  # fmt: skip
    print(f"page at {address}", flush=True)
    if wait:
        page.block_thread()
    return address


def build(held: Held) -> Any:
    """The page as gradio's `Blocks`, not shown yet; held: what it is over."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing of a person's leaves the machine
    gradio = import_extra("gradio")
    with gradio.Blocks(title="Plait", analytics_enabled=False, fill_width=True) as page:
        gradio.HTML("<h1 class='plait-head'>Plait</h1>")
        with gradio.Tabs():
            if held.index is not None:
                with gradio.Tab("Search"):
                    _search_tab(gradio, held.index)
            if held.chat is not None:
                with gradio.Tab("Chat"):
                    _chat_tab(gradio, held.chat)
            if held.assistant is not None:
                with gradio.Tab("Look"):
                    _look_tab(gradio, held.assistant)
    return page


def _search_tab(gradio: Any, index: Index) -> None:
    """Words, picture, sound and film of a query with their weights; cards, and the file of the one that is chosen."""
    takes = [kind for kind in names() if kind in index.description["modalities"]]
    with gradio.Row():
        with gradio.Column(scale=1, min_width=300):
            given = {"text": gradio.Textbox(label="Words", placeholder="a dog in the snow", elem_id="words")}
            if "image" in takes:
                sources = ["upload", "webcam"]
                given["image"] = gradio.Image(label="Picture", type="filepath", height=160, sources=sources)
            # closed, so that results are near in a narrow window
            with gradio.Accordion("Sound, film, and what to move away from", open=False):
                if "audio" in takes:
                    given["audio"] = gradio.Audio(label="Sound", type="filepath", sources=["upload", "microphone"])
                if "image" in takes or "video" in takes:
                    given["video"] = gradio.File(label="Film, or any other file", type="filepath", height=140)
                without = gradio.Textbox(label="Not", placeholder="what to move away from")
            with gradio.Accordion("Weights and options", open=False):
                weights = {name: gradio.Slider(0, 2, 1, step=0.1, label=f"Weight of {name}") for name in given}
                weights["not"] = gradio.Slider(0, 1, 0.5, step=0.1, label="Weight of not")
                words = gradio.Textbox(label="Words in names, captions, dates, places", elem_id="noted")
                is_strict = gradio.Checkbox(label="Nothing found is an answer")
                k = gradio.Slider(1, 100, 12, step=1, label="Results")
            ask = gradio.Button("Search", variant="primary", elem_id="search")
        with gradio.Column(scale=2, min_width=300):
            cards = gradio.HTML(elem_id="found")
            chosen = gradio.Radio([], label="Show the file of a result", visible=False, elem_id="chosen")
            picture = gradio.Image(
                visible=False, label="Picture", interactive=False, buttons=["download", "fullscreen"]
            )
            player = gradio.Audio(visible=False, label="Sound", interactive=False)
            film = gradio.Video(visible=False, label="Film", interactive=False)
            file = gradio.File(visible=False, label="The file itself", interactive=False)
    order, lent = list(given), tempfile.TemporaryDirectory(prefix="plait-page-")

    def search(*values: Any) -> tuple[Any, Any]:
        media = dict(zip(order, values[: len(order)], strict=True))
        rest = list(values[len(order) :])
        shares = dict(zip(weights, rest[: len(weights)], strict=True))
        without_, words_, strict_, k_ = rest[len(weights) :]
        try:
            query = query_of(media, shares, without_)
            found = find(index, query, int(k_), words=words_ or None, min_score="auto" if strict_ and query else None)
        except (ValueError, OSError) as error:
            raise gradio.Error(str(error), duration=None) from error
        shown = [(f"{n}. {_name(hit)}", hit.path) for n, hit in enumerate(found.hits, 1) if hit.path]
        return cards_of(index, found), gradio.Radio(shown, value=None, visible=bool(shown))

    def show(path: str | None) -> tuple[Any, ...]:
        # what the browser sends back may be anything: only files of rows are shown
        is_row = path is not None and bool(index.list({"path": path}, limit=1)) and os.path.isfile(path)
        place = _lent(path, lent) if path and is_row else None
        kind = kind_of(place) if place else None
        made = {"image": gradio.Image, "audio": gradio.Audio, "video": gradio.Video}
        shown = [one(place if kind == name else None, visible=kind == name) for name, one in made.items()]
        return (*shown, gradio.File(place, visible=is_row))

    inputs = [*given.values(), *weights.values(), without, words, is_strict, k]
    for event in (ask.click, given["text"].submit, words.submit):
        event(search, inputs, [cards, chosen], api_name=False)
    chosen.change(show, chosen, [picture, player, film, file], api_name=False)


def _lent(path: str, folder: tempfile.TemporaryDirectory[str]) -> str:
    """A file under a place of the page's own, from which gradio may read; its folder is not opened to the browser."""
    place = Path(folder.name, hashlib.sha256(path.encode()).hexdigest()[:16], Path(path).name)
    if not place.exists() or place.stat().st_mtime_ns != os.stat(path).st_mtime_ns:
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(path, place)  # costs nothing, however long the film
        except OSError:  # another disk, or one without links
            shutil.copy2(path, place)
    return str(place)


def query_of(media: Mapping[str, Any], weights: Mapping[str, float], without: str | None) -> dict[str, Any] | None:
    """What was filled in as one item for an embedder; None where nothing was.

    Args:
        media: words, and paths of uploaded files by modality; a video may be any kind of file, which is looked into.
        weights: by modality, and of `not`; 0 leaves a part out.
        without: words to move away from.

    Raises:
        ValueError: for a file of no kind known here.
    """
    query: dict[str, Any] = {}
    for name, value in media.items():
        if not value or not weights.get(name, 1.0):
            continue
        kind = name if name != "video" else kind_of(value)
        if kind is None:
            raise ValueError(f"expected a picture, sound or film, got {Path(value).name}; choose another file")
        query.setdefault(kind, []).append(value if kind == "text" else Path(value))
    if not query:
        return None
    if without and weights.get("not", 0.5):
        query["not"] = {"text": without}
    query["weights"] = {name: weights[name] for name in query if name in weights}
    parts_of(query)  # says what is wrong with it before any model is asked
    return query


def cards_of(index: Index, found: Found) -> str:
    """Hits as cards, HTML in which everything that comes from files is escaped; or that there are none, and why."""
    note = ""
    if found.floors is not None:
        share = f"{found.floors.false_alarms:.0%}"
        note = f"<p>Hits below what {share} of searches for absent things reach are left out.</p>"
    if not found.hits:
        return f"<p class='plait-none' role='status'>Nothing found.</p>{note}"
    listed = "".join(f"<li>{_card(index, hit, place)}</li>" for place, hit in enumerate(found.hits, 1))
    return f"<p role='status'>{len(found.hits)} found</p><ol class='plait-found'>{listed}</ol>{note}"


def _card(index: Index, hit: Hit, place: int) -> str:
    """One hit: a small picture or a sign, its name, score and kind."""
    small = thumbnail(index, hit)
    name = html.escape(_name(hit))
    if small is not None:
        view = f"<img src='{picture_uri(load_image(small), quality=80)}' alt='{name}' loading='lazy'>"
    else:
        view = f"<span class='plait-sign'>{html.escape(hit.caption or hit.modality)}</span>"
    told = [hit.modality, clock(hit), "the file is gone" if hit.is_gone else ""]
    below = html.escape(" · ".join(part for part in told if part))
    return (
        f"<figure>{view}<figcaption><b>{place}. {name}</b><span>{hit.score:.3f} · {below}</span></figcaption></figure>"
    )


def _name(hit: Hit) -> str:
    """What a hit is called: its caption, the name of its file, or its id."""
    return (hit.caption or (Path(hit.path).name if hit.path else hit.id))[:80]


def _chat_tab(gradio: Any, chat: Chat) -> None:
    """A conversation of each visitor's own, with pictures and films, written as it comes."""
    state = gradio.State()
    talk = gradio.Chatbot(label="Conversation", height=460, elem_id="talk", buttons=["copy"])
    box = gradio.MultimodalTextbox(
        label="Question", placeholder="ask, and add pictures or films", file_count="multiple", elem_id="question",
        file_types=["image", "video"], stop_btn=True, sources=["upload"],
    )  # fmt: skip
    again = gradio.Button("New conversation")

    def answer(asked: dict[str, Any], shown: list[Any], mine: Chat | None) -> Iterator[tuple[Any, ...]]:
        mine = mine or chat.another()
        files = [Path(file) for file in asked["files"]]
        kinds = {file: kind_of(file) for file in files}
        shown = [*shown, *({"role": "user", "content": {"path": str(file)}} for file in files)]
        shown = [*shown, {"role": "user", "content": asked["text"]}, {"role": "assistant", "content": ""}]
        yield shown, gradio.MultimodalTextbox(None, interactive=False), mine
        try:
            pictures = [file for file in files if kinds[file] == "image"]
            films = [file for file in files if kinds[file] == "video"]
            if odd := next((file for file in files if kinds[file] not in ("image", "video")), None):
                raise ValueError(f"expected pictures or films, got {odd.name}; choose another file")
            for piece in mine.stream(asked["text"], pictures, films):
                shown[-1]["content"] += piece
                yield shown, gradio.MultimodalTextbox(), mine
        except (ValueError, OSError) as error:
            shown[-1]["content"] += f"(no answer: {error})"
        yield shown, gradio.MultimodalTextbox(interactive=True), mine

    box.submit(answer, [box, talk, state], [talk, box, state], api_name=False)
    again.click(lambda: ([], None), None, [talk, state], api_name=False)


def _look_tab(gradio: Any, assistant: Assistant) -> None:
    """One picture or film and one task: words, a box drawn, labels; where the answer looked, and what it passed."""
    tasks = [task for task in _TASKS if task in assistant.tasks or (task == "match" and "rank" in assistant.tasks)]
    with gradio.Row():
        with gradio.Column(scale=1, min_width=300):
            picture = gradio.Image(label="Picture", type="filepath", height=220, sources=["upload", "webcam"])
            film = gradio.File(label="Film", type="filepath", height=140, file_types=["video"])
            task = gradio.Radio(tasks, value=tasks[0] if tasks else None, label="Task", elem_id="task")
            words = gradio.Textbox(label=_ASKED[tasks[0]] or "Words" if tasks else "Words", elem_id="asked")
            ask = gradio.Button("Look", variant="primary", elem_id="look")
        with gradio.Column(scale=2, min_width=300):
            told = gradio.Textbox(label="Answer", interactive=False, elem_id="told")
            boxed = gradio.AnnotatedImage(label="Where it is", visible=False, elem_id="boxed")
            shares = gradio.Label(label="How likely", visible=False)
            places = gradio.Gallery(
                label="Where the answer looked, and each of its pieces", visible=False, elem_id="looked", columns=3,
                height=360, object_fit="contain", interactive=False,
            )  # fmt: skip
            modules = gradio.HTML(label="Modules passed", elem_id="modules")

    def look(image: str | None, clip: str | None, what: str, text: str) -> tuple[Any, ...]:
        item = clip or image
        if item is None:
            raise gradio.Error("expected a picture or a film, got none; add one")
        try:
            with passing(assistant.model) as passed:
                value = _asked(assistant, what, Path(item), text)
            # an answer without words looked nowhere
            is_written = what in ("caption", "answer") and bool(value.strip())
            looked = _looked(assistant, Path(item), value, text if what == "answer" else "") if is_written else []
        except (ValueError, OSError) as error:
            raise gradio.Error(str(error), duration=None) from error
        where, likely = None, None
        if what == "ground":
            where = (load_image(item), [(tuple(round(edge) for edge in value), text)])
            value = ", ".join(f"{edge:.0f}" for edge in value)
        elif what == "classify":
            likely = {label: share for label, share in value[:10]}
            value = value[0][0]
        elif what == "match":
            value = f"{value:.0%}"
        return (
            value, gradio.AnnotatedImage(where, visible=where is not None), gradio.Label(likely, visible=bool(likely)),
            gradio.Gallery(looked, visible=bool(looked)), passed_table(passed),
        )  # fmt: skip

    task.change(lambda what: gradio.Textbox(label=_ASKED[what] or "Words"), task, words, api_name=False)
    for event in (ask.click, words.submit):
        event(look, [picture, film, task, words], [told, boxed, shares, places, modules], api_name=False)


def _asked(assistant: Assistant, task: str, item: Path, text: str) -> Any:
    """The value of one task over one item. Raises ValueError as the assistant does."""
    if task == "caption":
        return assistant.caption(item)
    if task == "classify":
        return assistant.classify(item, [one.strip() for one in text.split(",") if one.strip()] or None)
    return getattr(assistant, task)(item, text)


def _looked(assistant: Assistant, item: Path, said: str, question: str) -> list[tuple[Image, str]]:
    """Pictures of where an answer looked, and where each of its first pieces did, with their captions."""
    looked = assistant.attention(item, said, question)
    if kind_of(item) == "video":
        count = assistant.skills.num_frames
        shown = load_video(item, count, choose=chooser(assistant.frames, count)).frames
    else:
        shown = [load_image(item)]
    named = [("the whole answer", looked.maps.mean(0)), *zip(looked.pieces, looked.maps, strict=True)]
    return [seen_there(shown, shares, name) for name, shares in named[: 1 + _PIECES]]


def seen_there(frames: Sequence[Image], shares: np.ndarray, name: str) -> tuple[Image, str]:
    """The frame that was looked at most, dark where nothing looked.

    Args:
        frames: of the video, or the one image.
        shares: (steps, rows, columns) of `plait.assistant.Looked`; a step may span several frames.
        name: of what looked.

    Returns:
        An image of at most `_SIDE` pixels a side, and its caption with the share of attention that is on the frames.
    """
    from PIL import Image as Pictures

    step = int(shares.sum((1, 2)).argmax())
    number = step * len(frames) // len(shares)
    frame = frames[number].convert("RGB")
    frame.thumbnail((_SIDE, _SIDE))
    light = shares[step] / max(float(shares[step].max()), 1e-12)
    mask = Pictures.fromarray((255 * light).astype(np.uint8)).resize(frame.size, Pictures.Resampling.BILINEAR)
    dark = Pictures.fromarray((np.asarray(frame) * 0.2).astype(np.uint8))
    place = f", frame {number + 1}" if len(frames) > 1 else ""
    caption = f"{name.replace('▁', ' ').strip() or 'space'}: {shares.sum():.1%}{place}"
    return Pictures.composite(frame, dark, mask), caption


def passed_table(passed: list[Passed]) -> str:
    """Modules that an answer passed, as a table in HTML."""
    rows = "".join(
        f"<tr><td>{html.escape(one.name)}</td><td>{one.times}</td><td>{one.parameters:,}</td></tr>" for one in passed
    )
    head = "<tr><th scope='col'>module</th><th scope='col'>times</th><th scope='col'>parameters</th></tr>"
    return (
        f"<details><summary>Modules that this answer passed</summary><div><table>{head}{rows}</table></div></details>"
    )
