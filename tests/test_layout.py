"""The house keeps its shape: rooms import downwards only, no circles, files tell one idea, start-up loads no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
FILES = sorted(path for package in ("plait", "plait_studies") for path in (SOURCE / package).rglob("*.py"))
MAX_FILE_LINES = 800
MAX_FUNCTION_LINES = 80

FAMILIES = ("mplug2", "mplug_owl", "mplug_owl2", "one_peace")
ROOMS_BY_LEVEL = {
    0: ("types", "routing", "errors", "places", "reading", "terminal", "modalities", "lazy", "presets"),
    1: ("media", "nn", "weights", "objectives", "metrics", "report"),
    2: ("processing", "generation"),
    3: ("data", *(f"models.{family}" for family in FAMILIES)),
    3.5: ("models",),  # auto, catalog, convert and merge: above the families, below what uses them
    4: ("embedder", "assistant", "chat", "training", "evaluation", "search", "serving", "parity", "ui"),
    5: ("recipes", "cli"),
    6: ("", "__main__"),  # plait/__init__.py: public names; python -m plait
    7: ("studies",),  # plait_studies, which plait never imports
}
LEVEL = {room: level for level, rooms in ROOMS_BY_LEVEL.items() for room in rooms}
SAME_LEVEL = {
    "routing": {"types"},  # the words all rooms share
    "places": {"errors"},
    "errors": {"reading"},
    "modalities": {"types", "errors"},
    "presets": {"errors"},
    "nn": {"weights"},
    "search": {"embedder", "chat", "assistant"},
    "serving": {"embedder", "chat", "assistant", "search"},
    "ui": {"embedder", "chat", "assistant", "search"},
    "evaluation": {"embedder", "assistant", "chat"},
    "parity": {"embedder", "assistant"},
    "cli": {"recipes"},
}


STILL_CIRCLES = ()
"""First files of circles that the next changes cut."""


def module_name(path: Path) -> str:
    """`plait.nn.layers` for src/plait/nn/layers.py, `plait.nn` for its __init__.py."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
_NAME = re.compile(r"plait(?:_studies)?(?:\.\w+)+(?::\w+)?")


def room_of(module: str) -> str:
    """The room a module belongs to: `nn`, `models.one_peace`, `models` (auto), `` for the package itself."""
    package, *parts = module.split(".")
    if package == "plait_studies":
        return "studies"
    if parts[:1] == ["models"] and len(parts) > 1 and parts[1] in FAMILIES:
        return ".".join(parts[:2])
    return parts[0] if parts else ""


def module_in(text: str) -> str | None:
    """The module that a string names (`plait.nn.layers`, `plait.cli:main`), None where it names none."""
    if not _NAME.fullmatch(text):
        return None
    name = text.partition(":")[0]
    return next((found for found in (name, name.rpartition(".")[0]) if found in MODULES), None)


