"""Towers: one interface over the models that turn a batch of one modality into features.

    directory -> load_tower -> Tower.prepare(item) -> inputs -> Tower.encode(batch of inputs) -> (batch, dim)

`PairTower` holds Plait's own models and any transformers model with `get_text_features`, `get_image_features` or
`get_audio_features` (CLIP, SigLIP, CLAP and their kin). `SentenceTower` reads a sentence-transformers directory whose
modules are a transformer, a pooling and perhaps a normalisation; that package itself is not needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from plait.errors import no_code_of
from plait.modalities import in_order, is_registered, own, registered
from plait.models import auto
from plait.models.auto import Placement
from plait.models.registry import FAMILIES
from plait.processing.videos import chooser
from plait.reading import inside, read_json
from plait.weights.files import load_whole

_ARGUMENT: dict[str, str] = {"text": "text", "image": "images", "video": "videos", "audio": "audio"}
# fields of a configuration that depend on who wrote it, not on what the model computes
_VOLATILE = {"transformers_version", "dtype", "torch_dtype", "architectures", "official"}
_SAMPLES_PER_TENSOR = 64
_REDUCED = 2
"""Times as many pixels a side that a picture is decoded to as the model takes: what is left is scaled as ever."""
SIMILARITY_SCALE = 20.0
"""Of models that keep none of their own, as sentence-transformers trains by default (`scale` of its ranking loss)."""


class Tower(Protocol):
    """What `Embedder` needs of a model.

    Attributes:
        model: the torch module, whose first parameter tells device and dtype.
        modalities: what it embeds, in the shared order.
        sampling_rate: samples per second of audio; None without audio.
        loading: arguments of the loaders by modality: frames of videos as the model's release chooses them.
        max_samples: of an audio clip, which the model's processor cuts off behind; None where it does not.
    """

    model: nn.Module
    modalities: tuple[str, ...]
    sampling_rate: int | None
    loading: Mapping[str, Mapping[str, Any]]
    max_samples: int | None

    @property
    def similarity_scale(self) -> float:
        """By which cosines are multiplied before a softmax, as the model learned it."""
        ...

    def prepare(self, modality: str, values: Sequence[Any]) -> dict[str, Tensor]:
        """Decoded values of one modality -> the model's inputs on the host, first axis = batch.

        values: texts, PIL images, lists of frames or arrays (samples,). Called from several threads for images.
        """
        ...

    def encode(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Inputs on the model's device -> features (batch, dim), not necessarily of unit norm."""
        ...


