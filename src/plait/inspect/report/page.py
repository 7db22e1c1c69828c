"""`build_report`: a run directory -> one self-contained page (pictures, sounds, curves and style inside the file).

summary.json, seed-0/evaluation, metrics.jsonl, quickstart.json -> sections -> report.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from plait.inspect.modality_gap import modality_gap
from plait.inspect.report import charts, sheets, tables
from plait.inspect.report.run_files import RunFiles

_HERE = Path(__file__).parent
_LOSSES = ("loss", "contrast", "denoise")
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
        _worth(run),
        _curves(run),
        _space(run),
        _how(run),
        _honest(run),
    ]
    path = Path(run_dir) / "report.html" if out is None else Path(out)
    return write_page(path, _title(run), sections)


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Write HTML sections as one self-contained page in the house's style; returns its path."""
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    for slot, content in {
        "title": escape(title),
        "style": (_HERE / "page.css").read_text(encoding="utf-8"),
        "script": (_HERE / "page.js").read_text(encoding="utf-8"),
        "braid": charts.braid(),
        "body": "\n".join(sections),
    }.items():
        page = page.replace(f"<!--{slot}-->", content)
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)


def _metric(run: RunFiles, name: str) -> Mapping[str, Any] | None:
    found = run.summary.get("metrics", {}).get(name)
    return found if found and found["value"] is not None else None


def _title(run: RunFiles) -> str:
    if _metric(run, "audio_to_image_r1"):
        return "It heard a sound and found the picture"
    return "Words find pictures" if run.summary else f"Run {run.directory.name}"


def section(title: str, lead: str, body: str, name: str) -> str:
    """A heading, what it is about and its content, as HTML."""
    intro = f'<p class="lead">{lead}</p>' if lead else ""
    return f'<section id="{name}"><h2>{title}</h2>{intro}{body}</section>'


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
    cards = "".join(sheets.sound_card(example, run.data) for example in examples)
    lead = (
        f"Press play. One held-out note of each of the {len(examples)} sounding things, chosen by its place in the "
        "list and not by its result, with the five nearest pictures, nearest first."
    )
    return section(
        "This sound found these pictures", lead, f'{sheets.legend(["right"])}<div class="cards">{cards}</div>', "sounds"
    )


def _fused(run: RunFiles) -> str:
    examples = run.seed.evaluation["examples"].get("fused_to_image", []) if run.seed else []
    fused = _metric(run, "fused_to_image_r5")
    if not examples or run.data is None or run.seed is None or fused is None:
        return ""
    data, gallery = run.data, run.seed.gallery
    cards = "".join(sheets.fused_card(example, data, gallery) for example in examples)
    lead = (
        "One query of two parts: the vector of a sound plus the vector of a word. The gallery holds "
        f"{fused['gallery']} pictures of two things that were never shown side by side in training. "
        "Evenly spaced over all queries, failures included."
    )
    body = f'{sheets.legend(["right", "half"])}<div class="cards">{cards}</div>'
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


def _worth(run: RunFiles) -> str:
    """Of a finetuned model: the trivial answer, the model as it came and the result, each with its interval."""
    names = {"trivial": "a trivial answer", "before": "the model as it came", "after": "after training"}
    rows = []
    for name, words in names.items():
        if (one := run.worth.get(name)) is not None:
            low, high = one["interval"]
            about = f" <span class='dim'>({escape(one['about'])})</span>" if one.get("about") else ""
            rows.append(f"<tr><td>{words}{about}</td><td>{one['value']:.3f}</td><td>{low:.3f} to {high:.3f}</td></tr>")
    if not rows:
        return ""
    metric = escape(str(run.worth["trivial"]["metric"]))
    table = (
        f'<table class="plain"><thead><tr><th scope="col"></th><th scope="col">{metric}</th>'
        f'<th scope="col">95&#8239;%</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    lead = f"Task {escape(run.worth['task'])}, on {run.worth['rows']['test']:,} rows that were held out."
    return section("What it is worth", lead, table, "worth")


def _curves(run: RunFiles) -> str:
    figures = []
    for stage, seeds in run.curves.items():
        names = list(dict.fromkeys(name for row in seeds[0] for name in row if name.startswith(_LOSSES)))
        if "contrast" in names:
            names.remove("loss")  # the sum jumps at every k-th step, when the denoising losses join it
        lines = {name: [[(row["step"], row[name]) for row in rows if name in row] for rows in seeds] for name in names}
        notes = [f"{seeds[0][-1]['step'] - seeds[0][0]['step'] + 1:,} steps"]
        rates = sorted(row["samples_per_second"] for row in seeds[0] if "samples_per_second" in row)
        if rates:
            notes.append(f"{rates[len(rates) // 2]:,.0f} samples per second")
        last = seeds[0][-1]
        for name, words in {
            "mfu": "{:.0%} MFU",
            "memory_gib": "{:.2g} GiB",
            "data_wait": "{:.0%} waiting for data",
        }.items():
            notes += [words.format(last[name])] if name in last else []
        if len(seeds) > 1:
            notes.append(f"{len(seeds)} seeds, the first drawn strong")
        figures.append(
            f"<figure class='panel'><figcaption><b>{escape(stage)}</b> {' · '.join(notes)}</figcaption>"
            f"{charts.line_chart(lines, 'steps')}</figure>"
        )
    return section("How it learnt", "", f'<div class="panels">{"".join(figures)}</div>', "curves") if figures else ""


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
