"""The page of a quickstart: what it heard and found, with pictures and sounds inside the file.

summary.json, seed-0/evaluation, metrics.jsonl, quickstart.json -> RunFiles -> sections -> report.html

Of every query the page shows what was found, right or wrong: examples are chosen by their place in the list.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.manifest import read_manifest
from plait.report import charts, tables
from plait.report.page import data_uri, hero, section, write_page
from plait.report.run import curves_section, read_curves
from plait_studies.gap import modality_gap


@dataclass
class Seed:
    """One seed of a run: its evaluation, its vectors and the directory of its composed pictures."""

    evaluation: dict[str, Any]
    vectors: dict[str, np.ndarray]
    gallery: Path


@dataclass
class RunFiles:
    """Everything a report shows. What a run does not have is empty.

    Args:
        directory: of the quickstart.
        summary: summary.json, the numbers over seeds.
        log: quickstart.json, the commands that ran and what they were asked for.
        data: directory of the data set.
        seed: evaluation, vectors and pictures of the first seed.
        curves: of training, by stage, for every seed.
    """

    directory: Path
    summary: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    data: Path | None = None
    seed: Seed | None = None
    curves: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: str | Path) -> RunFiles:
        """Read the directory of a quickstart. ValueError where it is none."""
        directory = Path(directory)
        run = cls(directory, _json(directory / "summary.json"), _json(directory / "quickstart.json"))
        if not run.summary:
            raise ValueError(f"expected a quickstart with summary.json, got {directory}; run plait quickstart first")
        if run.log:
            run.data = directory / run.log["data"]
        seeds = sorted(directory.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
        # the controls, whose words are shuffled, have no curve beside the others
        trained = (place for seed in seeds for place in sorted(seed.iterdir()) if "shuffled" not in place.name)
        run.curves = read_curves(place for place in trained if place.is_dir())
        stored = seeds[0] / "evaluation" if seeds else directory
        if (stored / "evaluation.json").is_file():
            with np.load(stored / "vectors.npz") as arrays:
                vectors = {name: arrays[name] for name in arrays.files}
            run.seed = Seed(_json(stored / "evaluation.json"), vectors, stored / "gallery")
        return run

    def names(self) -> dict[str, str]:
        """Concept -> its name, from the data set."""
        if self.data is None:
            return {}
        rows = read_manifest(self.data)
        return {row.label: row.text for row in rows if row.label and row.text and row.image is not None}

    def familiar_styles(self) -> list[str]:
        """Names of things whose held-out drawing is in a style that training shows on other things."""
        if self.data is None:
            return []
        pictures = [row for row in read_manifest(self.data) if row.image is not None]
        trained = {row.meta.get("style") for row in pictures if row.split == "train"} - {None}
        return sorted(
            row.text or row.id for row in pictures if row.split == "test" and row.meta.get("style") in trained
        )

    def data_facts(self) -> list[tuple[str, str]]:
        """Counts, splits and licences of the data set."""
        if self.data is None:
            return []
        rows = read_manifest(self.data)
        pictures = [row for row in rows if row.image is not None]
        sounds = [row for row in rows if row.audio is not None]
        facts = [("drawings" if self.is_shipped else "pictures", _splits(pictures)), ("sounds", _splits(sounds))]
        facts.append(("things", f"{len({row.label for row in pictures}):,}"))
        if sounds:
            facts.append(("things that sound", f"{len({row.label for row in sounds}):,}"))
        for name, values in (
            ("styles", Counter(row.meta.get("style") for row in pictures)),
            ("sources", Counter(row.source for row in rows)),
            ("licences", Counter(row.license for row in rows)),
        ):
            known = [(str(value), count) for value, count in values.most_common() if value]
            if known:
                facts.append((name, ", ".join(f"{value} ({count:,})" for value, count in known)))
        return facts

    @property
    def is_shipped(self) -> bool:
        """Whether the run used the data that comes with the package."""
        return bool(self.log.get("is_shipped_data"))


def _splits(rows: list[Any]) -> str:
    counts: Mapping[Any, int] = Counter(row.split for row in rows)
    words = {"train": "to train on", "test": "held out", "unseen_font": "from an unseen soundfont"}
    return ", ".join(f"{count:,} {words.get(split, split or 'without a split')}" for split, count in counts.items())


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


_TYPES = {
    ".webp": "image/webp",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
}
_BARS = 40


def file_uri(path: Path) -> str:
    """A media file as a data URI. ValueError for a type that browsers do not show."""
    kind = _TYPES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"expected a picture or sound of {', '.join(_TYPES)}, got {path}; convert it for the report")
    return data_uri(path.read_bytes(), kind)


def player(path: Path, name: str, heading: str) -> str:
    """A round play button beside `heading` (HTML) and the peaks of the clip; a plain <audio> where scripts are off."""
    from plait.media.audio import load_audio

    peaks = np.array([np.abs(part).max(initial=0.0) for part in np.array_split(load_audio(path), _BARS)])
    # Quiet parts stay visible: peaks are compressed, and every bar has three of the 36 units of height.
    heights = 3 + 29 * (peaks / max(float(peaks.max()), 1e-9)) ** 0.7
    bars = "".join(f"M{4 * i + 2} {18 - h / 2:.1f}v{h:.1f}" for i, h in enumerate(heights))
    return (
        f'<header class="player"><button type="button" aria-label="play {escape(name)}" hidden>'
        '<svg viewBox="0 0 24 24" aria-hidden="true"><path class="go" d="M8 5.5v13l11-6.5z"/>'
        '<path class="stop" d="M7.5 6h3.4v12H7.5zm5.6 0h3.4v12h-3.4z"/></svg></button>'
        f'<h3>{heading}</h3><svg class="wave" viewBox="0 0 {4 * _BARS} 36" preserveAspectRatio="none" '
        f'aria-hidden="true"><path d="{bars}"/></svg>'
        f'<audio controls preload="none" src="{file_uri(path)}"></audio></header>'
    )


def row_of(hits: Sequence[Mapping[str, Any]], root: Path, size: str = "") -> str:
    """Five found pictures, nearest first."""
    return f'<div class="row five{size}">{"".join(picture(hit, root) for hit in hits)}</div>'


def picture(hit: Mapping[str, Any], root: Path) -> str:
    """One found picture with its name; the right one carries a mark, half right a faint one."""
    state = "right" if hit["right"] else "half" if hit.get("half_right") else ""
    says = {"right": "right: ", "half": "half right: ", "": ""}[state]
    words = escape(f"{says}{hit['name']} ({hit['score']:.2f})")
    source = file_uri(root / hit["image"])
    return (
        f'<figure class="{state}"><img loading="lazy" alt="{words}" title="{words}" src="{source}">'
        f"<figcaption>{escape(hit['name'])}</figcaption></figure>"
    )


_RIGHT = '<span class="key right">the right picture</span>'
_HALF = '<span class="key half">one of the two things is right</span>'
_MAX_SOUNDS_ON_MAP = 12
GROUPS: dict[str, dict[str, str]] = {
    "A sound finds a picture, though no picture was ever trained with a sound": {
        "audio_to_image_r1": "first answer right, one drawing of each sounding thing",
        "audio_to_image_r5": "right within five",
        "audio_to_all_images_r1": "first answer right, among all drawings",
        "audio_to_all_images_r5": "right within five, among all drawings",
        "image_to_audio_r1": "the other way: a drawing finds a note of its thing",
        "unseen_font_audio_to_image_r1": "notes from a soundfont that was never trained on",
    },
    "What training was about": {
        "image_to_text_r1": "a drawing in an unseen style finds its name",
        "text_to_image_r1": "a name finds the drawing in an unseen style",
        "audio_to_text_r1": "an unseen note finds the name of its thing",
        "unseen_font_audio_to_text_r1": "the same for a soundfont that was never trained on",
    },
    "Two things in one query find the picture that shows both": {
        "fused_to_image_r5": "sound + word, right within five",
        "audio_only_to_image_r5": "the sound alone",
        "text_only_to_image_r5": "the word alone",
        "full_caption_to_image_r5": "both things in words, for comparison",
        "image_audio_to_image_r5": "sound + another drawing of the second thing",
        "image_only_to_image_r5": "that drawing alone",
    },
    "Control: trained equally long with shuffled names for the sounds": {
        "shuffled_audio_to_text_r1": "an unseen note finds the name of its thing",
        "shuffled_audio_to_image_r1": "a sound finds its picture, first answer",
        "shuffled_audio_to_image_r5": "right within five",
    },
}
"""Heading -> metric -> what it asks, in words."""

_HONEST = """
<p>The pictures are emoji drawings in five styles and a few silhouettes; the style held out is never trained on, nor
is the newer version of the same font.<!--exceptions--> The sounds are sampled instruments and a few sampled effects,
rendered note by note: a held-out note is an unseen pitch, and its neighbours may come from the same recording. They
are not recordings of performances. Some couplings are loose: a church stands for a pipe organ, a microphone for a
sung vowel, a postal horn for a French horn.</p>
<p>The model is tiny and knows only these things. It shows that the method works end to end on a small machine; it says
nothing about how well a large model does.</p>
"""


def build_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a quickstart, to `run_dir`/report.html unless `out` is given. Returns its path.

    ValueError where the directory holds none.
    """
    run = RunFiles.read(run_dir)
    sections = [
        _hero(run),
        _sounds(run),
        _fused(run),
        _numbers(run),
        curves_section(run.curves),
        _space(run),
        _how(run),
        _honest(run),
    ]
    return write_page(Path(run_dir) / "report.html" if out is None else Path(out), _title(run), sections)


