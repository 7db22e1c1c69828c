"""An output appears whole or not at all, and one writer at a time makes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plait.errors import UsageError
from plait.places import (
    WRITING,
    at_work,
    atomic_directory,
    atomic_write,
    check_apart,
    check_free,
    check_replaceable,
    claim,
    name_of,
    remove,
)


def killed(code: str, *arguments: Path) -> None:
    """Run `code` in a process of its own, which kills itself."""
    done = subprocess.run([sys.executable, "-c", f"import os, signal, sys\n{code}", *map(str, arguments)], check=False)
    assert done.returncode == -signal.SIGKILL


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("content", ["new é", "new é".encode(), lambda aside: aside.write_text("new é", "utf-8")])
def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path: Path, content: object) -> None:
    target = tmp_path / "deep" / "a.json"
    assert atomic_write(target, "old") == target
    atomic_write(target, content)  # ty: ignore[invalid-argument-type]
    assert target.read_text("utf-8") == "new é"
    assert names(target.parent) == ["a.json"]


def test_a_file_keeps_its_content_when_writing_fails(tmp_path: Path) -> None:
    def fails(aside: Path) -> None:
        aside.write_text("half")
        raise OSError("full")

    target = atomic_write(tmp_path / "a.json", "old")
    with pytest.raises(OSError, match="full"):
        atomic_write(target, fails)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_kill_before_the_rename_leaves_the_old_file_and_the_next_writer_clears_up(tmp_path: Path) -> None:
    target = atomic_write(tmp_path / "a.json", "old")
    killed(
        "from pathlib import Path; from plait.places import atomic_write\n"
        "def half(aside):\n"
        "    aside.write_text('a half that is longer than what comes next')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_write(sys.argv[1], half)",
        target,
    )
    assert target.read_text() == "old"
    assert names(tmp_path) == [".writing-a.json", "a.json"]
    atomic_write(target, "new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


def test_many_writers_of_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    contents = [str(number) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=atomic_write, args=(target, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_text() in contents
    assert names(tmp_path) == ["a.txt"]


def test_a_file_gets_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    assert atomic_write(tmp_path / "a", "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(OSError, match="full"), atomic_directory(target) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "half").write_text("x")
        raise OSError("full")
    assert names(tmp_path) == []
    with atomic_directory(target) as aside:
        assert name_of(aside) == "model"
        (aside / "a.txt").write_text("whole")
        assert not target.exists()
    assert names(tmp_path) == ["model"]
    assert names(target) == ["a.txt"]


def test_a_directory_that_exists_is_replaced_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("x")
    with pytest.raises(UsageError, match="expected a directory that does not exist yet"), atomic_directory(target):
        pass
    with pytest.raises(RuntimeError), atomic_directory(target, replace=True):
        raise RuntimeError
    assert names(target) == ["old"]
    with atomic_directory(target, replace=True) as aside:
        (aside / "new").write_text("x")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_kill_while_a_directory_is_filled_leaves_the_old_one_and_is_cleared_up(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_directory(target) as aside:
        (aside / "old").write_text("x")
    killed(
        "from plait.places import atomic_directory\n"
        "with atomic_directory(sys.argv[1], replace=True) as aside:\n"
        "    (aside / 'half').mkdir()\n"
        "    (aside / 'half' / 'x').write_text('x')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)",
        target,
    )
    assert names(target) == ["old"]
    assert (tmp_path / f"{WRITING}model" / "half" / "x").exists()
    with atomic_directory(target, replace=True) as aside:
        assert names(aside) == []
        (aside / "new").write_text("x")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_second_writer_of_a_directory_is_one_line_and_takes_nothing_from_the_first(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_directory(target) as aside:
        (aside / "a.txt").write_text("first")
        got = r"expected an output of one writer, got .*model that another process"
        with pytest.raises(UsageError, match=got), atomic_directory(target):
            pass
        assert (aside / "a.txt").read_text() == "first"
    assert names(target) == ["a.txt"]


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    os.symlink(tmp_path / "theirs", tmp_path / f"{WRITING}a.json")
    with pytest.raises(OSError):
        atomic_write(tmp_path / "a.json", "ours")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_only_what_is_ours_is_removed(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    (theirs / "photo.jpg").write_text("x")
    with pytest.raises(UsageError, match="that Plait did not make"):
        remove(theirs)
    with pytest.raises(UsageError):
        claim(theirs)
    assert names(theirs) == ["photo.jpg"]
    claim(ours)
    (ours / "data").write_text("x")
    check_free(ours)
    remove(ours)
    assert not ours.exists()


def test_reading_and_writing_places_are_apart(tmp_path: Path) -> None:
    check_apart(tmp_path / "a", tmp_path / "b")
    for source, out in (("a", "a"), ("a", "a/b"), ("a/b", "a")):
        with pytest.raises(UsageError, match="expected an output apart"):
            check_apart(tmp_path / source, tmp_path / out)


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        atomic_write(pipe, "words")
        assert read.result() == "words"
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_what_a_killed_replacement_put_aside_stands_again(tmp_path: Path) -> None:
    (tmp_path / ".replaced-model").mkdir()
    (tmp_path / ".replaced-model" / "weights").write_text("whole")  # killed between its two renames
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "model", replace=True):
        raise RuntimeError("the next writer fails")
    assert (tmp_path / "model" / "weights").read_text() == "whole"


def test_what_is_written_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, what lies in a new directory, and the entry of either in the directory above."""
    synced: set[int] = set()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.add(os.fstat(handle).st_ino), real(handle)))
    (tmp_path / "files").mkdir()
    made = atomic_write(tmp_path / "files" / "a.txt", "a")
    assert {made.stat().st_ino, made.parent.stat().st_ino} <= synced
    synced.clear()
    with atomic_directory(tmp_path / "model") as directory:
        (directory / "part").mkdir()
        (directory / "part" / "b.txt").write_text("b")
    wanted = [tmp_path, tmp_path / "model", tmp_path / "model" / "part", tmp_path / "model" / "part" / "b.txt"]
    assert {path.stat().st_ino for path in wanted} <= synced


def test_a_dangling_link_is_something_that_is_there(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="expected a file that does not exist yet"):
        atomic_write(link, "new", replace=False)
    assert link.is_symlink() and not link.exists()


def test_places_are_apart_through_links_too(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(UsageError, match="expected an output apart from what is read"):
        check_apart(tmp_path / "photos", tmp_path / "link" / "out")


def test_a_page_of_somebody_is_not_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    for content, is_ours in (("<p>mine</p>", False), ("<!-- made here -->", True), ("", True)):
        page.write_text(content)
        if is_ours:
            check_replaceable(page, "made here")
        else:
            with pytest.raises(UsageError, match="expected a new file, or one that Plait wrote"):
                check_replaceable(page, "made here")


def test_work_that_never_began_gives_its_directory_back(tmp_path: Path) -> None:
    place = tmp_path / "empty"
    place.mkdir()
    with pytest.raises(RuntimeError), at_work(place):
        raise RuntimeError
    assert not list(place.iterdir())
