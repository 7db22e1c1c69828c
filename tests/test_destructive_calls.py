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
    "evaluation/tasks/choices.py:submitted_seed": "the output that eval claimed",
    "evaluation/tasks/suites.py:submitted_owl_eval": "the output that eval claimed",
    "models/convert.py:convert": "the partial directory of atomic_directory",
    "media/values.py:_load_own": "an unnamed temporary file",
    "models/fetch.py:get": "the cache",
    "models/merge.py:merge": "the partial directory of atomic_directory",
    "models/one_peace/model.py:write_sentence_files": "only where no file of another making lies",
    "nn/contract.py:save_pretrained": "as transformers: the directory that the caller names",
    "parity/run.py:write_actual": "the directory that parity --out names",
    "recipes": "the directory of the model that a run saves, inside atomic_directory",
    "training/checkpoint.py:write": "a partial checkpoint",
    "training/checkpoint.py:wait": "the mark that a checkpoint is whole",
    "training/logging.py:note_bad": "the run's own directory",
    "training/lora.py:save_adapter": "the directory of an adapter, as peft",
    "ui/page.py:_lent": "a copy in the page's temporary folder, where there are no links",
    "weights/files.py:add_file": "inside a directory that is being written",
}
"""Where files are written under their final names -> why nothing of a person's can lie there."""


def calls(tree: ast.AST, function: str = "") -> Iterator[tuple[str, str]]:
    """(innermost function, name) of every call that may remove or overwrite a file."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call):
            on_object = isinstance(node.func, ast.Attribute)
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if name in ("replace", "remove", "copy", "move"):
                # of texts, lists, arrays and dataclasses, unless of the modules, or a path's with one argument
                is_path = name == "replace" and on_object and len(node.args) == 1 and not node.keywords
                counts = owner in MODULES or is_path
            else:
                counts = name in (*REMOVING, *WRITING)
            if counts:
                yield inner, name
        yield from calls(node, inner)


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
        ("text.replace('a', 'b')", False),
        ("replace(sample, id='x')", False),
        ("array.copy()", False),
        ("rows.remove(x)", False),
    ],
)
def test_the_walk_tells_calls_apart(line: str, is_seen: bool) -> None:
    assert bool(list(calls(ast.parse(line)))) is is_seen
