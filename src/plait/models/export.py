"""Towers leave for other runtimes: one modality's way from prepared inputs to features, with a free batch size.

model, part -> `Tower` (inputs by name -> features) -> torch.export -> tower.pt2 | tower.onnx -> compared
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from plait.errors import UsageError, import_extra
from plait.places import atomic_write

Format = Literal["onnx", "torch"]
PARTS = ("text", "image", "video", "audio")


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: of the file.
        inputs: their names, in order, with the shape that they were traced with; the batch is free, and so is the
            number of tokens.
        difference: largest absolute one between the file and the model, on a batch of another size.
    """

    path: Path
    inputs: dict[str, tuple[int, ...]]
    difference: float


class Tower(nn.Module):
    """One part of a model: tensors in the order of `names` -> features, or the logits of a head.

    Args:
        model: of Plait.
        part: a modality.

    Raises:
        UsageError: for a part that the model has not.
    """

    def __init__(self, model: Any, part: str) -> None:
        super().__init__()
        self.model, self.method = model, f"get_{part}_features"
        if not hasattr(model, self.method):
            self.method = "forward"
        has = [one for one in PARTS if hasattr(model, f"get_{one}_features")]
        modalities = set(getattr(model.config, "modalities", has))
        if self.method == "forward" and not (getattr(model.config, "num_classes", 0) and part in modalities):
            raise UsageError(f"expected a part of {', '.join(has) or 'none'}, got {part} of {type(model).__name__}")
        if self.method != "forward" and part not in modalities and "image" not in has:
            raise UsageError(f"expected a part of {', '.join(sorted(modalities))}, got {part}; choose one of them")

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(batch, ...) of those that the part reads -> (batch, dim), (batch, tokens, dim) or (batch, classes)."""
        given = {  # written out: torch.export names inputs by the signature
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "pixel_values_videos": pixel_values_videos,
            "input_values": input_values,
            "attention_mask": attention_mask,
        }
        found = getattr(self.model, self.method)(**{name: one for name, one in given.items() if one is not None})
        return found if isinstance(found, Tensor) else found.logits


def example(model: Any, processor: Any, part: str, batch: int) -> dict[str, Tensor]:
    """Inputs of a part as its processor shapes them, of noise or of a few words.

    Args:
        model, processor: of Plait.
        part: a modality.
        batch: how many items.
    """
    generator = torch.Generator().manual_seed(batch)
    side = int(getattr(model.config, "image_size", 0))
    if part == "image":
        return {"pixel_values": torch.randn(batch, 3, side, side, generator=generator)}
    if part == "video":
        takes = inspect.signature(getattr(model, "get_video_features")).parameters  # noqa: B009 (a part of few models)
        name = next(iter(takes))
        frames = int(getattr(processor, "num_frames", None) or getattr(model.config, "num_frames", 8))
        shape = (batch, 3, frames, side, side) if name == "pixel_values_videos" else (batch, frames, 3, side, side)
        return {name: torch.randn(shape, generator=generator)}
    if part == "audio":
        extractor = processor.feature_extractor
        length = int(extractor.max_seconds * extractor.sampling_rate)
        clips = [np.sin(np.arange(length - i * length // 8) * 0.1).astype(np.float32) for i in range(batch)]
        return dict(processor(audio=clips))
    return dict(processor(text=[" ".join(["word"] * (2 + i)) for i in range(batch)]))


def export(model: Any, processor: Any, part: str, path: str | Path, format: Format = "onnx") -> Exported:
    """Write a part of a model as a file that runs without Plait, and compare it with the model.

    Args:
        model, processor: of Plait; the model is brought to float32 and to scaled-dot-product attention.
        part: text, image, video or audio, of those that the model has.
        path: of the file, which is replaced.
        format: `onnx`, for onnxruntime and others, or `torch`, which `torch.export.load` reads.

    Returns:
        `Exported`.

    Raises:
        UsageError: for another format, and a part that the model has not.
        MissingExtraError: without the packages of the extra `export`.
    """
    if format not in get_args(Format):
        raise UsageError(f"expected a format of {', '.join(get_args(Format))}, got {format!r}; choose one of them")
    model = model.to("cpu", torch.float32).eval()
    model.set_attn_implementation("sdpa")
    tower = Tower(model, part).eval()
    inputs, more = example(model, processor, part, 2), example(model, processor, part, 3)
    # texts may be of any length, all else has the size that the model was made for
    free = {0: torch.export.Dim.DYNAMIC, **({1: torch.export.Dim.DYNAMIC} if part == "text" else {})}
    shapes = dict.fromkeys(inputs, free)
    with torch.no_grad():
        program = torch.export.export(tower, (), inputs, dynamic_shapes=shapes)
        wanted = tower(**more).numpy()
        if format == "torch":
            atomic_write(path, lambda place: torch.export.save(program, str(place)))
            found = torch.export.load(str(path)).module()(**more).numpy()
        else:
            onnx = import_extra("onnxruntime")
            import_extra("onnxscript")
            made = torch.onnx.export(
                program,
                (),
                kwargs=inputs,
                input_names=list(inputs),
                output_names=["features"],
                dynamo=True,
                verbose=False,
            )
            assert made is not None
            atomic_write(path, lambda place: made.save(str(place)))
            session = onnx.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            found = session.run(None, {name: value.numpy() for name, value in more.items()})[0]
    difference = float(np.abs(found - wanted).max())
    return Exported(Path(path), {name: tuple(value.shape) for name, value in inputs.items()}, difference)