def _metric(run: RunFiles, name: str) -> Mapping[str, Any] | None:
    found = run.summary.get("metrics", {}).get(name)
    return found if found and found["value"] is not None else None


def _title(run: RunFiles) -> str:
    if _metric(run, "audio_to_image_r1"):
        return "It heard a sound and found the picture"
    return "Words find pictures"


def _hero(run: RunFiles) -> str:
    heard = _metric(run, "audio_to_image_r1")
    kind = "drawings" if run.is_shipped else "pictures"
    runs = run.summary["seeds"]
    spent = sum(run.summary["seconds"].get(stage, 0.0) for stage in ("stage1", "stage2")) / runs
    trained = f"{tables.clock(spent)} of training" + (f" (numbers are means of {runs} seeds)" if runs > 1 else "")
    cores = run.summary.get("about", {}).get("hardware", {}).get("cores")
    where = f" on {escape(str(cores))} CPU cores" if cores and not run.log.get("gpu") else ""
    familiar = len(run.familiar_styles())
    style = "in a style it never saw" if run.is_shipped else "it never saw"
    style += f" (all but {familiar} of them)" if run.is_shipped and familiar else ""
    words = f"A small ONE-PEACE, from random weights in {trained}{where}. "
    if heard:
        words += (
            f"It learnt {kind} with words, then sounds with words, and "
            "<em>never met a picture together with a sound</em>. "
            f"Here notes it never heard look for {kind} {style}."
        )
    else:
        words += f"It learnt {kind} with words. Here {kind} {style} and their names look for each other."
    wanted = {
        "audio_to_image_r1": ("a sound finds its picture", "audio"),
        "audio_to_image_r5": ("… within five answers", "audio"),
        "audio_to_text_r1": ("a sound finds its name", "text"),
        "image_to_text_r1": ("a picture finds its name", "image"),
    }
    tiles = []
    for name, (asked, strand) in wanted.items():
        found = _metric(run, name)
        if found:
            tiles.append(
                f'<div class="tile {strand}"><b>{100 * found["value"]:.0f}<small>%</small></b><span>{asked}</span>'
                f"<span class='dim'>chance {tables.percent(found['chance'])}</span></div>"
            )
    return hero(_title(run), words, f'<div class="tiles">{"".join(tiles)}</div>')