class PairTower:
    """A model with `get_<modality>_features` beside its processor.

    Args:
        model: of Plait, or of transformers (CLIP, SigLIP, CLAP and their kin).
        processor: takes text=, images=, videos= and audio=.

    Raises:
        ValueError: for a model without any such method.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        mine = getattr(model, "modalities", None)  # Plait's models say what they have; others show it by their methods
        # a video of transformers' own models is no clip but an image of a processor that we do not know
        found = mine or [m for m in ("text", "image", "audio") if hasattr(model, f"get_{m}_features")]
        self.modalities: tuple[str, ...] = tuple(in_order(found))
        # a chat model may have `get_image_features` too, what its decoder reads: a space is one that texts are in
        if not self.modalities or not (mine or "text" in found):
            raise ValueError(
                f"expected a model with get_text_features, get_image_features or get_audio_features, got "
                f"{type(model).__name__}; only models that map media into one space can embed"
            )
        self.loading: Mapping[str, Mapping[str, Any]] = {}
        if "video" in self.modalities:
            asking = auto.skills(model, processor)
            choose = chooser(asking.frames, asking.num_frames)
            self.loading = {"video": {"num_frames": asking.num_frames, "choose": choose}}
        if "image" in self.modalities and (side := _shorter_side(processor)) is not None:
            self.loading = {**self.loading, "image": {"at_least": _REDUCED * side}}
        extractor = getattr(processor, "feature_extractor", None)
        self.sampling_rate: int | None = getattr(processor, "sampling_rate", getattr(extractor, "sampling_rate", None))
        # Plait's own processors cut and pad by themselves, so only those of transformers get limits and
        # options
        longest = getattr(extractor, "max_seconds", None) if mine else None
        self.max_samples = round(longest * self.sampling_rate) if longest and self.sampling_rate else None
        self._max_samples: int | None = None if mine else getattr(extractor, "nb_max_samples", None)
        self._options = {} if mine else self._transformers_options()

    def _transformers_options(self) -> dict[str, dict[str, Any]]:
        """Keyword arguments of a transformers processor by modality: padding as it was trained, and the text limit."""
        config = self.model.config
        text = getattr(config, "text_config", config)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        # either may be missing, or larger than the table of positions
        limit = min(getattr(text, "max_position_embeddings", 10**9), getattr(tokenizer, "model_max_length", 10**9))
        if getattr(text, "model_type", "") == "clap_text_model":  # RoBERTa positions start after the padding index
            limit = min(limit, text.max_position_embeddings - text.pad_token_id - 1)
        # SigLIP was trained on text padded to full length and has no attention mask
        full = {"padding": "max_length", "return_attention_mask": False}
        padded: dict[str, Any] = full if str(config.model_type).startswith("siglip") else {"padding": True}
        # tokenizers without a limit say so by a number of thirty digits
        cut: dict[str, Any] = {"truncation": True, "max_length": limit} if limit < 10**6 else {}
        return {
            "text": {**padded, "return_tensors": "pt", **cut},
            "image": {"return_tensors": "pt"},
            "audio": {"sampling_rate": self.sampling_rate, "return_tensors": "pt"},
        }

    @property
    def similarity_scale(self) -> float:
        """See `Tower`; CLIP, SigLIP and our families learn its logarithm, CLAP one for each direction."""
        names = ("logit_scale", "logit_scale_t", "logit_scale_a")
        learned = next((found for name in names if (found := getattr(self.model, name, None)) is not None), None)
        return SIMILARITY_SCALE if learned is None else min(float(torch.as_tensor(learned).detach().exp()), 100.0)

    def prepare(self, modality: str, values: Sequence[Any]) -> dict[str, Tensor]:
        """See `Tower.prepare`; randomness of CLAP's extractor is taken out, so that equal clips give equal vectors."""
        if is_registered(modality):
            return dict(registered(modality).process(values))
        if modality == "audio" and self._max_samples:
            values = [_middle(clip, self._max_samples) for clip in values]  # CLAP's own cut is random
        inputs = dict(self.processor(**{_ARGUMENT[modality]: list(values)}, **self._options.get(modality, {})))
        if "is_longer" in inputs:  # CLAP draws one clip of a batch to be treated as long; none of ours is
            inputs["is_longer"] = torch.zeros_like(torch.as_tensor(inputs["is_longer"]), dtype=torch.bool)
        return {name: torch.as_tensor(value) for name, value in inputs.items()}

    def encode(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `Tower.encode`; transformers gives a tensor or, in newer releases, an output with `pooler_output`."""
        if is_registered(modality):
            return self.model.embed({modality: inputs})[modality]
        features = getattr(self.model, f"get_{modality}_features")(**inputs)
        return features if isinstance(features, Tensor) else features.pooler_output


def _middle(clip: Any, length: int) -> Any:
    """The middle `length` samples of a clip, or all of a shorter one."""
    start = max(0, (len(clip) - length) // 2)
    return clip[start : start + length]


class SentenceTower:
    """Transformer, pooling, normalisation: what a plain sentence-transformers directory describes.

    Args:
        directory: has modules.json. Nothing in it is run: classes are known by name alone.
        dtype: of the weights; None as stored.

    Raises:
        ValueError: for other modules than these, or several poolings at once.
    """

    modalities: tuple[str, ...] = ("text",)
    sampling_rate: int | None = None
    similarity_scale = SIMILARITY_SCALE
    max_samples: int | None = None
    loading: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, directory: Path, dtype: torch.dtype | None) -> None:
        from transformers import AutoModel, AutoTokenizer

        modules = _modules(directory)
        if not {"Transformer", "Pooling"} <= set(modules) <= {"Transformer", "Pooling", "Normalize"}:
            raise ValueError(f"expected modules Transformer, Pooling, Normalize in {directory}, got {list(modules)}")
        root = modules["Transformer"]
        self.model = load_whole(AutoModel, root, dtype=dtype or "auto", optional="pooler.")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(root, trust_remote_code=False)
        self.pooling = _pooling_mode(read_json(modules["Pooling"] / "config.json"), directory)
        settings = root / "sentence_bert_config.json"
        settings = read_json(settings) if settings.is_file() else {}
        limits = (settings.get("max_seq_length"), getattr(self.model.config, "max_position_embeddings", None))
        # the shortest of the three, as the directory, the model and the tokenizer may disagree
        self.max_length = min(n for n in (*limits, self.tokenizer.model_max_length) if n)
        self.lower = bool(settings.get("do_lower_case"))
        extra = directory / "config_sentence_transformers.json"
        extra = read_json(extra) if extra.is_file() else {}
        # some models put words such as "query: " before every text
        self.prompt = (extra.get("prompts") or {}).get(extra.get("default_prompt_name"), "")

    def prepare(self, modality: str, values: Sequence[Any]) -> dict[str, Tensor]:
        """See `Tower.prepare`."""
        texts = [self.prompt + (text.lower() if self.lower else text) for text in values]
        return dict(
            self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt")
        )

    def encode(self, modality: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """See `Tower.encode`: (batch, seq) ids and mask -> states of all tokens -> one pooled vector (batch, dim)."""
        tokens = self.model(**inputs).last_hidden_state  # (batch, seq, dim)
        mask = inputs["attention_mask"].unsqueeze(-1).to(tokens.dtype)  # (batch, seq, 1)
        if self.pooling == "cls":
            return tokens[:, 0]
        if self.pooling == "max":
            return tokens.masked_fill(mask == 0, torch.finfo(tokens.dtype).min).amax(dim=1)
        # padding may be on either side, so the last attended place is looked for
        if self.pooling == "lasttoken":
            last = (mask.squeeze(-1) * torch.arange(1, tokens.shape[1] + 1, device=tokens.device)).argmax(dim=1)
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        return (tokens * mask).sum(dim=1) / mask.sum(dim=1)  # mean; the square-root variant differs only in length


def _modules(directory: Path) -> dict[str, Path]:
    """Class names of modules.json, without their package -> their folders.

    Raises ValueError for a folder outside of the directory, and a file of another form.
    """
    written = read_json(directory / "modules.json", list)
    if not all(isinstance(one, dict) and isinstance(one.get("path"), str) and "type" in one for one in written):
        raise ValueError(f"expected modules with a type and a path in {directory / 'modules.json'}, got others")
    return {str(one["type"]).rsplit(".", 1)[-1]: inside(directory, one["path"]) for one in written}


def _pooling_mode(config: Mapping[str, Any], directory: Path) -> str:
    """The pooling of a sentence-transformers configuration, by its older flags or its newer word."""
    old = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
    old |= {"pooling_mode_mean_sqrt_len_tokens": "mean", "pooling_mode_lasttoken": "lasttoken"}
    modes = [old.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    modes = modes or [config.get("pooling_mode", "mean")]
    if len(modes) != 1 or modes[0] not in old.values():
        raise ValueError(f"expected one pooling of cls, mean, max, lasttoken in {directory}, got {modes}")
    return modes[0]


def _shorter_side(processor: Any) -> int | None:
    """Pixels that a processor scales the shorter side of a picture to at least; None where it does not say."""
    own = getattr(processor, "image_size", None)
    size = own if own is not None else getattr(getattr(processor, "image_processor", processor), "size", None)
    if not isinstance(size, int):  # a mapping, or a class of transformers with the same names
        read = size.get if isinstance(size, Mapping) else lambda name: getattr(size, name, None)
        sides = [read(name) for name in ("shortest_edge", "height", "width")]
        size = max((side for side in sides if isinstance(side, int)), default=None)
    return size if isinstance(size, int) and size > 0 else None


def load_tower(source: Path, placed: Placement, adapter: Path | None = None) -> Tower:
    """Read a model onto a device, ready to run.

    Args:
        source: a model directory (Plait, transformers, sentence-transformers) or an official checkpoint.
        placed: device and type.
        adapter: directory of a LoRA, for models of Plait alone.

    Returns:
        A `Tower` in eval mode.

    Raises:
        ValueError: for a directory of no known kind or with code of its own, and a LoRA beside a foreign model.
    """
    with no_code_of(source):
        tower = _sentence_or_pair(source, placed.dtype, placed.device, adapter)
    tower.model = placed.ready(tower.model)
    return tower


def _sentence_or_pair(source: Path, dtype: torch.dtype | None, device: torch.device, adapter: Path | None) -> Tower:
    """The tower of a directory by what lies in it: modules.json, a model type of transformers, or a family of Plait."""
    is_theirs = is_foreign(source)
    if adapter is not None and is_theirs:
        raise ValueError(f"expected a model of Plait for the adapter {adapter}, got {source}; merge it with PEFT")
    if is_theirs and (source / "modules.json").is_file():
        modules = _modules(source)
        # sentence-transformers wraps CLIP so: both of its towers are better read by transformers
        if list(modules) == ["CLIPModel"]:
            return _transformers_pair(modules["CLIPModel"], dtype)
        return SentenceTower(source, dtype)
    if is_theirs:
        return _transformers_pair(source, dtype)
    return PairTower(*auto.load(source, dtype=dtype, device=device, adapter=adapter))


def is_foreign(source: Path) -> bool:
    """Whether `source` is a directory of sentence-transformers, or of a class that comes with transformers itself.

    Plait's own families are registered with transformers too, but are not in this table of names.
    """
    model_type = None
    if (source / "config.json").is_file():
        model_type = read_json(source / "config.json").get("model_type")
    if model_type in FAMILIES:  # sentence-transformers may have saved it, whose modules add nothing to ours
        return False
    if (source / "modules.json").is_file():
        return True
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def _transformers_pair(source: Path, dtype: torch.dtype | None) -> PairTower:
    """A model of transformers with its processor. Raises ValueError where a file of either is missing."""
    from transformers import AutoModel, AutoProcessor

    try:
        model = load_whole(AutoModel, source, dtype=dtype or "auto")
        return PairTower(model, AutoProcessor.from_pretrained(source, trust_remote_code=False))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected weights and processor files in {source}: {reason}") from error


def fingerprints(model: nn.Module) -> dict[str, str]:
    """Hashes as of `fingerprint`: of what is not a user's own under "", and of each modality that a user added.

    What a model answered before a modality was added, it answers after: an index of the one is read with the other.
    """
    part_of = getattr(model, "modality_of", None)
    added = own(getattr(model, "modalities", ())) if part_of is not None else []
    return {"": fingerprint(model, without=added)} | {name: fingerprint(model, alone=name) for name in added}


def fingerprint(model: nn.Module, *, without: Sequence[str] = (), alone: str | None = None) -> str:
    """A short hash of configuration and weights, the same for float32 and bfloat16 and on every device.

    Weights enter by name, shape and up to 128 evenly spaced elements each, rounded to bfloat16, so that a model
    of several billion parameters takes seconds. Training of any length changes it.

    Args:
        model: with or without a configuration.
        without: modalities that count as if they were never added.
        alone: a modality whose weights alone are hashed.

    Returns:
        16 hexadecimal digits.

    Example:
        >>> fingerprint(model) == fingerprint(model.to(torch.bfloat16))
        True
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    config = getattr(model, "config", None)
    part_of: Any = getattr(model, "modality_of", None) if without or alone else None
    if config is not None and alone is None:
        described = _stable(config.to_dict())
        if without:
            described["modalities"] = [m for m in described["modalities"] if m not in without]
            for ways in (described[name] for name in ("mlp_ways", "norm_ways") if name in described):
                for name in without:
                    ways.pop(name, None)
        digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if part_of is not None and (part_of(name) != alone if alone else part_of(name) in without):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, len(flat) // _SAMPLES_PER_TENSOR)][: 2 * _SAMPLES_PER_TENSOR]
        # numpy has no bfloat16, so its bits go as int16
        digest.update(picked.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _stable(config: Any) -> Any:
    """`config` without what depends on the machine, the dtype or the version that wrote it.

    Empty and false fields go too: a newer release that adds one must not make it another model.
    """
    if isinstance(config, Mapping):
        return {
            str(k): _stable(v) for k, v in config.items() if k not in _VOLATILE and not str(k).startswith("_") and v
        }
    return [_stable(v) for v in config] if isinstance(config, list | tuple) else config
