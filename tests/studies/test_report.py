"""The report: one file that needs nothing else, shows what the run has and marks what is right."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from plait.evaluation.emergent import evaluate_emergent
from plait.report.charts import gap_numbers, line_chart, thin, ticks
from plait_studies.report import build_report
from plait_studies.summary import summarise, write_summary

from ..planted import SOUNDING, Planted, slug, write_data

VOID = {"meta", "img", "br", "circle", "path", "rect"}


class Checker(HTMLParser):
    """Fails on unbalanced tags and collects every address that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def write_curves(path: Path, stage: str) -> None:
    path.mkdir(parents=True)
    rows = [{"step": i, "stage": stage, "loss": 4 / i, "contrast": 3 / i, "samples_per_second": 9.0} for i in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "st')


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    write_data(run / "data")
    stored = []
    for seed in range(2):
        place = run / f"seed-{seed}" / "evaluation"
        evaluation = evaluate_emergent(Planted(noise=0.1, seed=seed), run / "data", gallery=place / "gallery")
        stored.append(json.loads(evaluation.save(place).read_text()))
        write_curves(run / f"seed-{seed}" / "stage1", "stage1")
        write_curves(run / f"seed-{seed}" / "stage2", "stage2")
    write_summary(run / "summary.json", summarise(stored), {"stage1": 130.0, "stage2": 50.0})
    commands = [{"command": "plait train one_peace.stage1 --set 'data=<mine>'", "seconds": 130.0}]
    log = {"data": "data", "is_shipped_data": True, "commands": commands, "notes": {"denoising losses": "every 8"}}
    (run / "quickstart.json").write_text(json.dumps(log))
    return run


@pytest.fixture(scope="module")
def page(run_dir: Path) -> str:
    return build_report(run_dir).read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(page: str) -> None:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.sources) > 40
    assert all(source.startswith("data:") for source in checker.sources)
    assert "<!--" not in page
    assert not re.search(r"https?://", page)


def test_every_sound_has_a_player_and_its_five_pictures(page: str, run_dir: Path) -> None:
    start, end = page.index('<section id="sounds">'), page.index('<section id="fused">')
    section = page[start:end]
    assert section.count("<audio ") == len(SOUNDING)
    assert section.count('class="right"') == 2 * len(SOUNDING)  # among sounding things, and among all
    for word in SOUNDING:
        assert f"<h3>{word}</h3>" in section


def test_numbers_chance_and_bars_are_those_of_the_summary(page: str, run_dir: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    metrics = summary["metrics"]
    table = page[page.index('<section id="numbers">') :]
    for name in ("audio_to_image_r1", "image_to_text_r1", "fused_to_image_r5"):
        row = table[table.index(f"<code>{name}</code>") :].split("</tr>")[0]
        assert f"{100 * metrics[name]['value']:.1f}&#8239;%" in row
        assert f"{100 * metrics[name]['chance']:.1f}&#8239;%" in row
        assert f'class="{"met" if summary["bars"][name]["met"] else "missed"}"' in row
    assert "unseen_font_audio_to_image_r1" not in table
    assert "shuffled_audio_to_image_r1" not in table


def test_user_words_are_escaped(page: str) -> None:
    assert "data=&lt;mine&gt;" in page
    assert "<mine>" not in page


def test_curves_of_all_seeds_are_drawn_and_a_torn_line_is_left_out(page: str) -> None:
    section = page[page.index('<section id="curves">') :].split("</section>", maxsplit=1)[0]
    assert section.count("<figure") == 2
    assert "3 steps" in section
    assert "2 seeds" in section
    assert ">contrast " in section
    assert ">loss " not in section


def test_training_time_is_per_seed(page: str) -> None:
    assert "1&#8239;min 30&#8239;s of training" in page


def test_a_plain_training_run_gets_its_curves(tmp_path: Path) -> None:
    write_curves(tmp_path / "run", "stage1")
    page = build_report(tmp_path / "run", tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<section") == 1
    assert 'id="curves"' in page


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a run with metrics\.jsonl or summary\.json"):
        build_report(tmp_path)


def test_thinning_keeps_the_mean_and_the_end() -> None:
    series = [(float(i), float(i % 7)) for i in range(1600)]
    short = thin(series)
    assert len(short) == 160
    assert short[-1][0] == 1599
    assert np.mean([y for _, y in short]) == pytest.approx(np.mean([y for _, y in series]))
    assert thin([(1.0, float("nan")), (2.0, 3.0)]) == [(2.0, 3.0)]


@pytest.mark.parametrize(("low", "high"), [(0, 4.9), (0, 2200), (0, 0.031), (-1.5, 1), (0, 1)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert found[0] >= low - 1e-9 and found[-1] <= high + 1e-9
    assert len(set(np.round(np.diff(found), 9))) == 1


def test_a_chart_without_points_is_empty() -> None:
    assert line_chart({"loss": [[]]}, "steps") == ""


def test_gap_numbers_tell_matching_from_other_pairs() -> None:
    vectors = {"text": np.eye(3), "image": np.eye(3)[[0, 0, 1]]}
    labels = {"text": ["a", "b", "c"], "image": ["a", "a", "b"]}
    assert gap_numbers(vectors, labels) == [("text and image", 1.0, 0.0)]


def test_labels_of_concepts_are_slugs(run_dir: Path) -> None:
    stored = json.loads((run_dir / "seed-0" / "evaluation" / "evaluation.json").read_text())
    assert stored["examples"]["audio_to_image"][0]["label"] == slug(SOUNDING[0])


def test_a_finetuned_model_shows_what_it_is_worth(tmp_path: Path) -> None:
    write_curves(tmp_path / "run", "vqa")
    one = {"metric": "accuracy", "value": 0.5, "interval": [0.25, 0.75]}
    found = {
        "task": "vqa",
        "rows": {"test": 8},
        "trivial": {**one, "about": "always '<b>'"},
        "before": None,
        "after": one,
    }
    (tmp_path / "run" / "finetune.json").write_text(json.dumps(found))
    written = build_report(tmp_path / "run").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(written)
    assert checker.open == [] and "0.250 to 0.750" in written and "on 8 rows" in written
    assert "always &#x27;&lt;b&gt;&#x27;" in written and "the model as it came" not in written