def _sounds(run: RunFiles) -> str:
    examples = run.seed.evaluation["examples"].get("audio_to_image", []) if run.seed else []
    if not examples or run.data is None:
        return ""
    cards = "".join(
        f'<article class="card">{player(run.data / one["audio"], one["name"], escape(one["name"]))}'
        f'{row_of(one["hits"], run.data)}<p class="among">among all drawings</p>'
        f"{row_of(one['hits_in_all'], run.data, ' small')}</article>"
        for one in examples
    )
    lead = (
        f"Press play. One held-out note of each of the {len(examples)} sounding things, chosen by its place in the "
        "list and not by its result, with the five nearest pictures, nearest first."
    )
    return section("This sound found these pictures", lead, f'{_RIGHT}<div class="cards">{cards}</div>', "sounds")


def _fused(run: RunFiles) -> str:
    examples = run.seed.evaluation["examples"].get("fused_to_image", []) if run.seed else []
    fused = _metric(run, "fused_to_image_r5")
    if not examples or run.data is None or run.seed is None or fused is None:
        return ""
    cards = ""
    for one in examples:
        heading = f'{escape(one["name"])} <span class="plus">+</span> <q>{escape(one["text"])}</q>'
        cards += f'<article class="card">{player(run.data / one["audio"], one["name"], heading)}'
        cards += f"{row_of(one['hits'], run.seed.gallery)}</article>"
    lead = (
        "One query of two parts: the vector of a sound plus the vector of a word. The gallery holds "
        f"{fused['gallery']} pictures of two things that were never shown side by side in training. "
        "Evenly spaced over all queries, failures included."
    )
    body = f'{_RIGHT}{_HALF}<div class="cards">{cards}</div>'
    return section("A sound and a word in one query", lead, body, "fused")


