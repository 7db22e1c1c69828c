"""Nothing unused: every definition of `src/plait` is reached from what users hold, or is a written exception.

roots (public names, verbs, recipes, entry points, code that runs at import) -> names used -> definitions -> ...

Tests and the runners of golden cases are no users. The walk is by name and errs on the side of "reached": a name that
is imported or defined in a file is followed exactly, `x.name` reaches every function and every method of that name.
"""

from __future__ import annotations

import ast
import re
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .test_layout import MODULES, SOURCE, module_in
from .test_paths_that_stay import PATHS

HERE = Path(__file__).parent
EXCEPTIONS = HERE / "not_reached.txt"
"""One per line: `module.name  reason`, the reason naming the issue that gives it a user."""

CONTRACTS = """
    forward prepare_inputs_for_generation get_input_embeddings set_input_embeddings get_output_embeddings
    set_output_embeddings resize_token_embeddings can_generate prepare_decoder_input_ids_from_labels
    get_text_features get_image_features get_video_features get_audio_features get_image_tokens tie_weights
    set_attn_implementation get_encoder get_decoder get_input_mask apply_chat_template batch_decode decode
    model_input_names post_process_image_text_to_text from_pretrained save_pretrained from_dict to_dict
    reset_parameters _init_weights _preprocess _beam_search _update_finished_beams _check_early_stop_heuristic
    _get_logits_processor _expand_inputs_for_generation
""".split()  # noqa: SIM905
"""Methods that torch and transformers call, or that their documentation promises to users of a model."""

OTHERS_CALL = re.compile(
    r"_repr_html_|format_help|parse_args|visit_\w+|handle_\w+|emit|do_[A-Z]+|get_config|setup|teardown|run|close|flush|readable|seekable"
)
"""Methods that the standard library and the neighbours in `pyproject.toml` call on subclasses."""

PASSIVE = {"property", "cached_property", "staticmethod", "classmethod", "dataclass", "cache", "lru_cache", "wraps",
           "no_grad", "contextmanager", "overload", "abstractmethod", "override", "inference_mode"}  # fmt: skip
"""Decorators that hand the function to nobody; any other registers it somewhere."""


@dataclass
class Definition:
    """A function, a class, a method or a constant of a file, and the nodes that run when it is used."""

    module: str
    name: str
    body: list[ast.AST]
    owner: str | None = None
    is_root: bool = False
    lines: int = 0
    methods: list[str] = field(default_factory=list)


def published_code() -> Iterator[str]:
    """What users are shown: the examples, and the Python of README and docs."""
    root = SOURCE.parent
    for path in sorted((root / "examples").glob("*.py")):
        yield path.read_text(encoding="utf-8")
    for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        yield from re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def names_in(target: ast.AST) -> list[str]:
    """The names that an assignment binds."""
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


