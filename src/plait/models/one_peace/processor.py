"""What goes into ONE-PEACE: texts, PIL images and waveforms -> tensors (specification 5).

texts -> input_ids, attention_mask     images -> pixel_values     audio -> input_values, audio_attention_mask
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image, fromarray
from tokenizers import normalizers
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin, SequenceFeatureExtractor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling

from plait.media.audio import load_audio
from plait.modalities import is_registered, registered
from plait.models.one_peace.config import OnePeaceConfig
from plait.nn.contract import OpensAlone, checked
from plait.nn.detection import maskness_scores, paste_masks, semantic_map
from plait.processing.images import CLIP_MEAN, CLIP_STD, pictures_in, shorter_side_and_centre_crop, square
from plait.processing.regions import Fitted, detection_labels, fit, read_objects
from plait.processing.tokenizers import MAX_TOKENS, PAD_ID, build_tokenizer, clean_caption, cut_words, encode_with
from plait.processing.waveforms import pad_waveforms, prepare_waveform


# PilBackend: the default backend of transformers needs torchvision, which Plait never requires.
@checked
class OnePeaceImageProcessor(PilBackend):
    """Square bicubic resize without regard to aspect ratio, then CLIP's mean and deviation.

    With `do_pad`, as detectors have it, images keep their shape: the longer side becomes the square's, what is left
    is padded, and a `pixel_mask` (batch, side, side) says where the image is. `OnePeaceProcessor` holds one, and
    reads its size, mean and deviation.

    Args:
        size: `{"height": side, "width": side}` in pixels, 256 by default.
        image_mean, image_std: per channel, of pixels in [0, 1].
        do_pad: see above.
        do_center_crop: bring the shorter side to the size and cut the middle out instead, as published for ImageNet.

    Source: specification ONE-PEACE, sections 5.2 and 8.4.
    """

    do_pad = False
    model_input_names = ["pixel_values"]  # noqa: RUF012 (transformers reads plain class attributes)
    size = {"height": 256, "width": 256}  # noqa: RUF012
    resample = PILImageResampling.BICUBIC
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_center_crop = False
    image_mean = list(CLIP_MEAN)  # noqa: RUF012
    image_std = list(CLIP_STD)  # noqa: RUF012

    def _preprocess(  # ty: ignore[incompatible-method-override]  (the others pass through by name)
        self, images: list[np.ndarray], do_pad: bool | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Pictures (3, height, width) as transformers hands them over; padded ones have a way of their own."""
        if not do_pad:
            return super()._preprocess(images, do_pad=False, **kwargs)
        # Size and numbers may have been given for this call alone.
        size, mean, std = kwargs["size"].height, kwargs["image_mean"], kwargs["image_std"]
        pictures = [fromarray(np.moveaxis(image, 0, -1).astype(np.uint8)) for image in images]
        return padded([fit(picture, size, mean=mean, std=std) for picture in pictures])

    def preprocess(
        self,
        images: Any,
        annotations: Any = None,
        segmentation_maps: Any = None,
        *,
        return_segmentation_masks: bool = False,
        ignore_index: int | None = 255,
        do_reduce_labels: bool = False,
        **kwargs: Any,
    ) -> BatchFeature:
        """Images, and with them what a detector or a segmenter learns, as transformers' own take it.

        Args:
            images: one or several.
            annotations: for `do_pad`: of every image a mapping of `image_id` and `annotations`, as COCO has them;
                `category_id` is the class, 0 to classes - 1.
            segmentation_maps: of every image the class of each pixel, (height, width).
            return_segmentation_masks: whether the annotations' masks are read.
            ignore_index: value of pixels of a map that are of no class.
            do_reduce_labels: 0 is of no class either, and classes count from 1.
            kwargs: of transformers.

        Returns:
            pixel_values (batch, 3, side, side) and, with `do_pad`, pixel_mask (batch, side, side). Of annotations,
            `labels`: per image class_labels (n,), boxes (n, 4) centre and sides as shares, masks (n, side, side)
            where asked for, area (n,), iscrowd (n,), image_id, orig_size and size (height, width). Of maps, per image
            `mask_labels` (classes, side, side) and `class_labels` (classes,).

        Raises:
            ValueError: for annotations or maps of another number of images, of another kind of model, and that do not
                fit their image.
        """
        if annotations is None and segmentation_maps is None:
            return super().preprocess(images, **kwargs)
        pads, size = kwargs.get("do_pad", self.do_pad), kwargs.get("size", self.size)
        side = size if isinstance(size, int) else size["height"]
        pictures = [one.convert("RGB") for one in pictures_in(images)]
        if annotations is not None:
            if not pads or segmentation_maps is not None:
                raise ValueError("expected annotations for a detector alone, whose images are padded; pass maps apart")
            given = [annotations] if isinstance(annotations, Mapping) else list(annotations)
            if len(given) != len(pictures):
                raise ValueError(f"expected annotations of {len(pictures)} images, got {len(given)}; one per image")
            rows = zip(pictures, given, strict=True)
            labels = [annotated(one, row, side, has_masks=return_segmentation_masks) for one, row in rows]
            batch = super().preprocess(pictures, **kwargs)
            batch["labels"] = labels
            return batch
        maps = segmentation_maps if isinstance(segmentation_maps, list | tuple) else [segmentation_maps]
        if pads or len(maps) != len(pictures):
            raise ValueError(f"expected maps of {len(pictures)} images for a segmenter, got {len(maps)}; one per image")
        batch = super().preprocess(pictures, **kwargs)
        none = {ignore_index, 0 if do_reduce_labels else ignore_index}
        batch["mask_labels"], batch["class_labels"] = [], []
        for picture, classes in zip(pictures, maps, strict=True):
            grid = np.asarray(classes)
            if grid.shape != (picture.height, picture.width) or grid.dtype.kind not in "iu":
                wanted = (picture.height, picture.width)
                raise ValueError(
                    f"expected a map of integers {wanted}, got {grid.dtype} {grid.shape}; one class a pixel"
                )
            squared = fromarray(grid.astype(np.int32), mode="I").resize((side, side), PILImageResampling.NEAREST)
            found = [int(c) for c in np.unique(np.asarray(squared)) if c not in none]
            masks = np.asarray(squared) == np.array(found, np.int32)[:, None, None]
            batch["mask_labels"].append(torch.from_numpy(masks.reshape(len(found), side, side)))
            batch["class_labels"].append(torch.tensor(found, dtype=torch.int64) - int(do_reduce_labels))
        return batch

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.5,
        target_sizes: Any = None,
        *,
        return_masks: bool = False,
    ) -> list[dict[str, torch.Tensor]]:
        """Objects of every image whose score is above a threshold, best first.

        Args:
            outputs: of `OnePeaceForObjectDetection`.
            threshold: of scores, which lie in [0, 1].
            target_sizes: (batch, 2) height and width of the images, for boxes in pixels; shares without them.
            return_masks: whether masks are made at the size of the images; `mask_scores` then are scores times how
                sure each mask is, by which masks are ranked.

        Returns:
            scores (n,), labels (n,), boxes (n, 4) as corners, and masks (n, height, width) bool, mask_scores (n,).

        Raises:
            ValueError: for sizes of another number of images, and masks without sizes.
        """
        if target_sizes is not None and len(target_sizes) != len(outputs.logits):
            raise ValueError(f"expected {len(outputs.logits)} target_sizes, got {len(target_sizes)}; one per picture")
        if return_masks and (target_sizes is None or outputs.pred_masks is None):
            raise ValueError("expected target_sizes and a model with masks for return_masks, got none; leave it out")
        scores, labels = outputs.logits.softmax(-1)[..., :-1].max(-1)
        centre, side = outputs.pred_boxes[..., :2], outputs.pred_boxes[..., 2:]
        corners = torch.cat([centre - side / 2, centre + side / 2], dim=-1)
        found = []
        for i in range(len(scores)):
            kept, box = scores[i] > threshold, corners[i]
            if target_sizes is not None:
                height, width = (int(length) for length in target_sizes[i])
                box = box * box.new_tensor([width, height, width, height])
            one = {"scores": scores[i][kept], "labels": labels[i][kept], "boxes": box[kept]}
            if return_masks:
                regions = outputs.pred_masks[i][kept]
                one["masks"] = paste_masks(regions, one["boxes"], (height, width))
                one["mask_scores"] = maskness_scores(one["scores"], regions)
            found.append(one)
        return found

    def post_process_semantic_segmentation(self, outputs: Any, target_sizes: Any = None) -> list[torch.Tensor]:
        """The class of every pixel, as transformers' segmenters give it.

        Args:
            outputs: of `OnePeaceForUniversalSegmentation`, for whole images; it has `segment` for windows.
            target_sizes: height and width of every image, else masks keep their size.

        Returns:
            (height, width) int64 per image.

        Raises:
            ValueError: for sizes of another number of images.
        """
        masks = outputs.masks_queries_logits
        if target_sizes is not None and len(target_sizes) != len(masks):
            raise ValueError(f"expected {len(masks)} target_sizes, got {len(target_sizes)}; one per picture")
        sizes = target_sizes if target_sizes is not None else [masks.shape[-2:]] * len(masks)
        found = []
        for i, size in enumerate(sizes):
            height, width = (int(length) for length in size)
            scores = semantic_map(outputs.class_queries_logits[i : i + 1].float(), masks[i : i + 1].float())
            scores = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
            found.append(scores[0].argmax(dim=0))
        return found


