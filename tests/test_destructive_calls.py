"""Calls that delete, move or overwrite files stand in few places, each of which knows what it touches as its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import plait

SOURCE = Path(plait.__file__).parent
REMOVING = ("rmtree", "unlink", "rename", "rmdir", "replace", "remove", "removedirs", "move", "truncate")
WRITING = ("write_text", "write_bytes", "save_file", "copyfile", "copytree", "copy2", "copy", "copyfileobj")
MODULES = ("os", "shutil")

REMOVES = {
    "places.py": "the rules of every output: a marker written first, a lock, a partial name that is renamed when whole",
    "data/packages.py:fetch": "its own partial file in the cache becomes the file",
    "evaluation/cache.py:_open": "cuts a torn last line off a file whose first line is its own",
    "media/remote.py:copy": "a temporary folder of its own, when what was copied is used no more",
    "models/fetch.py:fetch_file": "partial files in the cache that belong to the file being fetched",
    "models/fetch.py:_append": "cuts its own partial file back to what is whole",
    "models/fetch.py:_opened": "a partial file that the server says is of another version",
    "models/fetch.py:get": "files in the cache that were converted",
    "models/fetch.py:forget": "what models --remove names, in the cache",
    "models/one_peace/model.py:save_pretrained": "the index of an earlier save, which names an added file",
    "search/bulk.py:commit": "blocks of vectors that it wrote and has committed",
    "search/thumbnails.py:sweep": "pictures that it made itself, by the form of their names",
    "search/vectors.py:__exit__": "its own partial directory",
    "search/vectors.py:_recover": "cuts its own partial files back to rows that are whole",
    "search/vectors.py:finish": "its own partial directory, when the files are in place",
    "training/checkpoint.py:save": "a checkpoint that was not finished, in the store's own directory",
    "training/checkpoint.py:wait": "checkpoints beyond those that are kept, in the store's own directory",
    "training/checkpoint.py:clear": "the store's own directory, behind --no-resume",
    "training/loop.py:train": "the mark of a run that has ended",
    "training/parallel.py:check_shared": "a mark that it wrote to see whether ranks share a disk",
    "training/run.py:_run": "a mark of the run's own directory",
    "training/run.py:_given_back": "files that this run wrote before it failed at its first step",
    "ui/page.py:_lent": "a link of its own in the page's temporary folder",
    "weights/files.py:add_file": "weights just saved, in a directory that is being written",
}
"""Where files are removed, renamed or shortened -> what they are; a line without a function is the whole file."""

WRITES = {
    "places.py": "atomic_write and the marker",
    "data/mini.py": "a new directory of claim's, or the cache",
    "data/packages.py": "the cache",
    "data/shards.py:_write_shards": "the partial directory of atomic_directory",
    "data/tables.py:read_parquet": "an unnamed temporary file",
    "evaluation/emergent.py:save": "into memory, then by atomic_write",
    "evaluation/tasks/choices.py:submitted_seed": "the output that eval claimed",
    "evaluation/tasks/suites.py:submitted_owl_eval": "the output that eval claimed",
    "models/convert.py:convert": "the partial directory of atomic_directory",
    "media/remote.py:copy": "a temporary folder of its own",
    "media/values.py:_load_own": "an unnamed temporary file",
    "media/values.py:_shortest": "into memory",
    "models/fetch.py:get": "the cache",
    "models/merge.py:merge": "the partial directory of atomic_directory",
    "models/one_peace/model.py:write_sentence_files": "only where no file of another making lies",
    "nn/contract.py:save_pretrained": "as transformers: the directory that the caller names",
    "parity/run.py:write_actual": "the directory that parity --out names",
    "recipes": "the directory of the model that a run saves, inside atomic_directory",
    "search/bulk.py:fill": "a partial file of atomic_write",
    "search/vectors.py:__init__": "its own partial directory, to which it appends",
    "search/vectors.py:finish": "a partial file that is renamed when whole",
    "search/vectors.py:_write_table": "a partial file that is renamed when whole",
    "serving/ready.py:known_items": "into memory",
    "training/checkpoint.py:write": "a partial checkpoint",
    "training/checkpoint.py:wait": "the mark that a checkpoint is whole",
    "training/logging.py:__init__": "appends to the log of the run's own directory",
    "training/logging.py:note_bad": "the run's own directory",
    "training/lora.py:save_adapter": "the directory of an adapter, as peft",
    "ui/page.py:_lent": "a copy in the page's temporary folder, where there are no links",
    "weights/files.py:add_file": "inside a directory that is being written",
}
"""Where files are written under their final names -> why nothing of a person's can lie there."""