def decorator_name(node: ast.expr) -> str:
    """`no_grad` for @torch.no_grad()."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class House:
    """All definitions of our packages, and which of them are reached."""

    def __init__(self) -> None:
        self.definitions: dict[str, Definition] = {}
        self.imports: dict[str, dict[str, str]] = {}
        self.roots: list[tuple[str, ast.AST]] = []
        self.by_name: dict[str, list[str]] = {}
        self.reached: set[str] = set()
        self.attributes: set[str] = set()
        self._todo: list[tuple[str, ast.AST]] = []
        for module, path in MODULES.items():
            self._read(module, path)
        for key in self.definitions:
            self.by_name.setdefault(key.rpartition(".")[2], []).append(key)

    def _read(self, module: str, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self._note_imports(module, tree, is_package=path.name == "__init__.py")
        for node in tree.body:
            self._define(module, node)

    def _note_imports(self, module: str, tree: ast.AST, *, is_package: bool) -> None:
        """Remember what every imported name of a file stands for."""
        known = self.imports[module] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    here = [*module.split("."), "__init__"] if is_package else module.split(".")
                    base = ".".join([*here[: -node.level], base]).strip(".")
                known |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                known |= {alias.asname: alias.name for alias in node.names if alias.asname}

    def _define(self, module: str, node: ast.stmt) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._add(Definition(module, node.name, [node], lines=_lines(node), is_root=_is_registered(node)))
        elif isinstance(node, ast.ClassDef):
            methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
            rest = [n for n in node.body if n not in methods]
            body = [*node.bases, *node.decorator_list, *[k.value for k in node.keywords], *rest]
            own = Definition(module, node.name, body, lines=_lines(node), is_root=_is_registered(node))
            self._add(own)
            for method in methods:
                own.methods.append(method.name)
                self._add(Definition(module, method.name, [method], owner=node.name, lines=_lines(method)))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [name for target in targets for name in names_in(target)]
            if "__all__" not in names and names and all(isinstance(t, ast.Name | ast.Tuple) for t in targets):
                for name in names:
                    self._add(Definition(module, name, [node], lines=_lines(node)))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pass
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            self.roots.append((module, node))

    def _add(self, found: Definition) -> None:
        owner = f"{found.owner}." if found.owner else ""
        self.definitions[f"{found.module}.{owner}{found.name}"] = found

    def walk(self) -> None:
        """Follow every name from the roots on."""
        for module, node in self.roots:
            self._todo.append((module, node))
        for key, found in self.definitions.items():
            is_hook = found.owner is None and found.name in ("__getattr__", "__dir__")
            if found.module.startswith("plait_studies") or found.is_root or is_hook:
                self._reach(key)
        for number, text in enumerate(published_code()):
            tree = ast.parse(text)
            self._note_imports(f"published {number}", tree, is_package=False)
            self._todo.append((f"published {number}", tree))
        for module, names in PATHS.items():
            for name in names.split():
                self._exact(f"{module}.{name}")
        project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for home in (*project["scripts"].values(), *project["entry-points"]["plait.verbs"].values()):
            self._exact(home.replace(":", "."))
        while self._todo:
            module, node = self._todo.pop()
            for name, is_exact in self._used(module, node):
                if is_exact:
                    self._exact(name)
                else:
                    self._anywhere(name)

    def _used(self, module: str, node: ast.AST) -> Iterator[tuple[str, bool]]:
        """Names that a piece of code uses: (dotted name, True), or (attribute of something unknown, False)."""
        known = self.imports[module]
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                yield f"{module}.{part.id}", True  # both: an import inside a function may share a name of the file
                yield known.get(part.id, ""), True
            elif isinstance(part, ast.ImportFrom | ast.Import):
                continue
            elif isinstance(part, ast.Attribute):
                base = known.get(part.value.id) if isinstance(part.value, ast.Name) else None
                if base in MODULES:
                    yield f"{base}.{part.attr}", True
                else:
                    yield part.attr, False
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                text = part.value
                if module_in(text):
                    yield text.replace(":", "."), True
                elif re.fullmatch(r"[A-Za-z_]\w*", text) and (module in PACKAGES or _is_attribute(node, part)):
                    yield text, False
                elif re.fullmatch(r"[\w.\[\], |]+", text) and len(text) < 80:  # an annotation in quotes
                    yield from ((known.get(word, f"{module}.{word}"), True) for word in re.findall(r"\w+", text))

    def _exact(self, name: str) -> None:
        """Reach `module.name`, through re-exports and `from module import name`."""
        for _ in range(5):
            if name in self.definitions:
                self._reach(name)
                return
            module, _, last = name.rpartition(".")
            onward = self.imports.get(module, {}).get(last)
            if onward is None or onward == name:
                self._anywhere(last) if module in PACKAGES else None
                return
            name = onward

    def _anywhere(self, name: str) -> None:
        if name in self.attributes:
            return
        self.attributes.add(name)
        for key in self.by_name.get(name, ()):
            found = self.definitions[key]
            if found.owner is None or f"{found.module}.{found.owner}" in self.reached:
                self._reach(key)

    def _reach(self, key: str) -> None:
        if key in self.reached:
            return
        self.reached.add(key)
        found = self.definitions[key]
        self._todo += [(found.module, node) for node in found.body]
        for name in found.methods:
            if name in self.attributes or name.startswith("__") or name in CONTRACTS or OTHERS_CALL.fullmatch(name):
                self._reach(f"{key}.{name}")

    def idle(self) -> dict[str, int]:
        """Definitions of the library that nothing reaches -> lines; methods of an idle class count with it."""
        return {
            key: found.lines
            for key, found in self.definitions.items()
            if key not in self.reached
            and found.module.startswith("plait.")
            and (found.owner is None or f"{found.module}.{found.owner}" in self.reached)
        }


PACKAGES = {module for module, path in MODULES.items() if path.name == "__init__.py"}


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


def _is_registered(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return any(decorator_name(decorator) not in PASSIVE for decorator in node.decorator_list)


def _is_attribute(root: ast.AST, text: ast.Constant) -> bool:
    """Whether a string is the name that getattr and its like are given."""
    calls = (node for node in ast.walk(root) if isinstance(node, ast.Call) and text in node.args)
    return any(
        decorator_name(call) in {"getattr", "hasattr", "setattr", "attrgetter", "methodcaller"} for call in calls
    )


def written_exceptions() -> dict[str, str]:
    """Name -> reason."""
    lines = (line.split(None, 1) for line in EXCEPTIONS.read_text(encoding="utf-8").splitlines() if line[:1] not in "#")
    return {name: reason for name, reason in lines}


def test_everything_is_reached_or_a_written_exception() -> None:
    house = House()
    house.walk()
    idle, known = house.idle(), written_exceptions()
    new = [f"{name} ({lines} lines)" for name, lines in idle.items() if name not in known]
    assert not new, "give them a user, delete them, or write them down with a reason:\n" + "\n".join(new)
    used = sorted(known.keys() - idle.keys())
    assert not used, f"reached or gone by now, take them out of {EXCEPTIONS.name}: {', '.join(used)}"


def test_every_exception_has_a_reason() -> None:
    assert all(len(reason.split()) >= 3 for reason in written_exceptions().values())


def test_the_walk_finds_a_function_and_a_method_that_nothing_calls() -> None:
    code = """
        from plait.nn.layers import SwiGLU
        TABLE = {"a": SwiGLU}
        LEFT = 3
        def used(): return Thing().called()
        def idle(): return inner()
        def inner(): return idle()
        class Thing:
            def called(self): return TABLE
            def forgotten(self): return self.called()
            def forward(self): return LEFT if False else 0
        if True:
            used()
    """
    house = House()
    for node in ast.parse(textwrap.dedent(code)).body:
        house._define("plait.sample", node)
    house.imports["plait.sample"] = {"SwiGLU": "plait.nn.layers.SwiGLU"}
    for key in (key for key in house.definitions if key.startswith("plait.sample.")):
        house.by_name.setdefault(key.rpartition(".")[2], []).append(key)
    house.walk()
    assert {key for key in house.idle() if key.startswith("plait.sample.")} == {
        "plait.sample.idle",
        "plait.sample.inner",
        "plait.sample.Thing.forgotten",
    }
    assert "plait.nn.layers.SwiGLU" in house.reached