def annotated(picture: Image, row: Any, side: int, *, has_masks: bool) -> dict[str, torch.Tensor]:
    """What a detector learns of one image. row: `image_id` and `annotations`; see `OnePeaceImageProcessor.preprocess`.

    Raises ValueError for a row of another form, and what `read_objects` refuses.
    """
    if not (isinstance(row, Mapping) and isinstance(row.get("annotations"), list | tuple) and "image_id" in row):
        got = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(f"expected image_id and annotations of every image, got {got}; pass COCO's rows so")
    rows: list[dict[str, Any]] = [
        {**one, "segmentation": one.get("segmentation") if has_masks else None} for one in row["annotations"]
    ]
    numbers: dict[Any, Any] = {one.get("category_id"): one.get("category_id") for one in rows}
    objects = read_objects(rows, numbers, picture.size, f"image {row['image_id']}")
    if has_masks and rows and objects.masks is None:
        raise ValueError(f"image {row['image_id']}: expected a segmentation of every object; ask for boxes alone")
    fitted = fit(picture, side, objects)
    assert fitted.objects is not None
    single = [one for one in rows if not one.get("iscrowd")]
    areas = [float(one.get("area", one["bbox"][2] * one["bbox"][3])) for one in single]
    return {
        **detection_labels(fitted),
        "area": torch.tensor(areas),
        "iscrowd": torch.zeros(len(single), dtype=torch.int64),
        "image_id": torch.tensor([row["image_id"]]),
        "orig_size": torch.tensor([picture.height, picture.width]),
        "size": torch.tensor(fitted.size[::-1]),
    }


