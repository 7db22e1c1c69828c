"""The pages agree with one another and with what they describe."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *(ROOT / "examples").glob("*.md")]


def blocks(path: Path) -> list[str]:
    """Code of a page: what stands between fences, comments taken off, since a translation has its own."""
    fenced = re.findall(r"^```\w+\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(r"\s*#.*", "", block) for block in fenced]


def links(path: Path) -> list[str]:
    """Targets of a page's links that lie beside it, without anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
    return [link.split("#")[0] for link in found if not re.match(r"https?:|mailto:|#", link)]


def test_the_chinese_readme_shows_the_same_commands() -> None:
    assert blocks(ROOT / "README.md") and blocks(ROOT / "README.md") == blocks(ROOT / "README.zh.md")


def test_the_readme_can_be_read_at_once() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 500


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in links(page) if not (page.parent / link).exists()]
    assert not missing


def test_every_page_is_two_clicks_away() -> None:
    """From the README: a page that nothing links to is not found."""
    near = {ROOT / "README.md"}
    for _ in range(2):
        near |= {(page.parent / link).resolve() for page in near for link in links(page) if link.endswith(".md")}
    assert {page for page in PAGES if "docs" in page.parts} <= near


def test_all_extras_are_explained() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", (ROOT / "docs" / "install.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == set(extras)
    for name, brings in rows:
        packages = {word.strip().partition("[")[0] for word in re.sub(r" and others", "", brings).split(",")}
        assert packages <= {re.split(r"[\[<>=;]", one)[0].strip() for one in extras[name]}, name


def test_pages_that_code_writes_are_written_by_the_code_of_today() -> None:
    spec = spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page, make in generate.PAGES.items():
        assert make() == (ROOT / "docs" / page).read_text(encoding="utf-8"), "run `python docs/generate.py`"


def test_every_page_stands_in_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    # those three are the README, CONTRIBUTING and the page of benchmarks, which stand beside what they speak of
    assert set(re.findall(r": (\S+\.md)$", nav, re.MULTILINE)) == pages | {
        "index.md",
        "contributing.md",
        "benchmarks.md",
    }


def test_guides_of_families_are_short() -> None:
    families = ("one-peace", "mplug2", "owl", "owl2")
    words = {name: len((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split()) for name in families}
    assert not {name: count for name, count in words.items() if count > 700}


def test_every_message_of_the_faq_is_in_the_source() -> None:
    source = " ".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py")))
    messages = re.findall(
        r"^\| `(expected [^`]*)`", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(messages) >= 10
    assert not [message for message in messages if message not in source]


def sentence_lengths(page: Path) -> list[int]:
    """Words of every sentence of the prose: tables, headings and code left out; an item of a list begins anew."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = "\n".join(line for line in text.splitlines() if not re.match(r"\s*(\||#|!\[)", line))
    pieces = [part for block in re.split(r"\n\s*\n|\n- ", prose) for part in re.split(r"(?<=[.!?])\s+", block)]
    return [len(piece.split()) for piece in pieces if len(piece.split()) > 1]


def test_sentences_of_guides_are_short() -> None:
    pages = {page.stem: sentence_lengths(page) for page in (ROOT / "docs").glob("*.md")}
    means = {name: sum(found) / len(found) for name, found in pages.items() if found}
    assert not {name: round(mean, 1) for name, mean in means.items() if mean > 18}


ANY_SHAPE = {
    "parity/compare.py:compare_tensors", "parity/shipped_runners.py:ramp", "processing/videos.py:wrap",
    "recipes/one_peace.py:no_decay", "training/checkpoint.py:piece_of", "training/checkpoint.py:Pieces.read",
    "training/optim.py:local", "weights/files.py:check_finite",
}  # fmt: skip
"""Public functions that take a tensor of whatever shape."""


def public_functions(node: ast.AST, above: str = "", within: str = "") -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Name, definition and docstring (with that of its class) of what a module offers."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, ast.ClassDef) and not part.name.startswith("_"):
            yield from public_functions(part, ast.get_docstring(part) or "", f"{within}{part.name}.")
        elif isinstance(part, ast.FunctionDef) and (part.name[0] != "_" or part.name in ("__init__", "__call__")):
            yield within + part.name, part, f"{ast.get_docstring(part) or ''}\n{above}"


def tells_shape(name: str, doc: str) -> bool:
    """Whether a docstring says the shape of an argument: `name: (batch, dim)`, `name (n, 4)`, or whose it shares."""
    after = r"(?::| of| |, )[^;]*?(?:\([^)]*\)|\bas (?:in|`)|\blike\b|\bscalar\b)"
    own = re.search(rf"\b{name}\b`?(?:, \w+)*{after}", doc, re.IGNORECASE)
    first = re.match(r"[^.]*?\((?:[\w* +/.]+,)+[^)]*\)[^.]*->", doc)  # one arrow line for all of them
    shared = re.search(r"\b(?:[Aa]rguments|[Ii]nputs|[Ss]hapes|[Ss]ignature|As) (?:as )?(?:in|of)? ?`", doc)
    return bool(own or first or shared)


def test_public_tensors_have_their_shape() -> None:
    missing = []
    for path in sorted((ROOT / "src" / "plait").rglob("*.py")):
        room = path.relative_to(ROOT / "src" / "plait").as_posix()
        for name, function, doc in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            typed = {a.arg: ast.unparse(a.annotation) for a in arguments if a.annotation}
            tensors = [arg for arg, kind in typed.items() if kind in ("Tensor", "Tensor | None")]
            if f"{room}:{name}" not in ANY_SHAPE:
                missing += [f"{room}:{name}({arg})" for arg in tensors if not tells_shape(arg, doc)]
    assert not missing, "\n".join(missing)


def test_one_word_for_one_thing_in_api_text() -> None:
    """`image`, `video` and `audio` are the words of public docstrings (docs/glossary.md); names keep what they are."""
    wrong = []
    for path in sorted((ROOT / "src" / "plait").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        offered = [(name, ast.get_docstring(function) or "") for name, function, _ in public_functions(tree)]
        offered += [
            (c.name, ast.get_docstring(c) or "") for c in tree.body if isinstance(c, ast.ClassDef) and c.name[0] != "_"
        ]
        for name, doc in offered:
            prose = re.sub(r"`[^`]*`|>>>.*|\.\.\. .*|\b\w+:", "", doc)  # names of arguments stay
            wrong += [f"{path.name}:{name}: {word}" for word in re.findall(r"\b(?:pictures?|films?|sounds?)\b", prose)]
    assert not wrong, "\n".join(wrong)
