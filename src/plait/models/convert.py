"""`plait convert SRC DST`: an official checkpoint becomes a model directory, once, with a record of what was done.

official file -> restricted reader -> family's key rules -> strict load -> DST (written beside it, then renamed)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plait
from plait.errors import UsageError
from plait.places import atomic_directory
from plait.report.tables import markdown, markdown_code

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        path: the model directory.
        model_type, parameters, dtype: of the model.
        sources: file -> SHA-256.
        dropped: official key -> reason.
        added: keys of the model that no official key gave.
        notes: what the reader of the checkpoint and the family have to say.
    """

    path: str
    model_type: str
    parameters: int
    dtype: str
    sources: dict[str, str]
    dropped: dict[str, str]
    added: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    dtype: str | None = None,
    branch: Sequence[str] | None = None,
    **options: Any,
) -> Conversion:
    """Convert an official checkpoint into a model directory: weights, configuration, processor and a card.

    Args:
        src: a file or directory as published.
        dst: does not exist yet; appears whole or not at all.
        dtype, branch: as in `plait.models.auto.load`.
        options: of `plait.models.auto.from_official`.

    Returns:
        The record that the card tells.

    Raises:
        UsageError: where `dst` exists, or a task is given to a family that has none.
        ValueError: where `src` is no checkpoint of a known family, or its weights do not fit or are not finite.

    Example:
        >>> convert("one-peace.pt", "one-peace", dtype="bfloat16").parameters
    """
    src, dst = Path(src), Path(dst)
    # held before anything is read, so that a second process is told at once
    with atomic_directory(dst) as out:
        model, processor, done = _converted(src, dst, dtype, branch, options)
        model.save_pretrained(out)
        processor.save_pretrained(out)
        (out / "README.md").write_text(card(done), encoding="utf-8")
    return done


def _converted(
    src: Path, dst: Path, dtype: str | None, branch: Sequence[str] | None, options: dict[str, Any]
) -> tuple[Any, Any, Conversion]:
    """Model and processor of an official checkpoint, and the record of what was done."""
    from plait.models.auto import FAMILIES, from_official
    from plait.weights.dtypes import resolve_dtype
    from plait.weights.files import check_finite_weights, fingerprint, read_checkpoint

    checkpoint = read_checkpoint(src)
    model, processor = from_official(checkpoint, dtype=resolve_dtype(dtype), branch=branch, **options)
    check_finite_weights(model, src)
    if "task" in options and not getattr(model, "TASKS", ()):
        raise UsageError(f"expected --task with a family that is loaded by task, got {model.config.model_type}")
    weights = import_module(f"{FAMILIES[model.config.model_type]}.weights")
    # other spellings of a release
    state = getattr(weights, "official_names", lambda state: state)(checkpoint.state)
    rules = [weights.key_map(model.config)]
    rules += [weights.vision_key_map()] if hasattr(weights, "vision_key_map") else []
    # a family may publish whole models and vision towers, whose names differ: the rules that explain
    # every key are taken
    explaining = next((one for one in rules if all(one.explain(state).values())), None)
    if explaining is None:
        raise ValueError(f"expected key rules of {model.config.model_type} for {checkpoint.path}, got none that fit")
    _, report = explaining.forward(state)  # names only: nothing is read
    # with a head around it the model's names have one level more than the rules write
    own = {key.removeprefix("model.") for key in model.state_dict()}
    moved = {key: {t.removeprefix("model.") for t in targets} for key, targets in report.moved.items()}
    left = {key: "belongs to a branch or head that was not kept" for key in moved if own.isdisjoint(moved[key])}
    # what a family has to say beyond its keys
    notes = getattr(weights, "notes", lambda state, config: ())
    said = notes(checkpoint.state, options.get("official_config") or checkpoint.config)
    # of a directory's files, those that hold weights and configuration
    suffixes = {".safetensors", ".bin", ".json"}
    files = sorted(path for path in src.iterdir() if path.suffix in suffixes) if src.is_dir() else [src]
    done = Conversion(
        path=str(dst),
        model_type=model.config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        sources={file.name: fingerprint(file) for file in files},
        dropped=dict(report.dropped) | left,
        added=tuple(sorted(own.difference(*moved.values()))),
        notes=(*checkpoint.notes, *said),
    )
    return model, processor, done


def card(done: Conversion) -> str:
    """The README.md of a converted model: where it comes from, how to load it, what was left out and why.

    Returns Markdown with the front matter that the hub reads.
    """
    lines = [
        "---",
        "library_name: plait",
        f"tags: [{done.model_type}]",
        "---",
        f"# {done.model_type}, converted with Plait {plait.__version__}",
        "",
        f"{done.parameters:,} parameters, {done.dtype}. The terms of the original weights apply.",
        "",
        "```python",
        "import plait",
        f'model, processor = plait.load("{Path(done.path).name}")',
        "```",
        "",
        "## Source",
        "",
        "| file | SHA-256 |",
        "|---|---|",
        *(f"| {markdown(name)} | `{digest}` |" for name, digest in done.sources.items()),
        "",
        "## Left out",
        "",
    ]
    for reason, keys in by_reason(done.dropped).items():
        lines += [f"<details><summary>{len(keys)} tensors: {reason}</summary>", ""]
        lines += [f"- {markdown_code(key)}" for key in keys] + ["", "</details>", ""]
    if not done.dropped:
        lines += ["Nothing.", ""]
    if done.added:
        lines += ["## Without an official weight", "", *(f"- {markdown_code(key)}" for key in done.added), ""]
    if done.notes:
        lines += ["## Notes", "", *(f"- {markdown(note)}" for note in done.notes), ""]
    return "\n".join(lines)


def by_reason(dropped: Mapping[str, str]) -> dict[str, list[str]]:
    """Key -> reason, turned round: reason -> keys, in the order of the keys."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for key, reason in dropped.items():
        grouped[reason].append(key)
    return dict(grouped)