def padded(fitted: Sequence[Fitted]) -> BatchFeature:
    """pixel_values (batch, 3, side, side) and pixel_mask (batch, side, side) of images that were padded."""
    return BatchFeature(
        {
            "pixel_values": torch.stack([one.pixels for one in fitted]),
            "pixel_mask": torch.stack([one.mask for one in fitted]),
        }
    )


@checked
class OnePeaceFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms: normalised as a whole, cut to `max_seconds`, tiled to `min_seconds`, right-padded with zeros.

    The order matters: a long clip is normalised with what is cut off afterwards.

    Args:
        feature_size: channels, 1.
        sampling_rate: in Hz.
        padding_value: of the batch, 0.
        max_seconds, min_seconds: bounds of a clip.

    Example:
        >>> import numpy as np
        >>> extract = OnePeaceFeatureExtractor(max_seconds=2.0)
        >>> extract([np.random.rand(8000), np.random.rand(40000)])["input_values"].shape
        torch.Size([2, 32000])

    Source: specification ONE-PEACE, section 5.3.
    """

    model_input_names = ["input_values", "audio_attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        max_seconds: float = 15.0,
        min_seconds: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.max_seconds = max_seconds
        self.min_seconds = min_seconds

    def __call__(self, raw_speech: Any, sampling_rate: int | None = None, **_: Any) -> BatchFeature:
        """Waveforms to one right-padded batch.

        Args:
            raw_speech: an array (samples,) or (samples, channels), or several in a list.
            sampling_rate: of the arrays in Hz, where it is known.

        Returns:
            input_values (batch, samples) float32, and audio_attention_mask (batch, samples) bool, True =
                real: beside texts, whose mask is called attention_mask.

        Raises:
            ValueError: for another sampling rate, and an empty clip.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"expected audio at {self.sampling_rate} Hz, got {sampling_rate} Hz; resample it first")
        # An array is always one clip, two-dimensional ones too: (samples, channels). A batch is a list.
        clips = [raw_speech] if isinstance(raw_speech, np.ndarray) else list(raw_speech)
        prepared = [
            prepare_waveform(
                clip, sampling_rate=self.sampling_rate, max_duration=self.max_seconds, min_duration=self.min_seconds
            )
            for clip in clips
        ]
        values, mask = pad_waveforms(prepared)
        return BatchFeature({"input_values": values, "audio_attention_mask": mask})


