"""What a run directory holds, read for a report: summary, evaluations, curves, commands, facts about the data.

Contact sheets: a sound to play, the pictures it found, the right ones marked. Media become data URIs.

`build_report`: a run directory -> one self-contained page (pictures, sounds, curves and style inside the file).

summary.json, seed-0/evaluation, metrics.jsonl, quickstart.json -> sections -> report.html
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from plait.data.manifest import read_manifest
from plait.report import charts, tables
from plait.report.page import section, write_page
from plait.report.run import curves_section, read_curves, worth_section
from plait_studies.gap import modality_gap


@dataclass
class Seed:
    """One seed of a run: its evaluation, its vectors and the directory of its composed pictures."""

    evaluation: dict[str, Any]
    vectors: dict[str, np.ndarray]
    gallery: Path


@dataclass
class RunFiles:
    """Everything a report shows. What a run does not have is empty."""

    directory: Path
    summary: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)
    data: Path | None = None
    seed: Seed | None = None
    curves: dict[str, list[list[dict[str, Any]]]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    worth: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: str | Path) -> RunFiles:
        """Read the directory of one training run or of a demonstration with seeds. ValueError where it is neither."""
        directory = Path(directory)
        run = cls(directory, _json(directory / "summary.json"), _json(directory / "quickstart.json"))
        run.worth = _json(directory / "finetune.json")
        if run.log:
            run.data = directory / run.log["data"]
        seeds = sorted(directory.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
        run.curves = read_curves(seeds or [directory])
        first = seeds[0] if seeds else directory
        if (first / "evaluation" / "evaluation.json").is_file():
            run.seed = _seed(first / "evaluation")
        run.config = next((_json(path) for path in sorted(first.rglob("model/config.json"))), {})
        if not run.curves and not run.summary:
            raise ValueError(f"expected a run with metrics.jsonl or summary.json, got {directory}; train into it first")
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


def _seed(directory: Path) -> Seed:
    with np.load(directory / "vectors.npz") as stored:
        vectors = {name: stored[name] for name in stored.files}
    return Seed(_json(directory / "evaluation.json"), vectors, directory / "gallery")


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


def data_uri(path: Path) -> str:
    """A media file as a data URI. ValueError for a type that browsers do not show."""
    kind = _TYPES.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"expected a picture or sound of {', '.join(_TYPES)}, got {path}; convert it for the report")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def player(path: Path, name: str, heading: str) -> str:
    """A round play button beside `heading` (HTML) and the clip's waveform; a plain <audio> where scripts are off."""
    return (
        f'<header class="player"><button type="button" aria-label="play {escape(name)}" hidden>'
        '<svg viewBox="0 0 24 24" aria-hidden="true"><path class="go" d="M8 5.5v13l11-6.5z"/>'
        '<path class="stop" d="M7.5 6h3.4v12H7.5zm5.6 0h3.4v12h-3.4z"/></svg></button>'
        f"<h3>{heading}</h3>{waveform(path)}"
        f'<audio controls preload="none" src="{data_uri(path)}"></audio></header>'
    )


def waveform(path: Path) -> str:
    """Peaks of a clip as an SVG of `_BARS` rounded bars."""
    from plait.media.audio import load_audio

    clip = np.abs(load_audio(path))
    peaks = np.array([part.max() if len(part) else 0.0 for part in np.array_split(clip, _BARS)])
    heights = 3 + 29 * (peaks / max(float(peaks.max()), 1e-9)) ** 0.7
    bars = "".join(f"M{4 * i + 2} {18 - h / 2:.1f}v{h:.1f}" for i, h in enumerate(heights))
    box = f'viewBox="0 0 {4 * _BARS} 36" preserveAspectRatio="none"'
    return f'<svg class="wave" {box} aria-hidden="true"><path d="{bars}"/></svg>'


def sound_card(example: Mapping[str, Any], root: Path) -> str:
    """One sound, its five nearest drawings among sounding things, and (smaller) among all drawings."""
    name = escape(example["name"])
    wide = "".join(picture(hit, root) for hit in example["hits_in_all"])
    return (
        f'<article class="card">{player(root / example["audio"], example["name"], name)}'
        f'<div class="row five">{"".join(picture(hit, root) for hit in example["hits"])}</div>'
        f'<p class="among">among all drawings</p><div class="row five small">{wide}</div></article>'
    )


