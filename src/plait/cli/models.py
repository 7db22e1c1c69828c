"""The verbs about model directories as such: `plait info`, `models`, `convert`, `merge`, `upcycle`, `export`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from plait.cli.options import ModelArgument, NewDirectory, json_option
from plait.errors import UsageError
from plait.models.catalog import Listed, local, model_info, official
from plait.reading import read_json
from plait.report.tables import format_bytes, format_count, format_table


def info(
    model: Annotated[Path, typer.Argument(help="A model directory.")],
    as_json: Annotated[bool, json_option("Print JSON for machines.")] = False,
) -> None:
    """Print family, modalities, parameters, dtype and licence of a model directory, without loading its weights."""
    facts = model_info(model)
    if as_json:
        print(json.dumps(asdict(facts), indent=2))
        return
    print(f"{facts.path}: {facts.family} ({', '.join(facts.architectures) or 'architecture not named'})")
    print(f"modalities  {', '.join(facts.modalities) or 'not named'}")
    print(f"parameters  {facts.parameters:,} ({format_count(facts.parameters)})")
    print(f"dtype       {', '.join(facts.dtypes)}   {format_bytes(facts.bytes)} on disk")
    print(f"licence     {facts.license or 'not named in README.md'}\n")
    rows = [(part, format_count(n), f"{n / facts.parameters:.1%}") for part, n in facts.parts.items()]
    print(format_table(("part", "parameters", "share"), rows))


def models(
    folders: Annotated[list[Path] | None, typer.Argument(help="folders to look for model directories in")] = None,
    *,
    family: Annotated[str | None, typer.Option(help="only this family; all without it")] = None,
    forget: Annotated[list[str] | None, typer.Option("--remove", help="remove what plait get made; repeatable")] = None,
    as_json: Annotated[bool, json_option()] = False,
) -> None:
    """List official checkpoints and local model directories: family, size, memory, licence, what they do.

    Without FOLDERS the folder runs/ is looked at when it is there. Nothing is fetched.
    """
    if forget:
        from plait.models import fetch

        for name in forget:
            print(f"removed {name}: {format_bytes(fetch.forget(name))} are free again")
        return
    runs = [Path("runs")] if Path("runs").is_dir() else []
    groups = {"official": official(), "local": local(runs if folders is None else folders)}
    known = sorted({row.family for rows in groups.values() for row in rows})
    if family is not None and family not in known:
        raise UsageError(f"expected one of the families {', '.join(known)}, got {family!r}")
    groups = {name: [row for row in rows if family in (None, row.family)] for name, rows in groups.items()}
    if as_json:
        print(json.dumps({name: [asdict(row) for row in rows] for name, rows in groups.items()}, indent=2))
        return
    for name, rows in groups.items():
        print(f"{name}\n{_table(rows) if rows else '(none)'}\n")
    print("Memory is that of the weights in bfloat16 (float32: twice that); activations come on top: plait plan.")
    print("Licences of official files are those of the authors' repositories; those of base models were not checked.")


def get(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="of plait models, smollm2, or a hub id; several")],
    *,
    keep: Annotated[bool, typer.Option("--keep", help="keep the official file beside its conversion")] = False,
) -> None:
    """Fetch models once, by name; the same names then work in every verb and in plait.load."""
    from plait.models import fetch

    for name in names:
        place = fetch.get(name, keep=keep)
        print(f"{name}: {place}")


def _table(rows: Sequence[Listed]) -> str:
    """Numbers aligned to the right, then name and description to the left; below, where to get what is not here."""
    numbers = [(row.family, format_count(row.parameters), format_bytes(row.memory["bfloat16"])) for row in rows]
    head, *lines = format_table(("family", "parameters", "memory"), numbers).splitlines()
    width = max(len(row.name) for row in rows)
    body = [
        f"{line.ljust(len(head))}  {row.name:<{width}}  {row.does}; licence {row.license}"
        for line, row in zip(lines, rows)
    ]
    places = [f"  {place}" for place in dict.fromkeys(row.where for row in rows) if not Path(place).exists()]
    return "\n".join([f"{head}  name", *body, *places])


def convert(
    src: Annotated[Path, typer.Argument(help="Official checkpoint: .pt .pth .bin .pkl .safetensors or a directory.")],
    dst: NewDirectory,
    *,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the file's without it.")] = None,
    branch: Annotated[list[str] | None, typer.Option(help="Modality to keep; repeatable; all without it.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Keep only what this task needs (mPLUG-2), such as caption; everything without it."),
    ] = None,
    official: Annotated[bool, typer.Option("--official", help="Keep the quirks of the official code.")] = False,
    official_config: Annotated[
        Path | None, typer.Option(help="JSON of the cfg, for files that hold none; none without it.")
    ] = None,
    as_json: Annotated[bool, json_option("Print the record as JSON.")] = False,
) -> None:
    """Turn an official checkpoint into a model directory. Nothing in the file is executed."""
    from plait.models.convert import by_reason
    from plait.models.convert import convert as convert_to

    # Only what was asked for: not every family takes these options.
    options: dict[str, Any] = {"official": True} if official else {}
    if task is not None:
        options["task"] = task
    if official_config is not None:
        try:
            options["official_config"] = read_json(official_config)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"expected a JSON file with the official configuration, got {official_config}: {error}"
            ) from error
        if not isinstance(options["official_config"], dict):
            raise UsageError(
                f"expected a JSON object with the official configuration, got {official_config} with something else"
            )
    if not as_json:
        print(f"reading {src}")
    done = convert_to(src, dst, dtype=dtype, branch=branch or None, **options)
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(f"{done.path}: {done.model_type}, {done.parameters:,} parameters, {done.dtype}")
    for reason, keys in by_reason(done.dropped).items():
        print(f"  left out {len(keys)}: {reason}")
    for note in (*(f"no official weight for {key}" for key in done.added), *done.notes):
        print(f"  note: {note}")


def merge(
    base: Annotated[Path, typer.Argument(help="Model directory, or official checkpoint, that the adapter belongs to.")],
    adapter: Annotated[Path, typer.Argument(help="PEFT directory with a LoRA.")],
    dst: NewDirectory,
) -> None:
    """Add a LoRA adapter to the weights it was trained on: a model directory that needs no adapter."""
    from plait.models.merge import merge as merge_into

    count = merge_into(base, adapter, dst)
    print(f"{dst}: {base} with {count} weights changed by {adapter}")


def upcycle(
    src: Annotated[Path, typer.Argument(help="transformers directory of a Llama, Mistral or Qwen2.")],
    dst: NewDirectory,
    *,
    vision: Annotated[Path | None, typer.Option(help="Directory of a CLIP vision tower; fresh without it.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images, in pixels; the tower's own without it.")
    ] = None,
    queries: Annotated[int, typer.Option(help="Queries per image.")] = 64,
    routed: Annotated[str, typer.Option(help="Parts with a way each, of: norm k v q out mlp.")] = "norm k v",
    small_vision: Annotated[bool, typer.Option("--small-vision", help="A fresh tower of 192 x 4 layers.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of what is fresh.")] = 0,
) -> None:
    """Make an mPLUG-Owl2 out of a Llama: text behaves as before until it is trained."""
    from plait.models import locate
    from plait.models.auto import upcycle as upcycle_to

    if vision is not None and small_vision:
        raise UsageError("expected --vision or --small-vision, got both")
    done = upcycle_to(
        locate(src), dst, vision=vision, image_size=image_size, num_queries=queries, routed=routed.split(),
        small_vision=small_vision, seed=seed,
    )  # fmt: skip
    print(f"{dst}: {done:,} parameters")


def export(
    model: ModelArgument,
    *,
    part: Annotated[str, typer.Option(help="text, image, video or audio, of those that the model has")],
    fmt: Annotated[str, typer.Option("--format", help="onnx, or torch: a program for torch.export.load")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="the file; MODEL-PART.onnx or .pt2 without it")] = None,
    as_json: Annotated[bool, json_option()] = False,
) -> None:
    """Write the tower of one modality as a file that runs without Plait, with a free batch size, and compare them."""
    from plait.models.auto import load
    from plait.models.export import export as export_to

    path = out or Path(f"{Path(model).name}-{part}.{'onnx' if fmt == 'onnx' else 'pt2'}")
    done = export_to(*load(model, dtype="float32"), part, path, fmt)  # ty: ignore[invalid-argument-type]
    if as_json:
        print(json.dumps(done._asdict() | {"path": str(done.path)}))
        return
    taken = ", ".join(f"{name} ({', '.join(['batch', *map(str, shape[1:])])})" for name, shape in done.inputs.items())
    print(f"{done.path}: {taken} -> features; differs from the model by at most {done.difference:.1e}")
