"""What is installed from a wheel works alone: no source tree, every verb of both packages, files beside the code."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment that holds the wheel, and beside it what is installed here but our source tree."""
    home = tmp_path_factory.mktemp("wheel")
    (home / "source").mkdir()  # a copy: building writes into the tree
    shutil.copytree(ROOT / "src", home / "source" / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, home / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(home), str(home / "source")]
    subprocess.run(build, check=True)
    shutil.rmtree(home / "source")
    venv.create(home / "env", with_pip=False)
    python = home / "env" / "bin" / "python"
    (wheel,) = home.glob("*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    # a .pth inside a folder that a .pth names is not read, so an editable install there stays out
    (packages / "neighbours.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return home / "env" / "bin" / "plait"


def run(plait: Path, *words: str, cwd: Path) -> str:
    return subprocess.run([plait, *words], cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_the_command_is_the_one_in_the_wheel(plait: Path, tmp_path: Path) -> None:
    where = "import plait, plait_studies; print(plait.__file__, plait_studies.__file__)"
    python = plait.with_name("python")
    for file in subprocess.run(
        [python, "-c", where], cwd=tmp_path, check=True, capture_output=True, text=True
    ).stdout.split():
        assert Path(file).is_relative_to(plait.parents[1])


def test_verbs_of_the_studies_come_with_the_wheel(plait: Path, tmp_path: Path) -> None:
    listed = run(plait, "--help", cwd=tmp_path)
    assert all(f"\n  {verb} " in listed for verb in ("quickstart", "study", "search"))
    assert {line.split()[0] for line in run(plait, "study", cwd=tmp_path).splitlines()} == {"mplug2", "owl", "owl2"}
    assert "pinned public packages" in run(plait, "data", "build", "--help", cwd=tmp_path)


def test_the_first_hit_needs_the_wheel_alone(plait: Path, tmp_path: Path) -> None:
    """The model, pages and data that ship are in it: the quick start up to its first printed hit."""
    for number in range(3):
        (tmp_path / "mine").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (80 * number, 20, 90)).save(tmp_path / "mine" / f"{number}.png")
    asked = [plait, "quickstart", "mine", "--out", "run"]
    with subprocess.Popen(asked, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        assert running.stdout is not None
        seen = []
        for line in running.stdout:
            seen.append(line)
            if line.startswith("1  "):
                running.kill()
                break
    assert seen[-1].split()[-1].endswith("0.png"), "".join(seen)
    assert (tmp_path / "run" / "first" / "manifest.jsonl").is_file()


@pytest.mark.slow
def test_a_whole_quick_start_runs_from_the_wheel(plait: Path, tmp_path: Path) -> None:
    small = [
        word for stage in ("stage1", "stage2") for one in ("steps=2", "batch_size=4") for word in (f"--{stage}", one)
    ]
    run(plait, "quickstart", "--out", "run", "--k", "0", *small, cwd=tmp_path)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