@checked
class OnePeaceProcessor(OpensAlone, ProcessorMixin):
    """Tokenizer, image processor and feature extractor of one model.

    Args:
        image_processor, tokenizer, feature_extractor: of the model.

    Example:
        >>> from PIL import Image
        >>> processor = OnePeaceProcessor.from_config(OnePeaceConfig.preset("nano"))
        >>> batch = processor(images=Image.new("RGB", (64, 48)), text=["a bird", "rain on a roof"])
        >>> batch["pixel_values"].shape, len(batch["input_ids"])
        (torch.Size([1, 3, 64, 64]), 2)

    Source: specification ONE-PEACE, section 5.
    """

    def __init__(
        self,
        image_processor: OnePeaceImageProcessor,
        tokenizer: PreTrainedTokenizerFast,
        feature_extractor: OnePeaceFeatureExtractor,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, feature_extractor, **kwargs)

    @classmethod
    def from_config(cls, config: OnePeaceConfig, kept_ids: Sequence[int] | None = None) -> OnePeaceProcessor:
        """The processor of a model.

        Args:
            config: its image size, sampling rate and durations are read.
            kept_ids: the vocabulary subset it was trained with, if any.
        """
        return cls(
            OnePeaceImageProcessor(
                size={"height": config.image_size, "width": config.image_size}, do_pad=config.detection is not None
            ),
            build_tokenizer(kept_ids),
            OnePeaceFeatureExtractor(
                sampling_rate=config.sampling_rate,
                max_seconds=config.max_audio_seconds,
                min_seconds=config.min_audio_seconds,
            ),
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> OnePeaceProcessor:
        """As in transformers; beside a detector's image processor stands what its configuration says.

        Args:
            pretrained_model_name_or_path: directory or hub id.
            args, kwargs: of transformers.
        """
        kwargs.pop("trust_remote_code", None)  # nothing that a directory brings is ever run
        try:
            config = OnePeaceConfig.from_pretrained(pretrained_model_name_or_path, **kwargs, trust_remote_code=False)
        except OSError:  # a processor may lie alone
            config = None
        if config is None or config.detection is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs, trust_remote_code=False)
        processor = cls.from_config(config)
        processor.image_processor = OnePeaceImageProcessor.from_pretrained(
            pretrained_model_name_or_path, **kwargs, trust_remote_code=False
        )
        return processor

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; of a detector the image processor alone.

        transformers' pipeline takes a detector with a tokenizer for a model that reads documents.

        Args:
            save_directory: of the model.
            args, kwargs: of transformers.
        """
        if self.image_processor.do_pad:
            return self.image_processor.save_pretrained(save_directory, *args, **kwargs)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms expected, in Hz; nothing is resampled here."""
        return self.feature_extractor.sampling_rate

    @property
    def longest(self) -> dict[str, float]:
        """Seconds of an audio clip, and tokens of a text with its end token, from which on they are cut."""
        return {"audio": self.feature_extractor.max_seconds, "text": MAX_TOKENS + 1}

    @property
    def image_size(self) -> int:
        """Side of the images made, in pixels."""
        return self.image_processor.size["height"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        audio: np.ndarray | Sequence[np.ndarray] | None = None,
        *,
        videos: Any = None,
        sampling_rate: int | None = None,
        max_tokens: int = MAX_TOKENS,
        return_tensors: str = "pt",
        **others: Any,
    ) -> BatchFeature:
        """Any mixture of modalities -> a batch of each.

        Args:
            images: one PIL image or several.
            text: one or several.
            audio: one array or tensor (samples,) or (samples, channels), a path or bytes of a file, or several.
            videos: one video as a list of its frames (PIL), or several of equally many; the middle of each is cut out.
            sampling_rate: of the audio in Hz, where it is known.
            max_tokens: pieces that a text is cut to, before its end token.
            return_tensors: `pt` only.
            others: modalities that a user added, by name: a list of values, or of what the
                modality's `load` takes. `padding` and `truncation` are accepted, since both always
                happen; `max_length` is `max_tokens` with the end token.

        Returns:
            input_ids and attention_mask (batch, tokens); pixel_values (batch, 3, side, side), of videos
                (batch, frames, 3, side, side);
                input_values (batch, samples), with attention_mask where audio comes alone, else
                audio_attention_mask.

        Raises:
            ValueError: for arguments it does not know, no input at all, images beside videos, videos of other
                lengths, and audio of another sampling rate.
        """
        added = {name: values for name, values in others.items() if is_registered(name)}
        if (length := others.pop("max_length", None)) is not None:
            if length < 2:
                raise ValueError(f"expected max_length of at least 2, a piece and the end, got {length}")
            max_tokens = min(max_tokens, length - 1)
        # Texts are cut and padded as published, whoever asks: any other wish would be ignored.
        for name, kept in (("padding", (True, None, "longest")), ("truncation", (True, None, "longest_first"))):
            if (wish := others.pop(name, True)) not in kept:
                raise ValueError(f"expected {name}=True, got {wish!r}; max_tokens sets the length of texts")
        if unknown := set(others) - added.keys():
            raise ValueError(f"expected images, text, audio, got {', '.join(sorted(unknown))}")
        if return_tensors != "pt":
            raise ValueError(f"expected return_tensors='pt', got {return_tensors!r}")
        batch: dict[str, Any] = {}
        if text is not None:
            batch |= self.tokenize([text] if isinstance(text, str) else list(text), max_tokens)
        if images is not None:
            pictures = list(pictures_in(images))
            if not pictures:
                raise ValueError("expected at least one image, got none; leave images out")
            if self.image_processor.do_pad:
                processor, side = self.image_processor, self.image_size
                mean, std = processor.image_mean, processor.image_std
                batch |= padded([fit(one.convert("RGB"), side, mean=mean, std=std) for one in pictures])
            else:
                batch["pixel_values"] = torch.stack(
                    [self._pixels(one, is_cut=self.image_processor.do_center_crop) for one in pictures]
                )
        if videos is not None:
            if images is not None:
                raise ValueError("expected images or videos, got both; both are pixel_values, so pass them apart")
            batch["pixel_values"] = self._films(videos)
        if audio is not None:
            clips = self.feature_extractor(self._heard(audio), sampling_rate)
            batch["input_values"] = clips["input_values"]
            # The name that audio models of transformers have; beside text it is taken.
            batch["attention_mask" if text is None else "audio_attention_mask"] = clips["audio_attention_mask"]
        for name, values in added.items():
            modality = registered(name)
            batch[name] = dict(modality.process([modality.load(value) for value in values]))
        if not batch:
            raise ValueError("expected images, text or audio, got none")
        return BatchFeature(batch)

    def post_process_object_detection(self, *args: Any, **kwargs: Any) -> list[dict[str, torch.Tensor]]:
        """See `OnePeaceImageProcessor.post_process_object_detection`."""
        return self.image_processor.post_process_object_detection(*args, **kwargs)

    def post_process_semantic_segmentation(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """See `OnePeaceImageProcessor.post_process_semantic_segmentation`."""
        return self.image_processor.post_process_semantic_segmentation(*args, **kwargs)

    def _pixels(self, picture: Image, *, is_cut: bool) -> torch.Tensor:
        """One PIL image -> (3, side, side), normalised; other colour modes become RGB. is_cut: to its middle."""
        processor, cut = self.image_processor, shorter_side_and_centre_crop if is_cut else square
        return cut(picture.convert("RGB"), self.image_size, processor.image_mean, processor.image_std)

    def _films(self, videos: Any) -> torch.Tensor:
        """Frames of one film or of several -> (batch, frames, 3, side, side), each cut to its middle."""
        several = len(videos) and (isinstance(videos[0], list | tuple) or getattr(videos[0], "ndim", 3) == 4)
        films = [list(pictures_in(film)) for film in (videos if several else [videos])]
        if len({len(film) for film in films}) != 1 or not films[0]:
            counts = ", ".join(str(len(film)) for film in films)
            raise ValueError(f"expected films of equally many frames, got {counts}; sample as many of each")
        return torch.stack([torch.stack([self._pixels(frame, is_cut=True) for frame in film]) for film in films])

    def tokenize(self, texts: Sequence[str], max_tokens: int = MAX_TOKENS) -> dict[str, torch.Tensor]:
        """Texts to ids, lower-cased, cut and ended with EOS.

        Args:
            texts: one or more.
            max_tokens: pieces that are kept, 70 as published.

        Returns:
            input_ids and attention_mask (batch, tokens), padded on the right; the mask is bool,
                True = real.
        """
        return self._padded(encode_with(self.tokenizer.backend_tokenizer, texts, max_tokens=max_tokens))

    def captions(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Captions and questions of a data set, cleaned as the published loaders clean them; returns as `tokenize`."""
        return self.tokenize([clean_caption(text) for text in texts])

    def phrases(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Phrases to be found in an image: cleaned too, but cut to 70 words, whatever tokens those are."""
        words = [cut_words(clean_caption(text)) for text in texts]
        return self._padded(encode_with(self.tokenizer.backend_tokenizer, words, max_tokens=None))

    def choices(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Questions about audio, each with an answer: neither lower-cased nor cleaned nor cut, as published."""
        backend = copy.deepcopy(self.tokenizer.backend_tokenizer)
        backend.normalizer = normalizers.Prepend(" ")  # the one space in front of every text
        return self._padded(encode_with(backend, texts, max_tokens=None))

    def _heard(self, audio: Any) -> Any:
        """Arrays as they are, in a list unless one came alone; files decoded at the rate of the model."""
        listed = list(audio) if isinstance(audio, list | tuple) else [audio]
        files = str | Path | bytes
        heard = [load_audio(one, sampling_rate=self.sampling_rate) if isinstance(one, files) else one for one in listed]
        return [np.asarray(one) for one in heard]

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Ids to one batch and its mask."""
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), PAD_ID)
        for out, row in zip(ids, rows):
            out[: len(row)] = torch.tensor(list(row))
        # No text holds the padding id, so ids alone tell what is real.
        return {"input_ids": ids, "attention_mask": ids != PAD_ID}
