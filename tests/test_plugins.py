"""Files and packages of the user's own: modalities, families and recipes that come by their hand, each name once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import plait
from plait import modalities
from plait.cli import VERBS, command, main, verbs
from plait.errors import UsageError
from plait.models import auto
from plait.recipes import RECIPES, find_recipe

RECIPE = """
from plait.training.stages import Recipe

def tiny(steps: int = 1) -> Recipe:
    raise ValueError("expected nothing, got a call of tiny")

RECIPES = {"mine.tiny": tiny}
"""
MODALITY = """
from plait.modalities import register
register("smell", load=str, process=lambda values: {"smell": values}, adapter=lambda config: None)
"""
FAMILY = """
from transformers import PreTrainedConfig

class MineConfig(PreTrainedConfig):
    model_type = "{name}"

CONFIG = MineConfig
PROCESSOR = BASE_MODEL = object
"""


@pytest.fixture(autouse=True)
def nothing_used(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test brings in goes with it, and it begins with nothing of other tests."""
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("plait_plugin_")}
    monkeypatch.setattr(modalities, "_REGISTRY", {})
    known = dict(auto.FAMILIES)
    yield
    auto.FAMILIES.clear()
    auto.FAMILIES.update(known)
    for name in [name for name in sys.modules if name.startswith(("plait_plugin_", "a_package_"))]:
        del sys.modules[name]
    sys.modules.update(held)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file of the user's own."""

    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str, str], None]:
    """Installs a package of one module with one entry point."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def installed(name: str, group: str, entry: str, text: str) -> None:
        info = tmp_path / "site" / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
        (tmp_path / "site" / f"{name}.py").write_text(text)

    return installed


def test_a_file_brings_a_recipe_and_what_it_raises_is_one_line(file, capsys: pytest.CaptureFixture[str]) -> None:
    path = file("mine.py", RECIPE)
    assert main(["train", "mine.tiny", "--plugin", str(path)]) == 1
    assert capsys.readouterr().err == "plait: expected nothing, got a call of tiny\n"
    assert main(["train", "mine.tinny"]) == 2
    assert "did you mean 'mine.tiny'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\nraise KeyError('mine')\n", "expected a plug-in that runs, got KeyError: 'mine' in {path}, line 2"),
        ("import nowhere\n", "got ModuleNotFoundError: No module named 'nowhere' in {path}, line 1"),
        ("def broken(:\n", "got SyntaxError"),
        ("raise ValueError('two\\nlines')\n", "got ValueError: two lines in {path}, line 1; correct the file"),
        (FAMILY.format(name="one_peace"), "expected a model_type that no other family has, got 'one_peace'"),
        (FAMILY.format(name="clip"), "expected a model_type that no other family has, got 'clip'"),
        ("CONFIG = 1\n", "expected a family with CONFIG, PROCESSOR and BASE_MODEL, got none of PROCESSOR, BASE_MODEL"),
    ],
)
def test_a_file_that_fails_is_one_line_and_leaves_nothing(file, capsys, text: str, said: str) -> None:
    path = file("mine.py", text)
    assert main(["train", "one_peace.stage1", "--plugin", str(path)]) == 2
    printed = capsys.readouterr().err
    assert said.format(path=path) in printed
    assert printed.count("\n") == 1
    assert not any(name.startswith("plait_plugin_") for name in sys.modules)


def test_no_such_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "nano", "--plugin", str(tmp_path / "absent.py")]) == 2
    assert "expected a Python file, got" in capsys.readouterr().err


def test_two_files_with_one_name_are_one_line(file) -> None:
    plait.use(file("a.py", RECIPE))
    plait.use(file("b.py", RECIPE))
    with pytest.raises(UsageError, match=r"expected a new name for a recipe in .*b.py, got 'mine.tiny'"):
        find_recipe("mine.tiny")
    plait.use(file("c.py", MODALITY))
    with pytest.raises(UsageError, match="expected one file that registers smell, got plait_plugin_2_c and"):
        plait.use(file("d.py", MODALITY))
    plait.use(file("e.py", FAMILY.format(name="mine")))
    with pytest.raises(UsageError, match="expected a model_type that no other family has, got 'mine'"):
        plait.use(file("f.py", FAMILY.format(name="mine")))


def test_a_recipe_of_ours_keeps_its_name(file) -> None:
    plait.use(file("a.py", RECIPE.replace("mine.tiny", "finetune")))
    with pytest.raises(UsageError, match=r"expected a new name for a recipe in .*, got 'finetune'"):
        find_recipe("finetune")


def test_installed_packages_bring_recipes_and_modalities(package) -> None:
    package("a_package_of_recipes", "plait.recipes", "theirs.tiny = a_package_of_recipes:tiny", RECIPE)
    package("a_package_of_smells", "plait.modalities", "smell = a_package_of_smells", MODALITY)
    assert find_recipe("theirs.tiny").__name__ == "tiny"
    assert "a_package_of_smells" not in sys.modules
    assert modalities.is_registered("smell")
    assert modalities.registered("smell").load is str
    assert not modalities.is_registered("os")


def test_two_packages_with_one_name_are_one_line(package) -> None:
    for name in ("a_package_x", "a_package_y"):
        package(name, "plait.recipes", f"theirs.tiny = {name}:tiny", RECIPE)
    with pytest.raises(UsageError, match=r"expected one package with theirs.tiny among its plait.recipes, got a_packa"):
        find_recipe("theirs.tiny")


def test_an_installed_package_never_stands_for_a_recipe_of_ours(package) -> None:
    name = next(iter(RECIPES))
    package("a_package_x", "plait.recipes", f"{name} = a_package_x:tiny", RECIPE)
    assert find_recipe(name).__module__.startswith("plait.recipes")


def test_every_verb_that_opens_a_model_or_runs_a_recipe_takes_plugins() -> None:
    without = {"data", "doctor", "quickstart", "study"}
    assert {name for name, verb in verbs().items() if not verb.opens} == without
    assert {name for name, verb in VERBS.items() if verb.opens} >= {"train", "eval", "embed", "search", "chat", "plan"}
    for name in ("embed", "index", "info"):
        made = command(name)
        for one in getattr(made, "commands", {name: made}).values():
            assert [o.multiple for o in one.params if o.name == "plugin"] == [True]
