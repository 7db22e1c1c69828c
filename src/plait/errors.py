"""Errors a user can act on: one line that says what was expected, what came and what to do."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, requires
from pathlib import Path
from types import ModuleType

from plait.reading import check_directory


class UsageError(ValueError):
    """The command was wrong (exit code 2), as opposed to work that failed (exit code 1)."""


class MissingExtraError(ImportError):
    """An optional package is needed and not installed; the message holds the install line."""


_ROOM = "free some space and run the same command again: what is committed is kept"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EACCES: "check its owner and permissions",
    errno.EPERM: "check its owner and permissions",
    errno.EROFS: "choose a place that can be written",
}


@contextmanager
def no_code_of(place: object) -> Generator[None]:
    """Name the model directory whose own code transformers would have to run; the advice to trust it is left out.

    A directory may bring classes of its own (`auto_map` and .py files). Every call that reads one passes
    `trust_remote_code=False`: without it transformers asks on standard input, where any `y` runs a stranger's code.
    What would keep transformers reading or building for ever is refused before it looks (`check_directory`).
    """
    check_directory(str(place))
    try:
        with one_kind(f"a model directory in {place} that its library can read", "check its config.json and tokenizer"):
            yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"expected a model whose code comes with Plait or transformers, got {place} with code of its own "
            "(auto_map); Plait never runs it: pass another model"
        ) from error
    except OSError as error:
        missing, is_files, _ = str(error).removeprefix("Can't load ").partition(" for ")
        if not is_files or not str(error).startswith("Can't load "):
            if (
                error.strerror is None and Path(str(place)).is_dir()
            ):  # transformers' words about a file, not the system's
                said = " ".join(str(error).split())[:LONGEST]
                raise ValueError(f"expected a whole model directory in {place}, got: {said}; check the file") from error
            raise
        # a checkpoint of Trainer without processing_class holds the model alone
        raise ValueError(
            f"expected the processor beside the model in {place}, got no files of its {missing}; "
            "save it there: processor.save_pretrained"
        ) from error


LONGEST = 1000
"""Characters of an error of another library that are shown."""


@contextmanager
def one_kind(wanted: str, remedy: str = "check what was given") -> Generator[None]:
    """Make errors of values that nobody checked the library's own: a ValueError of one line, its cause kept.

    For doors through which a stranger's values come: configurations, what processors are given, model directories.

    Args:
        wanted: what was expected there, in words.
        remedy: what to do.
    """
    try:
        yield
    except Exception as error:
        # the checks of huggingface and the readers of tokenizers have classes of their own
        said = " ".join(str(error).split())
        # these say themselves what is wrong; some libraries do so in pages, with the whole of what they were given
        if isinstance(error, OSError | ImportError) or (
            isinstance(error, ValueError) and "\n" not in str(error) and len(said) < LONGEST
        ):
            raise
        said = said if len(said) < LONGEST else f"{said[:LONGEST]} ..."
        raise ValueError(f"expected {wanted}, got {type(error).__name__}: {said}; {remedy}") from error


def os_line(error: OSError) -> str:
    """One line for what the operating system refused: what was wanted, its reason, what to do."""
    what = "a file" if error.filename is None else str(error.filename)
    remedy = _REMEDIES.get(error.errno or 0, "check the path")
    return f"expected to read or write {what}, got {str(error.strerror).lower()}; {remedy}"


def extra_of(module: str) -> str | None:
    """The extra of Plait that brings `module`, or None where no extra does. Read from the installed metadata."""
    try:
        requirements = requires("plait") or []
    except PackageNotFoundError:
        return None
    wanted = module.partition(".")[0].lower()
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        package = name.split("[")[0].strip(" <>=!~.0123456789,")
        if "extra ==" in marker and package.replace("-", "_").lower() == wanted:
            return marker.split("extra ==")[1].strip(" '\"")
    return None


def import_extra(module: str) -> ModuleType:
    """Import `module`, which an extra brings. Raises MissingExtraError with the install line where it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(missing_line(error)) from error


def missing_line(error: ModuleNotFoundError) -> str:
    """One line for a package that is not installed, with the line that installs it."""
    name = (error.name or str(error)).split(".")[0]
    extra = extra_of(name)
    remedy = f"pip install 'plait[{extra}]'" if extra else f"pip install {name}"
    return f"expected the package {name}, found none; install it with: {remedy}"


def installed(group: str, name: str) -> str | None:
    """What an installed package offers under this name of a group of entry points: `module` or `module:attribute`.

    Returns None where none does. Raises UsageError where two packages offer different things: neither may win by
    chance.
    """
    found = {entry.value: entry for entry in entry_points(group=group, name=name)}
    if len(found) > 1:
        packages = ", ".join(sorted(entry.dist.name if entry.dist else value for value, entry in found.items()))
        raise UsageError(f"expected one package with {name} among its {group}, got {packages}; uninstall one of them")
    return next(iter(found), None)
