"""Is this installation fit (`plait doctor`)? Versions, extras, devices, dtypes, models, and golden cases that ship.

core packages -> extras -> devices x dtypes -> models here -> shipped golden cases -> a verdict, exit code 1 if broken
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import plait
from plait.errors import extra_of

SHOWN = ("media", "train", "search", "serve", "chat", "eval")
"""Extras that people use; those for builders and developers are left out."""
# Distributions whose module has another name than the distribution.
MODULES = {"pillow": "PIL", "huggingface-hub": "huggingface_hub", "pycocotools": "pycocotools"}
FREE_GB = 1.0
"""GiB; with less the free space is pointed out."""

State = Literal["ok", "absent", "BROKEN"]


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Args:
        topic: version, extra, disk, device, dtype, model or parity.
        name: of what was looked at.
        state: `absent` is a thing one can do without; `BROKEN` fails the command.
        note: what was found, or the remedy.
    """

    topic: str
    name: str
    state: State
    note: str


def examine(parity: bool = True) -> Iterator[Check]:
    """Every check, quick ones first, each as soon as it is made.

    Args:
        parity: whether to run the shipped golden cases, which takes the longest.
    """
    yield Check("version", "plait", "ok", f"{plait.__version__}, Python {platform.python_version()}")
    yield from _packages()
    yield from _extras()
    yield _disk()
    yield from _devices()
    yield from _models()
    if parity:
        yield from _cases()


def _packages() -> Iterator[Check]:
    """Whether every package that Plait always needs is installed in a version that it allows."""
    from packaging.requirements import Requirement

    for line in requires("plait") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and "extra" in str(requirement.marker):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check("version", requirement.name, "BROKEN", f"not installed; pip install '{line}'")
            continue
        # A prerelease that somebody installed counts; by default a specifier accepts none.
        fits = requirement.specifier.contains(found, prereleases=True)
        note = found if fits else f"expected {requirement.specifier}, got {found}; pip install '{line}'"
        yield Check("version", requirement.name, "ok" if fits else "BROKEN", note)


def _extras() -> Iterator[Check]:
    """Whether the packages of each shown extra are there, without importing them."""
    from packaging.requirements import Requirement

    names = {Requirement(line).name for line in requires("plait") or []}
    for extra in SHOWN:
        mine = sorted(name for name in names if extra_of(name.replace("-", "_")) == extra)
        missing = [name for name in mine if find_spec(MODULES.get(name, name.replace("-", "_"))) is None]
        note = f"without {', '.join(missing)}: pip install 'plait[{extra}]'" if missing else ", ".join(mine)
        yield Check("extra", extra, "absent" if missing else "ok", note)


def _disk() -> Check:
    """Free space where a run would be written."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return Check("disk", "free here", "ok" if free >= FREE_GB else "absent", f"{free:.1f} GiB")


def _devices() -> Iterator[Check]:
    """Every device that torch sees, and what computes on it in each floating-point type."""
    import torch

    devices = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
        yield Check("device", device, "ok", name)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            yield _dtype(device, dtype)


def _models() -> Iterator[Check]:
    """Models that are here and open by their names: shipped, fetched, in the hub's cache."""
    from plait.models.catalog import local

    for row in local():
        yield Check("model", row.name, "ok", f"{row.family}, {row.parameters / 1e6:,.1f} M parameters, {row.does}")


def _dtype(device: str, dtype: object) -> Check:
    """Whether a product and an attention work in `dtype` on `device` and come near those of float32."""
    import torch

    assert isinstance(dtype, torch.dtype)
    name = f"{device} {str(dtype).removeprefix('torch.')}"
    x = torch.linspace(-1, 1, 2 * 4 * 8).view(1, 2, 4, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x @ torch.eye(8))
    try:
        y = x.to(device, dtype)
        got = torch.nn.functional.scaled_dot_product_attention(y, y, y @ torch.eye(8, device=device, dtype=dtype))
        error = (got.float().cpu() - expected).abs().max().item()
    except RuntimeError as problem:
        return Check("dtype", name, "absent", str(problem).splitlines()[0])
    # bfloat16 keeps 8 bits: rounding alone is up to 4e-3 of a value near 1, and attention rounds several times.
    return Check("dtype", name, "ok" if error < 2e-2 else "BROKEN", f"error {error:.0e} of attention")


def _cases() -> Iterator[Check]:
    """The shipped golden cases, one small one of each family."""
    from plait.parity.cases import Settings, discover
    from plait.parity.run import run_all
    from plait.parity.shipped_runners import SHIPPED

    for result in run_all(discover(SHIPPED), Settings()):
        state: State = "ok" if result.verdict == "ok" else "BROKEN"
        note = f"{result.compared}/{result.stored} outputs, error {result.absolute:.0e}, {result.seconds:.1f} s"
        yield Check(
            "parity", f"{result.system}/{result.name}", state, note if state == "ok" else "; ".join(result.notes)
        )