def renamed(tree: ast.AST) -> dict[str, str]:
    """Names of this file -> the names of os and shutil that they stand for (`from os import replace as swap`)."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {one.asname: one.name for one in node.names if one.asname and one.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    return found


def is_writing_open(node: ast.Call, name: str) -> bool:
    """Whether a call opens a file for writing: a mode among its arguments holds w, a, x or +."""
    if name not in ("open", "fdopen", "memmap", "open_memmap"):
        return False
    given = [*node.args, *(word.value for word in node.keywords if word.arg == "mode")]
    texts = [one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    return any(set(text) & set("wax+") and set(text) <= set("rwaxbt+:gz") for text in texts)


def calls(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(innermost function, name) of everything that may remove or overwrite a file, called or handed on."""
    known = renamed(tree)
    yield from _calls(tree, "", known)


def _calls(tree: ast.AST, function: str, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        called = tree.func if isinstance(tree, ast.Call) else None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            word = node.args[1] if len(node.args) > 1 else None
            if isinstance(word, ast.Constant) and word.value in (*REMOVING, *WRITING):
                yield inner, str(word.value)
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if is_writing_open(node, name):
                yield inner, "write_bytes"
        if isinstance(node, ast.Name) and known.get(node.id, "").partition(".")[2] in (*REMOVING, *WRITING):
            yield inner, known[node.id].partition(".")[2]
        if isinstance(node, ast.Name) and node.id in ("save_file", "write_table"):
            yield inner, "save_file"
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = ast.unparse(node.value)
            owner = known.get(owner, owner)
            name = node.attr
            if name in ("replace", "remove", "copy", "move"):
                # of texts, lists, arrays and dataclasses, unless of the modules, or a path's with one argument
                words = [*tree.args, *(word for word in tree.keywords)] if isinstance(tree, ast.Call) else []
                one = called is node and len(words) == 1 and getattr(words[0], "arg", "target") in ("target", None)
                counts = owner in MODULES or (name == "replace" and one)
            else:
                is_saved = name in ("save", "savez", "savez_compressed") and owner in ("np", "numpy", "torch")
                counts = name in (*REMOVING, *WRITING) or is_saved or (name == "write_table")
                name = "save_file" if is_saved or name == "write_table" else name
            if counts:
                yield inner, name
        yield from _calls(node, inner, known)


def sites(names: tuple[str, ...]) -> set[str]:
    """file:function of the library's calls of these names."""
    return {
        f"{path.relative_to(SOURCE).as_posix()}:{function}"
        for path in SOURCE.rglob("*.py")
        for function, name in calls(ast.parse(path.read_text(encoding="utf-8")))
        if name in names
    }


def covered(site: str, table: dict[str, str]) -> str | None:
    """The line of a table that a call stands under."""
    file, _, _ = site.partition(":")
    return next((line for line in table if line in (site, file) or file.startswith(f"{line}/")), None)


@pytest.mark.parametrize(("names", "table"), [(REMOVING, REMOVES), (WRITING, WRITES)], ids=["removes", "writes"])
def test_files_are_removed_and_overwritten_in_known_places_alone(names: tuple[str, ...], table: dict[str, str]) -> None:
    found = sites(names)
    unknown = sorted(site for site in found if covered(site, table) is None)
    assert not unknown, "write through plait.places, or say here why nothing of a person's can lie there"
    assert set(table) == {covered(site, table) for site in found} - {None}, "a line that nothing stands under"


@pytest.mark.parametrize(
    ("line", "is_seen"),
    [
        ("shutil.rmtree(p)", True),
        ("os.replace(a, b)", True),
        ("path.replace(other)", True),
        ("Path(a).unlink(missing_ok=True)", True),
        ("p.write_text(t)", True),
        ("save_file(x, p)", True),
        ("open(p, 'w')", True),
        ("p.open('wb')", True),
        ("np.save(p, x)", True),
        ("torch.save(x, p)", True),
        ("pq.write_table(t, p)", True),
        ("from os import replace\nreplace(a, b)", True),
        ("from shutil import move as put\nput(a, b)", True),
        ("import shutil as sh\nsh.rmtree(p)", True),
        ("import os as o\no.replace(a, b)", True),
        ("getattr(os, 'unlink')(p)", True),
        ("f = shutil.rmtree\nf(p)", True),
        ("map(Path.unlink, places)", True),
        ("p.replace(target=q)", True),
        ("parameter.replace(default=1)", False),
        ("open(p)", False),
        ("open(p, 'rb')", False),
        ("image.copy()", False),
        ("text.replace('a', 'b')", False),
        ("replace(sample, id='x')", False),
        ("array.copy()", False),
        ("rows.remove(x)", False),
    ],
)
def test_the_walk_tells_calls_apart(line: str, is_seen: bool) -> None:
    assert bool(list(calls(ast.parse(line)))) is is_seen
