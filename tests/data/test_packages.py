"""Pinned packages: checked before use, unpacked in Python, and a missing client is one sentence."""

from __future__ import annotations

import io
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from plait.data import packages
from plait.data.packages import Package, ar_members, fetch, lock, unpack, unpacked


def tar_of(name, content, mode="w:gz"):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def ar_of(**members):
    out = b"!<arch>\n"
    for name, body in members.items():
        out += f"{name.replace('__', '.'):<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(body):<10}`\n".encode()
        out += body + b"\n" * (len(body) % 2)
    return out


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path))
    (tmp_path / "packages").mkdir()
    return tmp_path / "packages"


@pytest.fixture
def pinned(cache, monkeypatch):
    """A pinned package `toy` whose archive lies in the cache."""
    archive = cache / "toy-1.tgz"
    archive.write_bytes(tar_of("package/a.txt", b"hello"))
    entry = Package("toy", "npm", "1", "MIT", "nobody", {"toy-1.tgz": packages.sha256(archive)})
    monkeypatch.setattr(packages, "lock", lambda: {"toy": entry})
    return archive


def test_the_lock_holds_versions_checksums_licences_and_no_addresses():
    text = (packages.files("plait.data") / "packages.json").read_text("utf-8")
    assert "http" not in text
    for package in lock().values():
        assert package.client in packages.CLIENTS and package.version and package.license and package.author
        assert package.sha256 and all(len(digest) == 64 for digest in package.sha256.values())


def test_a_cached_archive_is_checked_and_unpacked_once(pinned, cache):
    assert fetch("toy") == pinned
    folder = unpacked("toy")
    assert (folder / "package" / "a.txt").read_bytes() == b"hello"
    assert unpacked("toy") == folder
    assert sorted(path.name for path in cache.iterdir()) == ["toy-1", "toy-1.tgz"]


def test_who_comes_second_waits_and_takes_what_the_first_one_unpacked(pinned, cache, monkeypatch):
    begun, calls = threading.Event(), []

    def slow(archive, into):
        calls.append(into)
        begun.set()
        time.sleep(0.05)
        unpack(archive, into)

    monkeypatch.setattr(packages, "unpack", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(unpacked, "toy")
        begun.wait(5)
        second = pool.submit(unpacked, "toy")
        assert (first.result() / "package" / "a.txt").read_bytes() == b"hello"
        assert second.result() == first.result()
    assert len(calls) == 1
    assert sorted(path.name for path in cache.iterdir()) == ["toy-1", "toy-1.tgz"]


def test_a_source_package_is_checked_before_its_setup_runs(cache, tmp_path, monkeypatch):
    shelf, ran = tmp_path / "shelf", tmp_path / "ran"
    shelf.mkdir()
    setup = f"open({str(ran)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='toy', version='1')\n"
    (shelf / "toy-1.tar.gz").write_bytes(tar_of("toy-1/setup.py", setup.encode()))
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(shelf),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }.items():
        monkeypatch.setenv(name, value)
    entry = Package("toy", "pip", "1", "MIT", "nobody", {"toy-1.tar.gz": "0" * 64})
    monkeypatch.setattr(packages, "lock", lambda: {"toy": entry})
    with pytest.raises(ValueError, match="expected pip to fetch toy 1, got"):
        fetch("toy")
    assert not ran.exists()
    assert list(cache.iterdir()) == []


def test_a_changed_archive_is_refused(pinned):
    pinned.write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected SHA-256"):
        unpacked("toy")


def test_a_missing_client_says_what_to_install(pinned, monkeypatch):
    pinned.unlink()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"expected the npm program to fetch toy, found none; install Node\.js"):
        fetch("toy")


def test_a_client_that_fails_is_quoted(pinned, cache, tmp_path, monkeypatch):
    pinned.unlink()
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho 'no such version' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    with pytest.raises(ValueError, match="expected npm to fetch toy 1, got: no such version"):
        fetch("toy")
    assert list(cache.iterdir()) == []


def test_a_wheel_for_another_python_in_the_cache_is_not_taken(cache):
    wheels = {f"toy-1-{tag}-{tag}-linux_x86_64.whl": "0" * 64 for tag in ("cp39", packages.PYTHON_TAG)}
    package = Package("toy", "pip", "1", "MIT", "nobody", wheels)
    for name in wheels:
        assert package.cached is None
        (cache / name).write_bytes(b"")
    assert package.cached == cache / list(wheels)[1]
    assert package.folder == f"toy-1-{packages.PYTHON_TAG}"


def test_an_unknown_package_is_named(cache):
    with pytest.raises(ValueError, match="expected a pinned package, got 'leftpad'"):
        fetch("leftpad")


def test_debian_packages_and_wheels_unpack_without_their_tools(tmp_path):
    deb = tmp_path / "x.deb"
    content = ar_of(**{"debian-binary": b"2.0", "data__tar__xz": tar_of("./usr/b.txt", b"deb", "w:xz")})
    deb.write_bytes(content)
    unpack(deb, tmp_path / "deb")
    assert (tmp_path / "deb" / "usr" / "b.txt").read_bytes() == b"deb"
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("x/__init__.py", "y = 1\n")
    unpack(tmp_path / "x.whl", tmp_path / "whl")
    assert (tmp_path / "whl" / "x" / "__init__.py").is_file()


@pytest.mark.parametrize("cut", [4, 30, 90])
def test_damaged_debian_packages_are_refused(cut):
    whole = ar_of(**{"debian-binary": b"2.0\n", "data__tar__xz": b"123456"})
    assert [name for name, _ in ar_members(io.BytesIO(whole))] == ["debian-binary", "data.tar.xz"]
    with pytest.raises(ValueError, match="expected"):
        list(ar_members(io.BytesIO(whole[:cut])))


def test_members_outside_the_directory_are_refused(tmp_path):
    (tmp_path / "evil.tgz").write_bytes(tar_of("../evil.txt", b"x"))
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(tmp_path / "evil.tgz", tmp_path / "in")
    assert not (tmp_path / "evil.txt").exists()
