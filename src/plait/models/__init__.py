"""Model families, each a directory with the same files; `auto` is the one door to them. Some models ship with Plait."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from plait.places import cache_directory

SHIPPED = ("nano", "nano-mplug2")
"""Names of the model directories inside the package."""


def shipped(name: str | Path) -> Path | None:
    """The directory of a model that ships with Plait.

    Args:
        name: such as "nano".

    Returns:
        None where no model of that name ships.
    """
    return Path(__file__).parent / "shipped" / str(name) if str(name) in SHIPPED else None


def name_of_shipped(path: str | Path) -> str | None:
    """The name of the shipped model that lies in a directory.

    Args:
        path: absolute, as `shipped` gives it.

    Returns:
        None where it is another directory.
    """
    return next((name for name in SHIPPED if shipped(name) == Path(path)), None)


def official_rows() -> dict[str, dict[str, Any]]:
    """Name for `plait get` -> row of official.json: the file's name without its ending, in small letters."""
    rows = json.loads(Path(__file__).with_name("official.json").read_text(encoding="utf-8"))
    return {re.sub(r"\.(pt|pth|pkl)$", "", row["name"]).lower(): row for row in rows}


def cached_model(name: str) -> Path | None:
    """The directory of a model that `plait get` made in the cache, None where there is none of that name."""
    if not re.fullmatch(r"[\w-][\w.-]*", name):  # else a path, perhaps out of the cache
        return None
    if name == "smollm2":
        from plait.data.packages import smollm2_place

        place = smollm2_place()
    else:
        place = cache_directory() / "models" / name
    return place if (place / "config.json").is_file() else None


def by_name(name: str | Path) -> Path | None:
    """The directory of a shipped or fetched model.

    Args:
        name: such as "nano" or "one-peace".

    Returns:
        None where there is none of that name on this machine.
    """
    return shipped(name) or cached_model(str(name))


def directory_of(model: str | Path) -> Path:
    """The directory that a recipe's `init` stands for; no host is asked.

    Args:
        model: a path, or the name of a shipped or fetched model where no path is called so.

    Returns:
        As it was written where there is neither: who reads it says that it is missing.
    """
    return Path(model) if Path(model).exists() else by_name(model) or Path(model)


_FOLDERS = {"runs", "models", "checkpoints", "data", "out", "output", "outputs"}
"""First parts of paths that people write; a hub id of such an owner takes `hf:` in front."""


def locate(model: str | Path) -> Path:
    """The directory or file that a model's name stands for; a hub id is fetched.

    A path that is missing is said to be missing, and asks no host: what looks like one, because its folder is
    here or has a name such as `runs`, is no hub id.

    Args:
        model: a path; "nano", which ships with Plait; a name that `plait get` fetched; or a hub id such as
            `openai/clip-vit-base-patch32`, before which `hf:` says that it is no path.

    Returns:
        An absolute path.

    Raises:
        ValueError: for no such path, and nothing of that name on the hub or in its cache.
    """
    name = str(model).removeprefix("hf:")
    if Path(name).exists():
        return Path(name).resolve()
    if (own := by_name(name)) is not None:
        return own
    if name == "smollm2" or name in official_rows():
        raise ValueError(f"expected a model that is here, got {name}, which was not fetched yet; run plait get {name}")
    owner = name.partition("/")[0]
    is_path = owner in _FOLDERS or Path(owner).is_dir()
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or (is_path and not str(model).startswith("hf:")):
        raise ValueError(
            f"expected a model directory or file, got {name}: no such file or directory; check the path, "
            f"or pass {SHIPPED[0]}, which ships with Plait"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = "expected a file, a model directory or a hub id"
    try:
        return Path(snapshot_download(name))
    except LocalEntryNotFoundError as error:  # also where HF_HUB_OFFLINE asks nobody
        raise ValueError(
            f"{wanted}, got {name}: no such directory, not in the cache, and the hub was not reached (offline); "
            "connect, or pass a directory"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{wanted}, got {name}: no such directory, and not on the hub; check the name") from error
