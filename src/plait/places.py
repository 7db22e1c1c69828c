"""Where Plait writes: only into what it made itself, and each output whole or not at all.

Whose a directory is:
claim(new or empty directory) -> marker, written before anything else -> may be filled, cleared and continued later
anything else that is not empty -> UsageError, nothing touched

How an output appears:
atomic_write, atomic_directory -> .writing-NAME beside NAME, locked -> filled -> on disk (fsync) -> renamed to NAME

A kill at any moment leaves the old output or the new one. The lock is the system's and dies with its process, so what a
dead writer left under `.writing-NAME` is taken over by the next one, and what a living writer holds never is.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from plait.errors import UsageError

MARK = ".plait"
"""A file of this name says that Plait made the directory. It comes first, so a kill never leaves our work unmarked."""

_WORDS = "Plait made this directory, and may replace what is in it. Without this file Plait leaves it alone.\n"


def is_ours(directory: Path) -> bool:
    """Whether Plait made the directory."""
    return (directory / MARK).is_file()


def check_free(directory: Path) -> None:
    """Raise UsageError unless the directory is absent, empty or ours."""
    if not directory.exists() or is_ours(directory):
        return
    if not directory.is_dir() or any(directory.iterdir()):
        got = "that Plait did not make" if directory.is_dir() else "that is no directory"
        raise UsageError(
            f"expected a new or empty directory, got {directory} {got}; choose another, nothing was changed"
        )


def claim(directory: Path) -> None:
    """Make the directory, or take an empty one, and mark it. UsageError as `check_free`."""
    check_free(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARK).write_text(_WORDS, encoding="utf-8")


def remove(directory: Path) -> None:
    """Remove a directory with everything in it. UsageError, and nothing removed, where it is not ours."""
    check_free(directory)
    if directory.exists():
        shutil.rmtree(directory)


def check_apart(source: Path, out: Path) -> None:
    """Raise UsageError where one of two directories is, or holds, the other."""
    read, written = source.resolve(), out.resolve()
    if read == written or read in written.parents or written in read.parents:
        raise UsageError(
            f"expected an output apart from what is read, got {out} for {source}; choose an --out outside of it"
        )


WRITING = ".writing-"
"""Before the name of an output that is not whole yet."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Said by network file systems without locks: there the last writer stays, as with any rename."""


def name_of(path: Path) -> str:
    """The name under which a directory that is being written will appear."""
    return path.name.removeprefix(WRITING)


def atomic_write(path: str | Path, content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file in one step: text (UTF-8), bytes, or what `content(aside)` writes to the path that it is given.

    Parent directories are made. A second writer of the same file waits for the first; the last one stays.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe: a rename would put a file in its place
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(WRITING + path.name)
    with _held(aside, wait=True):
        try:
            if callable(content):
                content(aside)
            else:
                aside.write_bytes(content.encode() if isinstance(content, str) else content)
            sync(aside)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    sync(path.parent)
    return path


@contextmanager
def atomic_directory(path: str | Path, *, replace: bool = False) -> Generator[Path]:
    """An empty directory to fill; it becomes `path` in one step when the block ends, and is removed when it fails.

    replace: put it in the place of a directory that is there, which goes only when the new one is whole. Raises
    UsageError where `path` exists (without `replace`), or where another process is writing it.
    """
    path = Path(path)
    if not replace and os.path.lexists(path):
        raise UsageError(f"expected a directory that does not exist yet, got {path}; remove it or choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = path.with_name(WRITING + path.name), path.with_name(f".replaced-{path.name}")
    with _held(aside, wait=False):
        try:
            for left in aside.iterdir():  # by a writer that was killed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield aside
            for made in (*aside.rglob("*"), aside):
                if not made.is_symlink():
                    sync(made)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        # A directory cannot be renamed over one that is not empty: the old one steps aside, whole, and is removed last.
        shutil.rmtree(old, ignore_errors=True)
        if replace and os.path.lexists(path):
            path.rename(old)
        aside.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Make a file or a directory listing survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _held(aside: Path, *, wait: bool) -> Generator[None]:
    """Make the file (`wait`) or directory `aside` and hold its lock; UsageError where another holds it (not `wait`)."""
    import fcntl

    while True:
        if not wait:
            aside.mkdir(exist_ok=True)
        how = os.O_RDWR | os.O_CREAT if wait else os.O_RDONLY
        descriptor = os.open(aside, how | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                got = f"{aside.with_name(name_of(aside))} that another process is writing"
                raise UsageError(f"expected an output of one writer, got {got}; wait for it") from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            # Whoever held the lock before us has renamed or removed the file: the lock is then on something else.
            if aside.exists() and os.path.samestat(os.fstat(descriptor), aside.stat()):
                yield
                return
        finally:
            os.close(descriptor)
