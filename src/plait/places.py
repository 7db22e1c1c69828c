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
    """Whether Plait made the directory, which its marker says.

    A directory without it is somebody's own, whatever it holds.
    """
    return (directory / MARK).is_file()


def check_free(directory: Path) -> None:
    """Raise UsageError unless the directory is absent, empty or made by Plait.

    Nothing is changed either way.
    """
    if not directory.exists() or is_ours(directory):
        return
    if not directory.is_dir() or any(directory.iterdir()):
        got = "that Plait did not make" if directory.is_dir() else "that is no directory"
        raise UsageError(
            f"expected a new or empty directory, got {directory} {got}; choose another, nothing was changed"
        )


def claim(directory: Path) -> None:
    """Make the directory, or take an empty one, and mark it as Plait's.

    Raises:
        UsageError: where it holds anything that Plait did not make.
    """
    check_free(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # first of all: a kill right after it leaves a directory that Plait may clear
    (directory / MARK).write_text(_WORDS, encoding="utf-8")


def remove(directory: Path) -> None:
    """Remove a directory with everything in it; an absent one is no error.

    Raises:
        UsageError: where it is not Plait's. Nothing is removed then.
    """
    check_free(directory)
    if directory.exists():
        shutil.rmtree(directory)


def check_apart(source: Path, out: Path) -> None:
    """Raise UsageError where one of two directories is, or holds, the other.

    Links are followed first. source: what is read; out: what will be written.
    """
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
    """The name under which a directory that is being written will appear.

    path: of the directory aside, or of any other, whose name stays as it is.
    """
    return path.name.removeprefix(WRITING)


def atomic_write(path: str | Path, content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file in one step: readers see the old content or the new one, never a part.

    A second writer of the same file waits for the first; the last one stays.

    Args:
        path: where; parent directories are made. A device or a pipe is written to directly.
        content: text (UTF-8), bytes, or a function that writes to the path it is given.

    Returns:
        The path.

    Example:
        >>> atomic_write("out/report.json", "{}")
        PosixPath('out/report.json')
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
            # before the rename: some file systems order the two otherwise, and a power cut leaves an empty file
            sync(aside)
            aside.replace(path)
        # an interrupt from the keyboard too: nothing half written stays
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    sync(path.parent)
    return path


@contextmanager
def atomic_directory(path: str | Path, *, replace: bool = False) -> Generator[Path]:
    """An empty directory to fill; it becomes `path` in one step when the block ends.

    When the block fails it is removed, and `path` is as before.

    Args:
        path: where; parent directories are made.
        replace: put it in the place of a directory that is there, which goes only when the new
            one is whole.

    Raises:
        UsageError: where `path` exists (without `replace`), or another process is writing it.
    """
    path = Path(path)
    if not replace and os.path.lexists(path):
        raise UsageError(f"expected a directory that does not exist yet, got {path}; remove it or choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = path.with_name(WRITING + path.name), path.with_name(f".replaced-{path.name}")
    # no waiting: two runs that fill one directory are a mistake of their user, not a queue
    with _held(aside, wait=False):
        if replace and old.exists() and not os.path.lexists(path):
            old.rename(path)  # a writer was killed between its two renames: what it replaced stands again
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
    """Make a file or a directory listing survive a power cut.

    A rename is an entry of the parent directory, so that is synced too.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _held(aside: Path, *, wait: bool) -> Generator[None]:
    """Make the file (`wait`) or directory `aside` and hold its lock while the block runs.

    Raises UsageError where another process holds it (not `wait`).
    """
    # here, since it exists on POSIX only and most of the library does without
    import fcntl

    while True:
        if not wait:
            aside.mkdir(exist_ok=True)
        # a directory can only be opened for reading; the lock works on that too
        how = os.O_RDWR | os.O_CREAT if wait else os.O_RDONLY
        # never through a link: somebody else may have put one at this name
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


def cache_directory() -> Path:
    """Where Plait keeps what it can make or fetch again: `PLAIT_CACHE`, else `plait` in the user's cache directory.

    Returns:
        A path, which may not exist yet.
    """
    if own := os.environ.get("PLAIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plait"