def _numbers(run: RunFiles) -> str:
    lead = (
        "Each row: how often the right answer is found, with a 95&#8239;% bootstrap interval (the whisker) over the "
        "things asked for, and what a random order of the same gallery would reach (the tick). Sounds are averaged per "
        "thing first."
    )
    bars, groups = run.summary.get("bars", {}), {}
    for heading, wanted in GROUPS.items():
        rows = []
        for name, words in wanted.items():
            if (found := _metric(run, name)) is None:
                continue
            note, seeds, bar = f"{found['queries']:,} queries, gallery of {found['gallery']:,}", found["per_seed"], None
            if len(seeds) > 1:
                note += f"; seeds {100 * min(seeds):.1f} to {100 * max(seeds):.1f} %"
            if name in bars:
                bar = bars[name] | {"bar": re.sub("_to_image|_r[15]", "", bars[name]["bar"]).replace("_", " ")}
            rows.append(tables.Measured(words, found, name, note, bar))
        groups[heading] = rows
    body = tables.meters(groups)
    found = run.seed.evaluation["metrics"].get("audio_to_image_r1") if run.seed else None
    if found:
        listing = tables.class_bars(found["units"], run.names(), found["chance"])
        body += f"<h3>First answer right, sound by sound (first seed, %)</h3>{listing}"
    return section("The numbers", lead, body, "numbers")


def _space(run: RunFiles) -> str:
    if run.seed is None or len(run.seed.vectors) < 2:
        return ""
    vectors, labels = {}, {}
    for modality, rows in run.seed.vectors.items():
        all_labels = run.seed.evaluation["labels"][modality]
        kept = [i for i, label in enumerate(all_labels) if all_labels[:i].count(label) < _MAX_SOUNDS_ON_MAP]
        vectors[modality], labels[modality] = rows[kept], [all_labels[i] for i in kept]
    measured = modality_gap(vectors)
    legend = "".join(f'<span class="dot {modality}">{modality}</span>' for modality in vectors)
    gaps = ", ".join(f"{pair.replace('-', ' to ')} {value:.2f}" for pair, value in measured["gap"].items())
    cosines = "".join(
        f"<tr><td>{pair}</td><td>{same:.2f}</td><td>{round(other, 2) + 0:.2f}</td></tr>"
        for pair, same, other in charts.gap_numbers(vectors, labels)
    )
    ties = " Thin lines tie each sound to its picture." if "audio" in vectors else ""
    share = 100 * sum(measured["explained"])
    lead = (
        f"Every dot is one held-out item, in the plane of the two largest principal components ({share:.0f}&#8239;% of "
        f"the variance).{ties} The modality gap, the distance between the middles of two clouds: {gaps}."
    )
    table = (
        '<table class="plain"><thead><tr><th scope="col">mean cosine</th><th scope="col">same thing</th>'
        f'<th scope="col">different things</th></tr></thead><tbody>{cosines}</tbody></table>'
    )
    picture = charts.space_map(measured["points"], labels, run.names())
    return section(
        "One space", lead, f'<div class="space"><div class="panel">{legend}{picture}</div>{table}</div>', "space"
    )


def _how(run: RunFiles) -> str:
    commands = run.log.get("commands", [])
    if not commands:
        return ""
    about = run.summary.get("about", {})
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items() if number)
    hardware = about.get("hardware", {})
    facts = [("versions", versions), ("commit", str(about.get("commit") or "not in a git checkout"))]
    if hardware:
        facts.append(("machine", f"{hardware['processor']}, {hardware['cores']} cores"))
    facts += [(name, str(value)) for name, value in run.log.get("notes", {}).items()]
    lead = "These commands, and nothing else, made everything on this page."
    return section("What ran", lead, tables.commands_list(commands) + tables.card(facts), "commands")


def _honest(run: RunFiles) -> str:
    facts = run.data_facts()
    if not facts:
        return ""
    familiar, words, listing = run.familiar_styles(), "", tables.card(facts)
    if run.is_shipped:
        told = escape(", ".join(familiar))
        but = f" Except for {told}: another drawing of theirs is held out, in a style trained elsewhere."
        words = _HONEST.replace("<!--exceptions-->", but if familiar else "")
    return section(
        "What the data is, and what this does not show", "", f'<div class="prose">{words}</div>{listing}', "data"
    )
