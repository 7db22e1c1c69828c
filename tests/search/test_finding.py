"""A whole search: words beside vectors, a floor under which nothing is found, moments, a second look."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_embedders import COLOURS, RATE, HueModel, HueProcessor, picture, save_clip, tone

from plait import Assistant, Embedder, Index, Sample
from plait.cli import main
from plait.embedder.parts import parts_of
from plait.errors import UsageError
from plait.media.values import medium
from plait.models.one_peace import OnePeaceConfig, OnePeaceForClassification, OnePeaceProcessor
from plait.search.background import floors, things
from plait.search.finding import find
from plait.search.index import create_table, open_table
from plait.search.moments import add_moments, count_moments, seconds_of
from plait.search.page import clock, to_json
from plait.search.thumbnails import sweep, thumbnail
from plait.search.words import terms

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder((HueModel(), HueProcessor()))


def photograph(path: Path, colour: str, **notes: Any) -> Path:
    """A picture of a camera that notes when and what; notes: EXIF tags by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (24, 24), COLOURS[colour])
    exif = image.getexif()
    exif[0x010F], exif[0x010E] = notes.get("maker", "Canon"), notes.get("words", "")
    exif.get_ifd(0x8769)[0x9003] = notes.get("taken", "2024:07:14 18:03:00")
    image.save(path, exif=exif)
    return path