def fused_card(example: Mapping[str, Any], root: Path, pictures: Path) -> str:
    """A sound plus a word, and the five nearest composed pictures."""
    heading = f'{escape(example["name"])} <span class="plus">+</span> <q>{escape(example["text"])}</q>'
    return (
        f'<article class="card">{player(root / example["audio"], example["name"], heading)}'
        f'<div class="row five">{"".join(picture(hit, pictures) for hit in example["hits"])}</div></article>'
    )


def picture(hit: Mapping[str, Any], root: Path) -> str:
    """One found picture with its name; the right one carries a mark, half right a faint one."""
    state = "right" if hit["right"] else "half" if hit.get("half_right") else ""
    says = {"right": "right: ", "half": "half right: ", "": ""}[state]
    words = escape(f"{says}{hit['name']} ({hit['score']:.2f})")
    source = data_uri(root / hit["image"])
    return (
        f'<figure class="{state}"><img loading="lazy" alt="{words}" title="{words}" src="{source}">'
        f"<figcaption>{escape(hit['name'])}</figcaption></figure>"
    )


def legend(kinds: Sequence[str]) -> str:
    """What the marks mean."""
    words = {"right": "the right picture", "half": "one of the two things is right"}
    return "".join(f'<span class="key {kind}">{words[kind]}</span>' for kind in kinds)


_MAX_SOUNDS_ON_MAP = 12
_HONEST = """
<p>The pictures are emoji drawings by five independent artists and a few silhouettes; the style held out is never
trained on.<!--exceptions--> The sounds are sampled instruments and a few sampled effects, rendered note by note: a
held-out note is an unseen pitch, and its neighbours may come from the same recording. They are not recordings of
performances. Some couplings are loose: a church stands for a pipe organ, a microphone for a sung vowel, a postal horn
for a French horn.</p>
<p>The model is tiny and knows only these things. It shows that the method works end to end on a small machine; it says
nothing about how well a large model does.</p>
"""


