"""The report: one file that needs nothing else, shows what the run has and marks what is right."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from plait.evaluation.emergent import evaluate_emergent
from plait_studies.report import build_report
from plait_studies.summary import summarise, write_summary

from ..pages import Checker, write_curves
from ..planted import SOUNDING, Planted, slug, write_data


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
        write_curves(run / f"seed-{seed}" / "stage2-shuffled", "control")
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
    assert "control" not in section  # whose words are shuffled
    assert section.count("<figure") == 2
    assert "3 steps" in section
    assert "2 seeds" in section
    assert ">contrast " in section
    assert ">loss " not in section


def test_training_time_is_per_seed(page: str) -> None:
    assert "1&#8239;min 30&#8239;s of training" in page


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a quickstart with summary\.json"):
        build_report(tmp_path)


def test_labels_of_concepts_are_slugs(run_dir: Path) -> None:
    stored = json.loads((run_dir / "seed-0" / "evaluation" / "evaluation.json").read_text())
    assert stored["examples"]["audio_to_image"][0]["label"] == slug(SOUNDING[0])
