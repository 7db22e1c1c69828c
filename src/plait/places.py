"""Where Plait writes: only into what it made itself, and each output whole or not at all.

Whose a directory is:
claim(new or empty directory) -> marker, written before anything else -> may be filled, cleared and continued later
at_work(directory) -> claimed, and its marker locked: one process at a time; what nothing came of is given back
anything else that is not empty -> UsageError, nothing touched

How an output appears:
atomic_write, atomic_directory -> .writing-NAME beside NAME, locked -> filled -> on disk (fsync) -> renamed to NAME
made_once -> the same, for a cache: who comes second waits, and takes what the first one made

A kill at any moment leaves the old output or the new one. The lock is the system's and dies with its process, so what a
dead writer left under `.writing-NAME` is taken over by the next one, and what a living writer holds never is.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from plait.errors import UsageError

MARK = ".plait"
"""A file of this name says that Plait made the directory. It comes first, so a kill never leaves our work unmarked."""

_WORDS = "Plait made this directory, and may replace what is in it. Without this file Plait leaves it alone.\n"


# two letters and more: one is a drive; a Path has made one slash of two
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_local(path: str | Path) -> None:
    """Raise UsageError for the address of an object store, which would else become a directory of that name here."""
    if _ADDRESS.match(str(path)) and not Path(path).exists():
        raise UsageError(
            f"expected a path of this machine, got the address {path}; mount the store, or copy from and to it"
        )


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
    mark(directory)


def mark(directory: Path) -> None:
    """Say that a directory is Plait's, which whoever made it knows."""
    (directory / MARK).write_text(_WORDS, encoding="utf-8")


_held_here = threading.local()
"""Directories that this thread is at work in: a verb and the function below it may both say so."""


@contextmanager
def at_work(directory: str | Path, *, is_known: bool = False) -> Generator[Path]:
    """Claim a directory and hold it alone while the block runs, and no longer than this process lives.

    A block that fails and leaves nothing in the directory gives it back as it was.

    Args:
        directory: new, empty or Plait's; parent directories are made.
        is_known: it is Plait's without a marker, as the caller can tell.

    Raises:
        UsageError: where it holds anything that Plait did not make, or another process is at work in it.
    """
    directory = Path(directory)
    mine: set[str] = _held_here.__dict__.setdefault("places", set())
    if (place := os.path.realpath(directory)) in mine:
        yield directory
        return
    if not is_known:
        check_free(directory)
    made = [one for one in (directory, *directory.parents) if not one.exists()]
    was_ours = is_ours(directory)
    directory.mkdir(parents=True, exist_ok=True)
    mark = directory / MARK
    mine.add(place)
    try:
        with _held(mark, wait=False, content=_WORDS):
            try:
                yield directory
            except BaseException:
                if not was_ours and directory.exists() and [one.name for one in directory.iterdir()] == [MARK]:
                    mark.unlink()
                raise
    except BaseException:
        _give_back(made)
        raise
    finally:
        mine.discard(place)


def _give_back(made: Sequence[Path]) -> None:
    """Remove directories that were made for nothing, the deepest first; what holds something stays."""
    for directory in made:
        with suppress(OSError):
            directory.rmdir()


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
            f"expected an output apart from what is read, got {out} for {source}; choose an output outside of it"
        )