def build_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, to `run_dir`/report.html unless `out` is given. Returns its path.

    Shows what the run has: a plain training run gets its curves, a demonstration everything. ValueError where the
    directory holds no run.
    """
    run = RunFiles.read(run_dir)
    sections = [
        _hero(run),
        _sounds(run),
        _fused(run),
        _numbers(run),
        worth_section(run.worth),
        curves_section(run.curves),
        _space(run),
        _how(run),
        _honest(run),
    ]
    path = Path(run_dir) / "report.html" if out is None else Path(out)
    return write_page(path, _title(run), sections)


def _metric(run: RunFiles, name: str) -> Mapping[str, Any] | None:
    found = run.summary.get("metrics", {}).get(name)
    return found if found and found["value"] is not None else None


def _title(run: RunFiles) -> str:
    if _metric(run, "audio_to_image_r1"):
        return "It heard a sound and found the picture"
    return "Words find pictures" if run.summary else f"Run {run.directory.name}"


def _hero(run: RunFiles) -> str:
    title = f"<h1>{escape(_title(run))}</h1>"
    if not run.summary:
        return f'<header class="hero">{title}</header>'
    heard = _metric(run, "audio_to_image_r1")
    kind = "drawings" if run.is_shipped else "pictures"
    runs = run.summary["seeds"]
    spent = sum(run.summary["seconds"].get(stage, 0.0) for stage in ("stage1", "stage2")) / runs
    trained = f"{tables.clock(spent)} of training" + (f" (numbers are means of {runs} seeds)" if runs > 1 else "")
    cores = run.summary.get("about", {}).get("hardware", {}).get("cores")
    where = f" on {cores} CPU cores" if cores and not run.log.get("gpu") else ""
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
    return f'<header class="hero">{title}<p class="lead">{words}</p>{_tiles(run)}</header>'


def _tiles(run: RunFiles) -> str:
    wanted = {
        "audio_to_image_r1": ("a sound finds its picture", "audio"),
        "audio_to_image_r5": ("… within five answers", "audio"),
        "audio_to_text_r1": ("a sound finds its name", "text"),
        "image_to_text_r1": ("a picture finds its name", "image"),
    }
    tiles = []
    for name, (words, strand) in wanted.items():
        found = _metric(run, name)
        if found:
            tiles.append(
                f'<div class="tile {strand}"><b>{100 * found["value"]:.0f}<small>%</small></b><span>{words}</span>'
                f"<span class='dim'>chance {tables.percent(found['chance'])}</span></div>"
            )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _sounds(run: RunFiles) -> str:
    examples = run.seed.evaluation["examples"].get("audio_to_image", []) if run.seed else []
    if not examples or run.data is None:
        return ""
    cards = "".join(sound_card(example, run.data) for example in examples)
    lead = (
        f"Press play. One held-out note of each of the {len(examples)} sounding things, chosen by its place in the "
        "list and not by its result, with the five nearest pictures, nearest first."
    )
    return section(
        "This sound found these pictures", lead, f'{legend(["right"])}<div class="cards">{cards}</div>', "sounds"
    )


def _fused(run: RunFiles) -> str:
    examples = run.seed.evaluation["examples"].get("fused_to_image", []) if run.seed else []
    fused = _metric(run, "fused_to_image_r5")
    if not examples or run.data is None or run.seed is None or fused is None:
        return ""
    data, gallery = run.data, run.seed.gallery
    cards = "".join(fused_card(example, data, gallery) for example in examples)
    lead = (
        "One query of two parts: the vector of a sound plus the vector of a word. The gallery holds "
        f"{fused['gallery']} pictures of two things that were never shown side by side in training. "
        "Evenly spaced over all queries, failures included."
    )
    body = f'{legend(["right", "half"])}<div class="cards">{cards}</div>'
    return section("A sound and a word in one query", lead, body, "fused")


def _numbers(run: RunFiles) -> str:
    if not run.summary:
        return ""
    lead = (
        "Each row: how often the right answer is found, with a 95&#8239;% bootstrap interval (the whisker) over the "
        "things asked for, and what a random order of the same gallery would reach (the tick). Sounds are averaged per "
        "thing first."
    )
    body = tables.metrics_table(run.summary["metrics"], run.summary.get("bars", {}))
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
        kept = _few_of_each(run.seed.evaluation["labels"][modality], _MAX_SOUNDS_ON_MAP)
        vectors[modality] = rows[kept]
        labels[modality] = [run.seed.evaluation["labels"][modality][i] for i in kept]
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


def _few_of_each(labels: list[str], most: int) -> list[int]:
    """Indices of at most `most` items per label, in order."""
    seen: dict[str, int] = {}
    kept = []
    for i, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= most:
            kept.append(i)
    return kept


def _how(run: RunFiles) -> str:
    commands = run.log.get("commands", [])
    if not commands:
        return ""
    about = run.summary.get("about", {})
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items() if number)
    hardware = about.get("hardware", {})
    facts = [("versions", escape(versions)), ("commit", escape(str(about.get("commit") or "not in a git checkout")))]
    if hardware:
        facts.append(("machine", escape(f"{hardware['processor']}, {hardware['cores']} cores")))
    facts += [(escape(name), escape(str(value))) for name, value in run.log.get("notes", {}).items()]
    lead = "These commands, and nothing else, made everything on this page."
    return section("What ran", lead, tables.commands_list(commands) + tables.card(facts), "commands")


def _honest(run: RunFiles) -> str:
    facts = run.data_facts()
    if not facts:
        return ""
    listing = tables.card([(escape(name), escape(words)) for name, words in facts])
    words = _HONEST.replace("<!--exceptions-->", _exceptions(run.familiar_styles())) if run.is_shipped else ""
    return section(
        "What the data is, and what this does not show", "", f'<div class="prose">{words}</div>{listing}', "data"
    )


def _exceptions(names: list[str]) -> str:
    if not names:
        return ""
    return (
        f" Except for {escape(', '.join(names))}: another drawing of theirs is held out, in a style trained elsewhere."
    )