def imports_of(module: str, tree: ast.AST, is_package: bool) -> Iterator[str]:
    """Every module of ours that `tree` imports: at any depth, under TYPE_CHECKING, or named by a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [*module.split("."), "__init__"] if is_package else module.split(".")
                base = ".".join([*here[: -node.level], base]).strip(".")
            # `from plait.nn import layers` names a module, `from plait.nn.layers import SwiGLU` something inside one
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = module_in(node.value)
            names = [found] if found and not module.startswith(f"{found}.") else []  # its own package's data files
        else:
            continue
        yield from (name for name in names if re.match(r"plait(_studies)?(\.|$)", name))


def objection(importer: str, imported: str) -> str | None:
    """Why `importer` may not import `imported`, or None where it may."""
    here, there = room_of(importer), room_of(imported)
    for room in (here, there):
        if room not in LEVEL:
            return f"{room!r} has no level"
    if here == there or there in SAME_LEVEL.get(here, ()) or imported == "plait":
        return None  # `import plait` alone reaches public names only, and those lazily
    if LEVEL[there] >= LEVEL[here]:
        return f"{here} (level {LEVEL[here]}) may not import {there} (level {LEVEL[there]})"
    family = there.removeprefix("models.")
    own = f"plait.recipes.{family}"
    is_its_recipe = importer == own or importer.startswith(f"{own}_")
    if family in FAMILIES and LEVEL[here] > LEVEL["models"] and here != "studies" and not is_its_recipe:
        return f"only recipes/{family}.py, tests and studies name models.{family} above the families"
    return None


def edges() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    found: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[module] = set(imports_of(module, tree, path.name == "__init__.py")) - {module}
    return found


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of more than one module that all reach each other."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for name in edges.get(todo.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        return seen

    ahead = {name: reached(name) for name in edges}
    rings = {tuple(sorted(n for n in ahead[name] if name in ahead.get(n, ()))) for name in edges if name in ahead[name]}
    return [list(ring) for ring in sorted(rings)]


def test_imports_go_down_only() -> None:
    objections = {f"{a} -> {b}: {why}" for a, named in edges().items() for b in named if (why := objection(a, b))}
    assert not objections, "\n" + "\n".join(sorted(objections))


NAMES = re.compile(r"OnePeace|MPlug2|MPlugOwl")
"""How classes of the families begin."""


def family_names(tree: ast.AST) -> set[str]:
    """Classes of families and their `model_type`s that code names, docstrings aside."""
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and NAMES.search(node.id)}
    found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and NAMES.search(node.attr)}
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return found | {text for text in texts if text in FAMILIES or re.fullmatch(r"(OnePeace|MPlug2|MPlugOwl)\w*", text)}


def test_no_room_above_the_families_names_one() -> None:
    above = [m for m in MODULES if LEVEL[room_of(m)] >= 4 and room_of(m) not in ("recipes", "studies", "parity", "")]
    named = {m: found for m in above if (found := family_names(ast.parse(MODULES[m].read_text("utf-8"))))}
    assert not named
    assert not [m for m in above if m.rpartition(".")[2] in FAMILIES]


def test_no_files_import_each_other_in_a_circle() -> None:
    # public names lead to everything, and everything may ask for the version: neither ties files together
    found = circles({a: named - {"plait"} for a, named in edges().items() if a != "plait"})
    found = [ring for ring in found if ring[0] not in STILL_CIRCLES]
    assert not found, "\n" + "\n".join(map(str, found))


def test_a_circle_is_found_and_a_chain_is_none() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("plait.media.image", "plait.weights.files"),  # level 1 imports level 0 only
        ("plait.weights.files", "plait.nn.vit"),
        ("plait.report.page", "plait.media.audio"),
        ("plait.models.one_peace.model", "plait.models.mplug2.model"),
        ("plait.models.one_peace.model", "plait.models.auto"),
        ("plait.models.one_peace.model", "plait.data.manifest"),
        ("plait.search.index", "plait.evaluation.run"),
        ("plait.search.index", "plait.models.one_peace.model"),
        ("plait.training.loop", "plait.recipes.one_peace"),
        ("plait.parity.cases", "plait.models.one_peace.weights"),
        ("plait.recipes.plan", "plait.models.one_peace.model"),
        ("plait.recipes.plan", "plait.cli.train"),
        ("plait.embedder.towers", "plait.search.index"),
        ("plait.cli.train", "plait.models.one_peace.model"),
        ("plait.cli", "plait_studies.quickstart"),
    ],
)
def test_the_walk_objects_to_forbidden_edges(importer: str, imported: str) -> None:
    assert objection(importer, imported)


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("plait.media.image", "plait.types"),
        ("plait.nn.vit", "plait.weights.files"),
        ("plait.models.one_peace.model", "plait.nn.encoder"),
        ("plait.models.auto", "plait.models.one_peace.model"),
        ("plait.training.loop", "plait.data.manifest"),
        ("plait.search.index", "plait.embedder"),
        ("plait.evaluation.run", "plait.embedder"),
        ("plait.recipes.one_peace", "plait.models.one_peace.model"),
        ("plait.cli.train", "plait.recipes.plan"),
        ("plait.serving.app", "plait.chat"),
        ("plait_studies.quickstart", "plait.training.loop"),
        ("plait_studies.owl", "plait.models.mplug_owl.model"),
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
        from ..weights import keymap
        HOME = "plait.cli:main"
        def late():
            from plait.errors import UsageError
            import_module("plait.routing")
    """
    found = set(imports_of("plait.nn.vit", ast.parse(textwrap.dedent(source)), is_package=False))
    assert found == {
        "plait.media",
        "plait.types",
        "plait.nn.layers",
        "plait.nn.attention",
        "plait.weights.keymap",
        "plait.errors",
        "plait.cli",
        "plait.routing",
    }


def test_a_file_tells_one_idea() -> None:
    long = {
        str(p.relative_to(SOURCE)): n for p in FILES if (n := len(p.read_text("utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert not long, f"split by idea: {long}"


def test_functions_can_be_read_at_once() -> None:
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
