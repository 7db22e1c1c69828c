"""`plait quickstart`: public commands in order, kept steps, exact continuation; once for real on a tiny folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from plait.errors import UsageError
from plait.evaluation.emergent import evaluate_emergent
from plait_studies import quickstart as module
from plait_studies.quickstart import INTERRUPTED, quickstart

from ..planted import Planted, write_data

FIRST = ["index", "search", "search"]
"""What runs before anything trains: a search by word and one by sound."""


@pytest.fixture(autouse=True)
def planted_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORD", "thing 2")
    monkeypatch.setattr(module, "SOUND", "thing-2")


class Commands:
    """Stands in for the public commands: makes what they make, and remembers what was asked."""

    def __init__(self, sounds: bool = True) -> None:
        self.sounds = sounds
        self.ran: list[tuple[str, ...]] = []
        self.before: Callable[[Sequence[str]], int] = lambda argv: 0

    def __call__(self, argv: Sequence[str]) -> int:
        self.ran.append(tuple(argv))
        code = self.before(argv)
        if code:
            return code
        out = Path(argv[argv.index("--out") + 1]) if "--out" in argv else Path()
        if argv[:2] == ("data", "build"):
            write_data(out, sounds=self.sounds)
        elif argv[:2] == ("data", "from-folder"):
            write_data(Path(argv[3]), sounds=self.sounds)
        elif argv[0] == "train":
            (out / "model").mkdir(parents=True)
            row = {"step": 1, "stage": out.name, "loss": 1.0}
            (out / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        elif argv[0] == "eval":
            noise = 1e6 if "shuffled" in str(out) else 0.05
            data = argv[argv.index("--data") + 1]
            evaluate_emergent(Planted(noise), data, gallery=out / "gallery").save(out)
        elif argv[:2] == ("index", "add"):
            Path(argv[2]).mkdir(parents=True, exist_ok=True)
        return 0

    def names(self) -> list[str]:
        """The verbs that ran, in order, with the recipe of a training."""
        return [argv[1] if argv[0] == "train" else argv[0] for argv in self.ran]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands()
    monkeypatch.setattr(module, "invoke", fake)
    return fake


def test_the_steps_run_in_order_and_each_is_printed_first(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quickstart(out=tmp_path / "demo", k=5) == 0
    stages = ["one_peace.stage1", "one_peace.stage2"]
    assert commands.names() == ["data", *FIRST, "data", *stages, "eval", "info", "index", "search", "search"]
    printed = capsys.readouterr().out
    assert "k = 5" in printed
    for argv in commands.ran:
        # by its whole path where the shell would not find it
        assert re.search(rf"^\$ (\S*/)?plait {re.escape(' '.join(argv[:2]))}", printed, re.MULTILINE)
    assert all("denoise_every=5" in argv for argv in commands.ran if argv[0] == "train")
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["seeds"] == 1
    assert summary["metrics"]["shuffled_audio_to_image_r1"]["value"] is None
    assert {"stage1", "stage2", "one_seed", "total"} <= set(summary["seconds"])
    assert (tmp_path / "demo" / "report.html").stat().st_size > 10_000


def test_a_second_run_keeps_everything_and_searches_again(tmp_path: Path, commands: Commands) -> None:
    quickstart(out=tmp_path / "demo")
    before = json.loads((tmp_path / "demo" / "summary.json").read_text())["metrics"]
    commands.ran.clear()
    assert quickstart(out=tmp_path / "demo") == 0
    assert commands.names() == ["search", "search", "search", "search"]  # the first ones, and those with its own model
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["metrics"] == before


def test_more_seeds_add_runs_and_the_control_trained_alike(tmp_path: Path, commands: Commands) -> None:
    quickstart(out=tmp_path / "demo")
    commands.ran.clear()
    assert quickstart(out=tmp_path / "demo", seeds=2) == 0
    trained = [argv for argv in commands.ran if argv[0] == "train"]
    assert [Path(argv[-1]).relative_to(tmp_path / "demo").as_posix() for argv in trained] == [
        "seed-0/stage2-shuffled",
        "seed-1/stage1",
        "seed-1/stage2",
        "seed-1/stage2-shuffled",
    ]
    real, control = trained[2], trained[3]
    assert control[: control.index("shuffle_pairs=true") - 1] == real[: real.index("--seed")]
    assert trained[1][trained[1].index("--seed") + 1] == "1"
    metrics = json.loads((tmp_path / "demo" / "summary.json").read_text())["metrics"]
    assert len(metrics["audio_to_image_r1"]["per_seed"]) == 2
    assert len(metrics["shuffled_audio_to_image_r1"]["per_seed"]) == 2


@pytest.mark.parametrize("how", ["signal", "ctrl-c"])
def test_an_interrupted_run_says_how_to_continue_and_does(
    how: str, tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(argv: Sequence[str]) -> int:
        if "one_peace.stage2" in argv:
            if how == "ctrl-c":
                raise KeyboardInterrupt
            return INTERRUPTED
        return 0

    commands.before = stop
    assert quickstart(out=tmp_path / "demo") == INTERRUPTED
    printed = capsys.readouterr().out
    assert f"plait quickstart --seeds 1 --out {tmp_path / 'demo'} --k 8" in printed
    commands.before = lambda argv: 0
    commands.ran.clear()
    assert quickstart(out=tmp_path / "demo") == 0
    assert commands.names()[2:3] == ["one_peace.stage2"]  # after the two first searches


def test_a_lost_model_is_made_again_with_all_that_depends_on_it(tmp_path: Path, commands: Commands) -> None:
    quickstart(out=tmp_path / "demo")
    (tmp_path / "demo" / "seed-0" / "stage1" / "model").rmdir()
    commands.ran.clear()
    assert quickstart(out=tmp_path / "demo") == 0
    assert commands.names()[2:7] == ["one_peace.stage1", "one_peace.stage2", "eval", "info", "index"]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("folder", "out"), [("proj/data", "proj"), ("proj", "proj"), ("proj", "proj/run")])
def test_pictures_and_output_lie_apart(folder: str, out: str, tmp_path: Path, commands: Commands) -> None:
    write_data(tmp_path / "proj" / "data")
    before = files(tmp_path)
    with pytest.raises(UsageError, match="expected an output apart from what is read"):
        quickstart(tmp_path / folder, out=tmp_path / out)
    assert files(tmp_path) == before
    assert commands.ran == []


def test_a_link_hides_no_input_in_the_output(tmp_path: Path, commands: Commands) -> None:
    write_data(tmp_path / "proj" / "data")
    (tmp_path / "photos").symlink_to(tmp_path / "proj" / "data")
    before = files(tmp_path)
    with pytest.raises(UsageError, match="apart from what is read"):
        quickstart(tmp_path / "photos", out=tmp_path / "proj")
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["data", "index.lance", "seed-0/stage1/model", "first"])
@pytest.mark.parametrize("source", [None, "mine"])
def test_an_output_that_somebody_else_filled_is_left_alone(
    name: str, source: str | None, tmp_path: Path, commands: Commands
) -> None:
    write_data(tmp_path / "mine")
    (tmp_path / "proj" / name).mkdir(parents=True)
    (tmp_path / "proj" / name / "manifest.jsonl").write_text("of years")
    before = files(tmp_path)
    with pytest.raises(UsageError, match="that Plait did not make; choose another, nothing was changed"):
        quickstart(source and tmp_path / source, out=tmp_path / "proj")
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["data", "index.lance", "seed-0/evaluation"])
def test_what_somebody_put_into_a_run_later_is_left_alone(name: str, tmp_path: Path, commands: Commands) -> None:
    run = tmp_path / "demo"
    quickstart(out=run)
    shutil.rmtree(run / name)
    (run / name).mkdir()
    (run / name / "kept.txt").write_text("of years")
    (run / "quickstart.json").write_text(
        (run / "quickstart.json").read_text().replace('"is_done": true', '"is_done": false')
    )
    with pytest.raises(UsageError, match="that Plait did not make"):
        quickstart(out=run)
    assert (run / name / "kept.txt").read_text() == "of years"


def test_a_kill_in_the_first_step_leaves_a_run_that_goes_on(tmp_path: Path, commands: Commands) -> None:
    def stop(argv: Sequence[str]) -> int:
        (tmp_path / "demo" / "data" / "half").write_text("x")
        raise MemoryError

    commands.before = stop
    with pytest.raises(MemoryError):
        quickstart(out=tmp_path / "demo")
    (tmp_path / "demo" / "quickstart.json").unlink()  # a real kill writes none
    commands.before = lambda argv: 0
    assert quickstart(out=tmp_path / "demo") == 0
    assert not (tmp_path / "demo" / "data" / "half").exists()


def test_other_settings_do_not_mix_with_an_old_run(tmp_path: Path, commands: Commands) -> None:
    quickstart(out=tmp_path / "demo", k=8)
    with pytest.raises(UsageError, match="expected k 8 to continue"):
        quickstart(out=tmp_path / "demo", k=4)


def test_without_sounds_stage_two_is_left_out_aloud(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.sounds = False
    write_data(tmp_path / "mine")
    assert quickstart(tmp_path / "mine", out=tmp_path / "run") == 0
    assert commands.names() == [
        "index",
        "search",
        "data",
        "data",
        "one_peace.stage1",
        "eval",
        "info",
        "index",
        "search",
    ]
    assert commands.ran[2][:3] == ("data", "from-folder", str(tmp_path / "mine"))
    assert "stage 2 and everything that listens are left out" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bars"] == {}
    assert summary["metrics"]["audio_to_image_r1"]["value"] is None


def test_a_failing_command_stops_the_run_with_its_own_error(tmp_path: Path, commands: Commands) -> None:
    def fail(argv: Sequence[str]) -> int:
        if argv[0] == "eval":
            raise ValueError("expected a model, got none")
        return 0

    commands.before = fail
    with pytest.raises(ValueError, match="expected a model, got none"):
        quickstart(out=tmp_path / "demo")
    steps = json.loads((tmp_path / "demo" / "quickstart.json").read_text())["steps"]
    assert steps["seed-0 stage2"]["is_done"]
    assert not steps["seed-0 evaluate"]["is_done"]


def test_for_real_on_a_folder_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("red ball", "blue box", "green leaf")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(3):
            colour = [10 * i, 10 * i, 10 * i]
            colour[number] = 200
            Image.new("RGB", (32, 32), tuple(colour)).save(tmp_path / "mine" / name / f"{i}.png")
    options = ["steps=2", "batch_size=3"]
    assert quickstart(Path("mine"), k=2, stage1=options) == 0
    summary = json.loads(Path("runs/mine/summary.json").read_text())
    assert 0 <= summary["metrics"]["image_to_text_r1"]["value"] <= 1
    assert summary["metrics"]["image_to_text_r1"]["chance"] == pytest.approx(1 / 3, abs=1e-3)
    assert Path("runs/mine/report.html").is_file()
    assert Path("runs/mine/search-word.html").is_file()
    assert Path("runs/mine/seed-0/stage1/model/config.json").is_file()


def test_the_first_hit_is_real_and_comes_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the shipped data, with the shipped model: the word and the sound find their held-out drawings."""
    pytest.importorskip("lancedb")
    monkeypatch.setattr(module, "WORD", "trumpet")
    monkeypatch.setattr(module, "SOUND", "bird")

    def stop(argv: Sequence[str]) -> int:
        if argv[:2] == ("data", "check"):
            raise KeyboardInterrupt
        return invoke(argv)

    invoke = module.invoke
    monkeypatch.setattr(module, "invoke", stop)
    monkeypatch.chdir(tmp_path)
    assert quickstart() == INTERRUPTED
    printed = capsys.readouterr().out
    best = [line for line in printed.splitlines() if line.startswith("1  ")]
    assert len(best) == 2
    assert "noto-v1/trumpet.webp" in best[0]
    assert "noto-v1/bird.webp" in best[1]
    assert "held out of its training" in printed
    assert Path("runs/demo/first-1.html").is_file()


@pytest.mark.parametrize(
    ("made", "message"), [("nothing", "no such folder"), ("empty", "got none"), ("file", "a file")]
)
def test_a_folder_that_holds_nothing_is_one_line_before_anything_runs(
    made: str, message: str, tmp_path: Path, commands: Commands
) -> None:
    folder = tmp_path / "mine"
    if made == "file":
        folder.write_text("x")
    elif made == "empty":
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "notes.txt").write_text("milk")
    with pytest.raises(UsageError, match=message):
        quickstart(folder, out=tmp_path / "run")
    assert commands.ran == []