def film(path: Path, colours: str, seconds: float = 2.0) -> Path:
    """A clip that shows one colour after the other, each for some seconds."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for name in colours.split():
            for _ in range(int(seconds * 10)):
                frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), COLOURS[name]))
                for packet in stream.encode(frame):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.fixture
def index(tmp_path: Path, embedder: Embedder) -> Index:
    folder = tmp_path / "photos"
    photograph(folder / "Lisbon trip" / "IMG_77.jpg", "red", words="Rex at the sea")
    photograph(folder / "IMG_78.jpg", "green", taken="2023:12:24 20:00:00")
    picture(folder / "blue.png", "blue")
    made = Index.create(tmp_path / "photos.lance", embedder)
    made.add(folder, show_progress=False)
    made.add(Sample(id="note", text="red and green"), show_progress=False)
    return made


def names(hits: list[Any]) -> list[str]:
    return [Path(hit.path or hit.id).name for hit in hits]


def test_words_are_found_in_names_folders_captions_and_notes(index: Index) -> None:
    for words in ("July 2024", "rex", "lisbon", "img_77", "Canon july sunday", "the sea, 2024-07-14"):
        assert names(find(index, words=words).hits) == ["IMG_77.jpg"], words
    assert names(find(index, words="december").hits) == ["IMG_78.jpg"]
    assert names(find(index, words="greens").hits) == ["note"]  # the caption of a text is the text
    assert find(index, words="rex december").hits == []  # every word has to be there
    assert find(index, words="the").hits == []
    scores = [hit.score for hit in find(index, words="canon").hits]
    assert len(scores) == 2 and all(0 < score < 1 for score in scores)
    assert terms("Rex in the snow, REX_2024") == ["rex", "snow", "2024"]
    with pytest.raises(UsageError, match="at most 32 words"):
        terms(" ".join(f"w{n}" for n in range(40)))


def test_words_follow_what_is_added_updated_and_deleted(index: Index, tmp_path: Path) -> None:
    assert find(index, words="zebra").hits == []
    index.update({"modality": "text"}, caption="a zebra")
    assert names(find(index, words="zebra").hits) == ["note"]
    picture(tmp_path / "photos" / "zebra.png", "red", 7)
    index.add(tmp_path / "photos", show_progress=False)
    assert sorted(names(find(index, words="zebra").hits)) == ["note", "zebra.png"]
    index.delete({"modality": "text"})
    index.optimize()
    assert names(find(index, words="zebra").hits) == ["zebra.png"]
    assert names(find(index, words="zebra", where="path LIKE '%77%'").hits) == []


def test_notes_of_photographs_can_be_filtered_and_stay_with_moved_files(index: Index, tmp_path: Path) -> None:
    late = find(index, "red", where="meta.taken >= '2024'").hits
    assert (names(late), late[0].meta["camera"]) == (["IMG_77.jpg"], "Canon")
    (tmp_path / "photos" / "IMG_78.jpg").rename(tmp_path / "photos" / "moved.jpg")
    index.update("path LIKE '%IMG_78%'", caption="eve", meta={"taken": "2023", "stars": 5})
    index.add(tmp_path / "photos", show_progress=False)
    hit = find(index, words="december").hits[0]
    assert (names([hit]), hit.caption, hit.meta) == (["moved.jpg"], "eve", {"taken": "2023", "stars": 5})


def test_both_lists_are_joined_by_rank(index: Index) -> None:
    alone = find(index, "blue", k=4).hits
    joined = find(index, "blue", k=4, words="rex").hits
    assert names(alone)[0] == "blue.png"
    assert names(joined)[0] == "IMG_77.jpg"  # it is in both lists
    assert {hit.id: round(hit.score, 5) for hit in joined} == {hit.id: round(hit.score, 5) for hit in alone}


def test_an_index_of_an_older_plait_is_searched_for_words_too(index: Index, tmp_path: Path) -> None:
    index.table.drop_columns(["words"])
    photograph(tmp_path / "photos" / "later.jpg", "red", taken="2020:02:02 01:01:01")
    assert index.add(tmp_path / "photos", show_progress=False).added == 1
    assert names(find(index, words="77").hits) == ["IMG_77.jpg"]
    assert find(index, words="february").hits == []  # nobody read the notes of what was added before
    (tmp_path / "photos" / "later.jpg").rename(tmp_path / "photos" / "last.jpg")
    assert index.add(tmp_path / "photos", show_progress=False).replaced == 1
    assert names(find(index, words="february").hits) == ["last.jpg"]


def test_absent_things_are_not_found_at_the_stated_rate(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = {text: rng.standard_normal(16) for text in things()}
    shown = [f"shown {n}" for n in range(60)]

    class Random:
        """Vectors that have nothing to do with one another, but for two texts and their rows."""

        accepts, source, adapter, fingerprint, dim = ("text", "image"), None, None, "0" * 16, 16
        fingerprints: dict[str, str] = {}  # noqa: RUF012

        def embed(self, items: list[Any], **options: Any) -> np.ndarray:
            made = [texts.setdefault(str(item), rng.standard_normal(16)) for item in items]
            return np.stack([one / np.linalg.norm(one) for one in made]).astype(np.float32)

        def embed_readable(self, items: list[Any], **options: Any) -> Any:
            return SimpleNamespace(
                vectors=self.embed([one["text"] for one in items]), kept=range(len(items)), skipped=[]
            )

    random: Any = Random()
    create_table(tmp_path / "k", {"fingerprint": "0" * 16, "model": None, "model_beside": None, "modalities": []}, 16)
    index = Index(tmp_path / "k", *open_table(tmp_path / "k"))
    index._embedder = random
    index.add([Sample(id=text, text=text) for text in shown], show_progress=False)
    best = np.array([index.search(f"absent {n}", k=1)[0].score for n in range(150)])
    for share in (0.05, 0.2):
        found = np.mean(best >= floors(index, parts_of("absent"), share).by_kind["text"])
        assert abs(found - share) < 2.5 * np.sqrt(share * (1 - share) * (1 / 150 + 1 / 240)), (share, found)
    assert all(find(index, text, min_score="auto").hits[0].id == text for text in shown[:5])
    found = find(index, "absent 0", min_score=0.999)
    assert found.hits == [] and found.nearest is not None and found.nearest < 0.999


def test_the_floor_of_every_kind_together_keeps_one_rate(index: Index, tmp_path: Path) -> None:
    found = floors(index, parts_of("red"), 0.1)
    assert set(found.by_kind) == {"image", "text"} and found.queries > 200
    kept = json.loads((index.path / "background.json").read_text())
    assert kept["version"] == index.table.version and list(kept["best"]) == ["text*1"]
    assert floors(index, parts_of("green"), 0.1) == found  # what was asked does not matter, only how
    (index.path / "background.json").write_text('{"version": 1, "best": {"text*1": [[NaN')
    assert floors(index, parts_of("green"), 0.1) == found
    with pytest.raises(UsageError, match="rows of audio"):
        floors(index, parts_of({"audio": tone("red")}))
    with pytest.raises(UsageError, match="between 0 and 1"):
        floors(index, parts_of("red"), 1.5)
    with pytest.raises(UsageError, match="pass a number"):
        find(index, np.ones(8, np.float32), min_score="auto")


def test_hits_of_films_tell_their_best_moment(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "films").mkdir()
    clip = film(tmp_path / "films" / "a.mp4", "red green blue")
    film(tmp_path / "films" / "b.mp4", "blue")
    index = Index.create(tmp_path / "i", embedder)
    index.add(tmp_path / "films", show_progress=False)
    plain = find(index, "green").hits
    made = add_moments(index, 2.0)
    assert (made.clips, made.moments, made.unchanged, made.skipped) == (2, 4, 0, [])
    assert count_moments(index) == 4
    hit = find(index, "green").hits[0]
    assert (names([hit]), hit.moment) == (["a.mp4"], pytest.approx((2.0, 4.0), abs=0.05))
    assert hit.score > plain[0].score + 0.1
    assert clock(hit) == "at 0:02 to 0:04"
    assert json.loads(json.dumps(to_json(hit)))["moment"] == list(hit.moment or ())
    assert find(index, "green", moments=False).hits[0].moment is None
    assert add_moments(index, 2.0).unchanged == 2
    # moments belong to a content: a moved clip keeps them, and those of a changed one go
    clip.rename(tmp_path / "films" / "c.mp4")
    index.add(tmp_path / "films", show_progress=False)
    assert (names(find(index, "green", k=1).hits), add_moments(index, 2.0).clips) == (["c.mp4"], 0)
    film(tmp_path / "films" / "b.mp4", "green", 1.0)
    index.add(tmp_path / "films", show_progress=False)
    assert names(find(index, "blue", k=1, where="path LIKE '%b.mp4'").hits) == ["b.mp4"]
    assert add_moments(index, 2.0).moments == 1 and count_moments(index) == 4
    small = thumbnail(index, find(index, "green", k=1, where="path LIKE '%c.mp4'").hits[0])
    assert isinstance(small, Path) and Image.open(small).convert("RGB").getpixel((9, 9))[1] > 150
    assert sweep(index) == 0
    (index.path / "thumbnails" / "holiday.webp").write_bytes(b"somebody's")
    index.delete("true")
    assert find(index, "green").hits == [] and sweep(index) == 1
    assert (index.path / "thumbnails" / "holiday.webp").read_bytes() == b"somebody's"


def test_lengths_of_moments_are_read_as_people_write_them() -> None:
    assert [seconds_of(text) for text in ("5s", "5", "1.5 s", "2m", "1min")] == [5, 5, 1.5, 120, 60]
    for text in ("", "0s", "-1", "5h", "nan", "1e9"):
        with pytest.raises(UsageError, match="such as 5s"):
            seconds_of(text)


def test_a_second_look_ranks_what_it_can_see(index: Index) -> None:
    class Second:
        """Likes green pictures."""

        skills = SimpleNamespace(kinds={"image"})

        def match(self, items: list[Path], text: str, on_bad: str) -> list[float | None]:
            assert text == "red" and on_bad == "skip"
            return [None if one.name == "blue.png" else float("78" in one.name) for one in items]

    second: Any = Second()
    hits = find(index, "red", second=second).hits
    assert names(hits)[:2] == ["IMG_78.jpg", "IMG_77.jpg"] and len(hits) == 4
    assert [hit.match for hit in hits[:2]] == [1.0, 0.0] and hits[3].match is None
    with pytest.raises(UsageError, match="text in the query"):
        find(index, {"image": Image.new("RGB", (8, 8))}, second=second)


def head_of(kind: str, **changes: Any) -> Assistant:
    """A tiny ONE-PEACE with a head over text and one other modality, as those of VQA and of audio questions are."""
    torch.manual_seed(0)
    config = OnePeaceConfig(
        dim=16, num_heads=2, num_layers=2, mlp_dim=16, text_bucket_size=8, image_bucket_size=4, image_rel_bucket_size=2,
        audio_bucket_size=16, audio_conv_spec=((8, 10, 5), (8, 3, 2), (8, 2, 2)), audio_position_groups=4,
        vocab_size=50264, modalities=["text", kind], use_projections=False, pool_modality="text", **changes,
    )  # fmt: skip
    model = OnePeaceForClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return Assistant((model, OnePeaceProcessor.from_config(config)))


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_heads_that_were_trained_on_pairs_look_again_in_one_pass_of_both(
    kind: str, embedder: Embedder, tmp_path: Path
) -> None:
    media: list[Any] = [tmp_path / f"{colour}.png" for colour in ("red", "green", "blue")]
    if kind == "image":
        second = head_of(kind, num_classes=3, id2label={0: "No", 1: "red", 2: "Yes"})
        for path in media:
            photograph(path, path.stem)
    else:
        second = head_of(kind, num_classes=1)  # of answers that are given
        media = [path.with_suffix(".wav") for path in media]
        for path in media:
            with wave.open(str(path), "wb") as file:
                sound = tone(path.stem)
                file.setparams((1, 2, RATE, len(sound), "NONE", ""))
                file.writeframes((20_000 * sound).astype("<i2").tobytes())
    index = Index.create(tmp_path / "i", embedder)
    index.add(media, show_progress=False)
    hits = find(index, "red", second=second).hits
    skills, asked = second.skills, "Does this show: red? Answer yes or no."
    for hit in hits:
        item = skills.prepare(kind, medium(kind).load(Path(str(hit.path)), second.skills.sampling_rate))
        if kind == "image":
            no, _, yes = skills.outputs(kind, [item], [asked])[0].softmax(-1).tolist()
        else:
            pair = [f"{asked} answer: {answer}" for answer in ("yes", "no")]
            yes, no = skills.outputs(kind, [item, item], pair)[:, 0].softmax(-1).tolist()
        assert hit.match == pytest.approx(yes / (yes + no), abs=1e-5)
    assert len({round(hit.match or 0.0, 6) for hit in hits}) == 3  # each medium was read beside the words
    assert hits == sorted(hits, key=lambda hit: -(hit.match or 0.0))


def test_a_head_without_a_verdict_is_refused(tmp_path: Path) -> None:
    statement = head_of("image", num_classes=2, id2label={0: "True", 1: "False"})
    path = photograph(tmp_path / "red.png", "red")
    no_question = statement.skills.outputs(
        "image", [statement.skills.prepare("image", Image.open(path))], ["it is red"]
    )
    assert statement.match(path, "it is red") == pytest.approx(no_question.softmax(-1)[0, 0].item(), abs=1e-5)
    with pytest.raises(ValueError, match="classes yes and no, or true and false, to match by, got red, green"):
        head_of("image", num_classes=2, id2label={0: "red", 1: "green"}).match(path, "it is red")


def test_owl2_looks_again_by_yes_and_no(embedder: Embedder, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", embedder)
    index.add([photograph(tmp_path / f"{colour}.png", colour) for colour in ("red", "green")], show_progress=False)
    second = Assistant(Path(__file__).parents[1] / "fixtures" / "saved" / "mplug_owl2")
    hits = find(index, "red", second=second).hits
    for hit in hits:
        said = second.rank(Path(str(hit.path)), "Does this show: red? Answer yes or no.", ["yes", "no"])
        assert hit.match == pytest.approx(dict(said)["yes"], abs=1e-5)
    assert hits[0].match >= hits[1].match


def test_what_cannot_be_asked_is_said(index: Index) -> None:
    for options, said in (
        ({}, "a query or words"),
        ({"words": "  "}, "a query or words"),
        ({"query": "red", "min_score": "low"}, '"auto"'),
        ({"query": "red", "k": 0}, "k of at least 1"),
        ({"words": "red", "where": "nothing ="}, "filter"),
    ):
        with pytest.raises(ValueError, match=said):
            find(index, **options)


def test_commands_search_for_words_and_say_what_was_not_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_clip(tmp_path / "clip")
    photograph(tmp_path / "photos" / "IMG_5.jpg", "red", words="Rex")
    for n in range(25):
        picture(tmp_path / "photos" / f"{n}.png", ("red", "green", "blue")[n % 3], n)
    index = str(tmp_path / "i")
    assert main(["index", "add", index, str(tmp_path / "photos"), "--model", str(model)]) == 0
    capsys.readouterr()
    assert main(["search", index, "--words", "rex july", "--json"]) == 0
    assert [Path(row["path"]).name for row in json.loads(capsys.readouterr().out)] == ["IMG_5.jpg"]
    assert main(["search", index, "--text", "red", "--min-score", "0.9999"]) == 0
    assert capsys.readouterr().out == "nothing found\n"
    assert main(["search", index, "--text", "red", "--min-score", "auto", "--html", str(tmp_path / "page.html")]) == 0
    assert "10% of 2" in capsys.readouterr().err
    for wrong, said in (
        (["--min-score", "much", "--text", "red"], "auto or a number"),
        (["--words", "rex", "--min-score", "auto"], "add --text"),
        ([], "--words"),
    ):
        assert main(["search", index, *wrong]) == 2
        assert said in capsys.readouterr().err
