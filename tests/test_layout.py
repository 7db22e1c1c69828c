"""The house keeps its shape: rooms import downwards only, files and functions stay short, start-up loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted((SOURCE / "plait").rglob("*.py"))
MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 80

FAMILIES = ("mplug2", "mplug_owl", "mplug_owl2", "one_peace")
ROOMS_BY_LEVEL = {
    0: ("types", "routing", "errors"),
    1: ("places", "media", "nn", "weights", "objectives", "metrics"),
    2: ("processing", "generation"),
    3: ("data", *(f"models.{family}" for family in FAMILIES)),
    3.5: ("models",),  # auto.py and convert.py: above the families, below what uses them
    4: ("embedder", "assistant", "chat", "training", "evaluation", "search", "serving", "inspect", "parity"),
    5: ("recipes", "cli"),
    6: ("",),  # plait/__init__.py: public names
}
LEVEL = {room: level for level, rooms in ROOMS_BY_LEVEL.items() for room in rooms}
SAME_LEVEL = {
    "nn": {"weights"},
    "routing": {"types"},  # the words all rooms share
    "training": {"data"},
    "search": {"embedder", "chat", "assistant"},
    "serving": {"embedder", "chat", "assistant"},
    "evaluation": {"embedder", "assistant", "chat"},
    # golden optimiser steps, schedules and frozen sets run the code that trains, golden formats the readers
    "parity": {"training", "evaluation"},
}
MAY_NAME_A_FAMILY = ("parity", "recipes")


def module_name(path: Path) -> str:
    """`plait.nn.layers` for src/plait/blocks/mlp.py, `plait.nn` for its __init__.py."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def room_of(module: str) -> str:
    """The room a module belongs to: `blocks`, `models.one_peace`, `models` (auto), `` for the package itself."""
    parts = module.split(".")[1:]
    if parts[:1] == ["models"] and len(parts) > 1 and parts[1] in FAMILIES:
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def imports_of(module: str, tree: ast.AST, is_package: bool) -> Iterator[str]:
    """Every plait module that `tree` imports, at any depth, under TYPE_CHECKING, or by a literal import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [*module.split("."), "__init__"] if is_package else module.split(".")
                base = ".".join([*here[: -node.level], base]).strip(".")
            # `from plait.nn import mlp` names a module, `from plait.nn.layers import Mlp` something inside one
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        else:
            continue
        yield from (name for name in names if name == "plait" or name.startswith("plait."))


def is_named_after(name: str, family: str) -> bool:
    """`one_peace`, or a part of it such as `one_peace_model`."""
    first = name.partition(".")[0]
    return first == family or first.startswith(f"{family}_")


def objection(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`, or None where it may."""
    here, there = room_of(importer), room_of(imported)
    for room in (here, there):
        if room not in LEVEL:
            return f"{room!r} has no level"
    if here == there or there in SAME_LEVEL.get(here, ()) or (there == "" and imported == "plait"):
        return None  # `import plait` alone reaches public names only, and those lazily
    if LEVEL[there] >= LEVEL[here]:
        return f"{here} (level {LEVEL[here]}) may not import {there} (level {LEVEL[there]})"
    family = there.removeprefix("models.")
    if family in FAMILIES and LEVEL[here] > LEVEL["models"]:
        room, _, name = importer.removeprefix("plait.").partition(".")
        if room not in MAY_NAME_A_FAMILY or not is_named_after(name, family):
            return f"only models.auto, parity/{family}.py and recipes/{family}.py may import models.{family}"
    if there == "models" and LEVEL[here] > LEVEL["models"] and imported not in ("plait.models.auto", "plait.models"):
        return "models are reached through plait.models.auto"
    return None


def edges() -> Iterator[tuple[str, str]]:
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for imported in imports_of(module, tree, path.name == "__init__.py"):
            yield module, imported


def test_imports_go_down_only() -> None:
    objections = {f"{a} -> {b}: {why}" for a, b in edges() if a != "plait" and (why := objection(a, b))}
    assert not objections, "\n" + "\n".join(sorted(objections))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("plait.media.image", "plait.weights.files"),  # level 1 imports level 0 only
        ("plait.weights.files", "plait.nn.encoder"),
        ("plait.models.one_peace.model", "plait.models.mplug2.model"),
        ("plait.models.one_peace.model", "plait.models.auto"),
        ("plait.models.one_peace.model", "plait.data.manifest"),
        ("plait.search.commands", "plait.evaluation.commands"),
        ("plait.search.commands", "plait.models.one_peace.model"),
        ("plait.training.loop", "plait.recipes.one_peace"),
        ("plait.parity.runner", "plait.models.one_peace.weights"),
        ("plait.parity.mplug2", "plait.models.one_peace.weights"),
        ("plait.recipes.quickstart", "plait.models.one_peace.model"),
        ("plait.embedder.towers", "plait.search.index"),
        ("plait.cli", "plait.recipes.quickstart"),
    ],
)
def test_the_walk_objects_to_forbidden_edges(importer: str, imported: str) -> None:
    assert objection(importer, imported)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("plait.media.image", "plait.types"),
        ("plait.models.one_peace.model", "plait.nn.encoder"),
        ("plait.models.auto", "plait.models.one_peace.model"),
        ("plait.training.loop", "plait.data.manifest"),
        ("plait.search.index", "plait.embedder.items"),
        ("plait.evaluation.tasks", "plait.embedder"),
        ("plait.parity.one_peace", "plait.models.one_peace.weights"),
        ("plait.recipes.one_peace", "plait.models.one_peace.model"),
        ("plait.recipes.quickstart", "plait.training.loop"),
        ("plait.serving.app", "plait.chat"),
        ("plait.inspect.info", "plait.models.auto"),
    ],
)
def test_the_walk_accepts_allowed_edges(importer: str, imported: str) -> None:
    assert objection(importer, imported) is None


def test_the_walk_finds_every_form_of_import() -> None:
    source = """
        import plait.media
        from plait import types
        from .layers import SwiGLU
        from . import attention
        from ..nn import encoder
        def late():
            from plait.errors import UsageError
            import_module("plait.cli")
    """
    found = set(imports_of("plait.nn.attention", ast.parse(textwrap.dedent(source)), is_package=False))
    assert found == {
        "plait.media",
        "plait.types",
        "plait.nn.layers",
        "plait.nn.attention",
        "plait.nn.encoder",
        "plait.errors",
        "plait.cli",
    }


def test_files_are_short() -> None:
    long = {
        str(p.relative_to(SOURCE)): n for p in FILES if (n := len(p.read_text("utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not long, f"split by idea: {long}"


def test_functions_are_short() -> None:
    long = {
        f"{module}.{node.name}": lines
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert not long, f"split by idea: {long}"


def test_every_file_says_what_it_is() -> None:
    silent = [module for module, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not silent


@pytest.mark.parametrize("statement", ["import plait", "from plait.cli import main; main(['--help'])"])
def test_start_up_loads_no_torch(statement: str) -> None:
    report = "print(*{'torch', 'transformers', 'numpy', 'typer'} & set(sys.modules), file=sys.stderr, end='')"
    run = [sys.executable, "-c", f"import sys; {statement}; {report}"]
    assert subprocess.run(run, check=True, capture_output=True, text=True).stderr == ""