def check_replaceable(path: Path, sign: str) -> None:
    """Raise UsageError where `path` is a file that Plait did not write, or lies in no directory.

    A file in a directory of Plait's, and a device or a pipe, may be written.

    Args:
        path: of the output.
        sign: what the beginning of every such file holds.
    """
    if not path.parent.is_dir():
        raise UsageError(f"expected a place in a directory that exists, got {path}; make the directory first")
    if path.is_file() and not is_ours(path.parent):
        with path.open("rb") as file:
            if sign.encode() not in (start := file.read(4096)) and start:
                raise UsageError(
                    f"expected a new file, or one that Plait wrote, got {path}; choose another, nothing was changed"
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


def atomic_write(path: str | Path, content: str | bytes | Callable[[Path], object], *, replace: bool = True) -> Path:
    """Write a file in one step: readers see the old content or the new one, never a part.

    A second writer of the same file waits for the first; the last one stays.

    Args:
        path: where; parent directories are made. A device or a pipe is written to directly.
        content: text (UTF-8), bytes, or a function that writes to the path it is given.
        replace: whether a file that is there may go.

    Returns:
        The path.

    Raises:
        UsageError: where `path` is there (not `replace`).

    Example:
        >>> atomic_write("out/report.json", "{}")
        PosixPath('out/report.json')
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # a device or a pipe: a rename would put a file in its place
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(WRITING + path.name)
    with _held(aside, wait=True, content=""):
        try:
            if callable(content):
                content(aside)
            else:
                aside.write_bytes(content.encode() if isinstance(content, str) else content)
            # before the rename: some file systems order the two otherwise, and a power cut leaves an empty file
            sync(aside)
            _check_absent(path, replace, "file")
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
    _check_absent(path, replace)
    old = path.with_name(f".replaced-{path.name}")
    # no waiting: two runs that fill one directory are a mistake of their user, not a queue
    with scratch(path, wait=False) as aside:
        if replace and old.exists() and not os.path.lexists(path):
            # a writer was killed between its two renames: what it replaced stands again
            old.rename(path)
        # another writer may have finished between the look above and the lock
        _check_absent(path, replace)
        yield aside
        _sync_all(aside)
        # A directory cannot be renamed over one that is not empty: the old one steps aside, whole, and is removed last.
        shutil.rmtree(old, ignore_errors=True)
        if replace and os.path.lexists(path):
            path.rename(old)
        aside.rename(path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def made_once(path: Path, fill: Callable[[Path], object]) -> Path:
    """A directory of a cache, filled by whoever comes first; others wait, and take what is there.

    Args:
        path: where it will stand, whole.
        fill: gets the empty directory beside it that becomes `path`.

    Returns:
        The path.
    """
    if path.is_dir():
        return path
    with scratch(path) as aside:
        if not path.is_dir():
            fill(aside)
            _sync_all(aside)
            aside.rename(path)
    return path


def _check_absent(path: Path, replace: bool, kind: str = "directory") -> None:
    if not replace and os.path.lexists(path):  # a dangling link is something too
        raise UsageError(f"expected a {kind} that does not exist yet, got {path}; remove it or choose another")


@contextmanager
def scratch(path: Path, *, wait: bool = True) -> Generator[Path]:
    """The directory aside of `path`, locked and empty; what the block has not renamed is removed behind it.

    Args:
        path: parent directories are made, and go again when the block fails.
        wait: for another process that has it; otherwise that is a UsageError.
    """
    made = [one for one in path.parents if not one.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(WRITING + path.name)
    try:
        with _held(aside, wait=wait):
            try:
                for left in aside.iterdir():  # by a writer that was killed
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
                yield aside
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        _give_back(made)
        raise


def _sync_all(directory: Path) -> None:
    for made in (*directory.rglob("*"), directory):
        if not made.is_symlink():
            sync(made)


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
def _held(place: Path, *, wait: bool, content: str | None = None) -> Generator[None]:
    """Make a directory, or a file of `content`, and hold its lock while the block runs.

    Raises UsageError where another process holds it (not `wait`).
    """
    # here, since it exists on POSIX only and most of the library does without
    import fcntl

    # a directory can only be opened for reading; the lock works on that too
    how = os.O_RDONLY if content is None else os.O_RDWR | os.O_CREAT
    while True:
        if content is None:
            place.mkdir(exist_ok=True)
        try:
            # never through a link: somebody else may have put one at this name
            descriptor = os.open(place, how | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if content is None and place.parent.is_dir():
                continue  # removed by the one before us, since the line above
            raise
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                output = place.parent if content == _WORDS else place.with_name(name_of(place))
                got = f"{output} that another process is writing"
                raise UsageError(f"expected an output of one writer, got {got}; wait for it") from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            # Whoever held the lock before us has renamed or removed the file: the lock is then on something else.
            if place.exists() and os.path.samestat(os.fstat(descriptor), place.stat()):
                if content and not os.fstat(descriptor).st_size:
                    os.write(descriptor, content.encode())
                yield
                return
        finally:
            os.close(descriptor)


def cache_directory() -> Path:
    """Where Plait keeps what it can make or fetch again: `$PLAIT_CACHE`, else `~/.cache/plait`.

    Returns:
        A path, which may not exist yet.
    """
    return Path(os.environ.get("PLAIT_CACHE") or Path.home() / ".cache" / "plait").expanduser()


@contextmanager
def writing(lock: Path) -> Generator[None]:
    """Hold a lock file while the block runs; a second process waits for the first.

    lock: made beside what is written, and left there: it is empty.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _held(lock, wait=True, content=""):
        yield
