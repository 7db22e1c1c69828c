"""ONE-PEACE finds objects and regions: the dense backbones as transformers knows backbones, and the heads on them.

pixels (padded square) -> OnePeaceBackbone -> map -> plait.nn.detection.CascadeDetector -> logits, pred_boxes, masks
pixels (windows)       -> OnePeaceBackbone -> four maps -> Mask2Former -> classes and masks of queries -> class map

Sources: ONE-PEACE (arXiv 2305.11172), section 4; Mask2Former (arXiv 2112.01527); specification ONE-PEACE, 8.4 and 8.5.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput, ModelOutput

from plait.generation.asking import Asking
from plait.media.image import load_image
from plait.models.one_peace import tasks
from plait.models.one_peace.config import DetectionConfig, OnePeaceConfig, SegmentationConfig
from plait.models.one_peace.dense import AxisPositions, DetectionBackbone, SegmentationBackbone
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.models.one_peace.vision import (
    OnePeaceImageClassifier,
    OnePeaceVideoClassifier,
    OnePeaceVisionSkills,
    vision_config,
)
from plait.models.one_peace.weights import assemble, vision_key_map, vision_sizes
from plait.nn.contract import outputs_for_transformers
from plait.nn.detection import CascadeDetector, CascadeSizes, Found, Truth, semantic_map
from plait.nn.positions import image_table_rows
from plait.objectives.masks import mask_set_losses
from plait.processing.images import resize, to_tensor
from plait.types import Capability
from plait.weights.files import Checkpoint, load_strict
from plait.weights.keymap import KeyMap, Rename, Rule, Split, prefixed


class OnePeaceDensePreTrainedModel(OnePeacePreTrainedModel):
    """Initialisation of backbones for dense prediction and of what stands on them."""

    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        """As in the other models; positions per axis begin at 0, what was marked keeps its start."""
        if isinstance(module, AxisPositions):
            init.zeros_(module.height)
            init.zeros_(module.width)
        elif isinstance(module, DetectionBackbone):
            self._draw(module.position_embedding)
            init.zeros_(module.bias_table)
        elif getattr(module, "keeps_start", False):
            return  # drawn where it was built, as its paper says
        else:
            super()._init_weights(module)


def keeping_start(module: nn.Module) -> nn.Module:
    """The module, marked so that what its constructor drew stays; encoders inside of it are drawn as others are."""
    for name, part in module.named_modules():
        if "vision." not in f"{name}.":
            cast("Any", part).keeps_start = True
    return module


class OnePeaceBackbone(OnePeaceDensePreTrainedModel):
    """Images -> maps, behind `transformers.AutoBackbone`.

    Args:
        config: with `detection` or `segmentation`.
        out_features, out_indices: which of `stage_names` are given, those of the configuration without them.

    Raises:
        ValueError: for a stage that there is not, names beside other numbers, and a configuration of no dense model.

    Example:
        >>> import torch
        >>> sizes = DetectionConfig(window=2)
        >>> config = OnePeaceConfig.preset("nano", modalities=["image"], detection=sizes)
        >>> backbone = OnePeaceBackbone(config)
        >>> backbone(torch.rand(1, 3, 64, 64)).feature_maps[0].shape, backbone.channels
        (torch.Size([1, 128, 4, 4]), [128])
    """

    def __init__(
        self,
        config: OnePeaceConfig,
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
    ) -> None:
        if out_features is not None or out_indices is not None:
            config = copy.deepcopy(config)  # the caller's stays as it is
            config.out_features, config.out_indices = out_features, out_indices
        super().__init__(config)
        self.net: DetectionBackbone | SegmentationBackbone
        if config.segmentation is not None:
            self.net = SegmentationBackbone(config, config.segmentation_sizes)
            keeping_start(self.net)
        else:
            sizes = config.detection_sizes
            layers = range(config.num_layers)
            # As published, every fourth layer sees the whole picture: 3, 7, ... of the 40.
            windowed = sizes.windowed if sizes.windowed is not None else [i for i in layers if i % 4 != 3]
            self.net = DetectionBackbone(
                config,
                window=sizes.window,
                windowed=windowed,
                axis_positions=sizes.axis_positions,
                table_width=sizes.table_width,
            )
        self.stage_names, count = config.stage_names, len(config.stage_names)
        numbers = range(count) if config.out_indices is None else config.out_indices
        if wrong := [i for i in numbers if not -count <= i < count]:
            raise ValueError(f"expected out_indices from {-count} to {count - 1}, got {', '.join(map(str, wrong))}")
        named = [self.stage_names[i] for i in numbers]
        wanted = named if config.out_features is None else list(config.out_features)
        if unknown := [name for name in wanted if name not in self.stage_names]:
            raise ValueError(f"expected out_features among {', '.join(self.stage_names)}, got {', '.join(unknown)}")
        if config.out_indices is not None and wanted != named:
            raise ValueError(f"expected out_features and out_indices of the same maps, got {wanted} and {named}")
        self.out_features = wanted
        self.post_init()

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the maps that are given."""
        return [self.stage_names.index(name) for name in self.out_features]

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Width of every map that there is."""
        return dict.fromkeys(self.stage_names, self.config.dim)

    @property
    def channels(self) -> list[int]:
        """Width of every map that is given."""
        return [self.config.dim] * len(self.out_features)

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> BackboneOutput:
        """`forward`, under the name by which heads of transformers (UperNet and others) call any backbone."""
        return self(*args, **kwargs)

    @outputs_for_transformers
    def forward(self, pixel_values: Tensor) -> BackboneOutput:
        """Maps of images.

        Args:
            pixel_values: (batch, 3, side, side) with side = `config.image_size`.

        Returns:
            feature_maps: (batch, dim, ...) of `out_features`; the detector's is at stride 16, the segmenter's are at
                4, 8, 16 and 32.

        Raises:
            ValueError: for images of another size.
        """
        found = self.net(pixel_values.to(next(self.parameters()).dtype))
        maps = dict(zip(self.stage_names, [found] if isinstance(found, Tensor) else found, strict=True))
        return BackboneOutput(feature_maps=cast("Any", tuple(maps[name] for name in self.out_features)))


@dataclass
class OnePeaceDetections(ModelOutput):
    """What a detector finds, best first; rows that hold nothing have all their probability on "no object".

    loss: sum of `loss_dict`, where labels are given.
    logits: (batch, kept, classes + 1) logarithms of probabilities, the last of "no object".
    pred_boxes: (batch, kept, 4) centre and sides as shares of the image without its padding.
    pred_masks: (batch, kept, side, side) probabilities inside of each box, for its class.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None


class OnePeaceForObjectDetection(OnePeaceDensePreTrainedModel):
    """Boxes, classes and masks of the objects in images: Cascade Mask R-CNN on the windowed backbone.

    Args:
        config: with `detection` and `num_classes`, which is without "no object".

    Raises:
        ValueError: without classes, and for a configuration of no detector.

    Example:
        >>> import torch
        >>> sizes = DetectionConfig(window=2, channels=16, head_dim=32, num_convs=1)
        >>> config = OnePeaceConfig.preset("nano", modalities=["image"], detection=sizes, num_classes=3)
        >>> outputs = OnePeaceForObjectDetection(config).eval()(pixel_values=torch.rand(1, 3, 64, 64))
        >>> outputs.logits.shape[-1], outputs.pred_boxes.shape[-1]
        (4, 4)

    Source: ONE-PEACE (arXiv 2305.11172), section 4; specification ONE-PEACE, 8.4.
    """

    def __init__(self, config: OnePeaceConfig) -> None:
        super().__init__(config)
        if not config.num_classes:
            raise ValueError("expected config.num_classes for a detector, got 0; name its classes in id2label")
        detection = config.detection_sizes
        self.model = OnePeaceBackbone(config, config.stage_names)
        sizes = CascadeSizes(**{one.name: getattr(detection, one.name) for one in fields(CascadeSizes)})
        self.detector = CascadeDetector(config.dim, config.num_classes, sizes)
        self.post_init()

    @classmethod
    def from_encoder(
        cls, encoder: OnePeaceModel, labels: Sequence[str], image_size: int, **sizes: Any
    ) -> OnePeaceForObjectDetection:
        """A detector on the image branch of a pretrained model; pyramid, heads and positions per axis are fresh.

        Args:
            encoder: with an image branch.
            labels: names of the classes.
            image_size: of its images, in pixels, a multiple of 16.
            sizes: fields of `DetectionConfig`; a window is as wide as the grid that the encoder was trained for.

        Raises:
            ValueError: for a size that is no multiple of 16, and an encoder without images.
        """
        if image_size % 16 or "image" not in encoder.modalities:
            raise ValueError(f"expected an image branch and a multiple of 16 pixels, got {image_size}; choose another")
        width = encoder.config.image_rel_bucket_size
        detection = DetectionConfig(**cast("dict[str, Any]", {"window": width, "table_width": width, **sizes}))
        kept = {"modalities": ["image"], "decoder": None, "norm_ways": {}, "use_projections": False}
        config = OnePeaceConfig.from_dict(encoder.config.to_dict() | kept)
        config.detection, config.image_rel_bucket_size = vars(detection), image_size // 16
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        model = cls(config)
        net, rules = model.model.net, vision_key_map()
        assert isinstance(net, DetectionBackbone)
        # By way of the official names, in which the branch and the backbone have their rules already.
        own = OnePeaceModel(OnePeaceConfig.from_dict(config.to_dict())).state_dict()
        branch = {key: value for key, value in encoder.state_dict().items() if key in own}
        if image_table_rows(detection.table_width) != len(branch["adapters.image.bias.tables.0"]):
            raise ValueError(f"expected table_width {width} of the encoder, got {detection.table_width}; leave it out")
        official = {f"backbone.net.{key}": value for key, value in rules.backward(branch).items()}
        official.pop("backbone.net.image_adapter.cls_embedding")  # the detector has no CLS
        table = official.pop("backbone.net.image_adapter.rel_pos_table_list.0.weight", None)
        if table is not None:
            official["backbone.net.image_adapter.rel_pos_table.weight"] = table
        state, _ = net.key_map().forward(official)
        fresh = {key: value for key, value in net.state_dict().items() if key.startswith("axes.")}
        load_strict(net, {**state, **fresh})
        return model

    @outputs_for_transformers
    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> OnePeaceDetections:
        """Objects of images, and the losses where labels are given; in training the losses alone.

        Args:
            pixel_values: (batch, 3, side, side), padded at the right and the lower edge.
            pixel_mask: (batch, side, side), 1 = image; all without it.
            labels: per image class_labels (n,), boxes (n, 4) centre and sides as shares of the image, and masks
                (n, side, side).

        Raises:
            ValueError: for labels of another number of images, unknown classes, boxes outside, and masks of
                another size.
        """
        height, width = pixel_values.shape[-2:]
        if pixel_mask is None:
            pictures = torch.tensor([[width, height]] * len(pixel_values), device=pixel_values.device)
        else:
            rows, columns = pixel_mask.any(dim=2).sum(dim=1), pixel_mask.any(dim=1).sum(dim=1)
            pictures = torch.stack([columns, rows], dim=1)
        truths = None if labels is None else self._truths(labels, pictures, (height, width))
        (features,) = self.model(pixel_values).feature_maps
        finds = truths is None or not self.training
        found, losses = self.detector(features, pictures, truths, find=finds)
        out = OnePeaceDetections()
        if truths is not None:
            out["loss"], out["loss_dict"] = torch.stack(list(losses.values())).sum(), losses
        if finds:
            self._fill(out, found, pictures)
        return out

    def _truths(self, labels: Sequence[Mapping[str, Tensor]], pictures: Tensor, size: tuple[int, int]) -> list[Truth]:
        """Labels as boxes in pixels, checked. size: height and width of the padded pictures."""
        if len(labels) != len(pictures):
            raise ValueError(f"expected labels of {len(pictures)} pictures, got {len(labels)}; give each its own")
        truths = []
        for number, (one, picture) in enumerate(zip(labels, pictures, strict=True)):
            boxes, classes, masks = one["boxes"].float(), one["class_labels"], one.get("masks")
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.config.num_classes:
                most, got = self.config.num_classes - 1, classes.tolist()
                raise ValueError(f"labels {number}: expected classes 0 to {most}, got {got}; map ids to classes")
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
            # A little tolerance for rounding; centre and sides as shares of the picture, never pixels.
            if len(boxes) and not (corners.min() > -0.01 and corners.max() < 1.01 and boxes[:, 2:].min() > 0):
                raise ValueError(
                    f"labels {number}: expected boxes inside of the picture as shares, got {boxes.tolist()}"
                )
            if masks is not None and tuple(masks.shape) != (len(boxes), *size):
                wanted = (len(boxes), *size)
                raise ValueError(f"labels {number}: expected masks {wanted}, got {tuple(masks.shape)}; pad them alike")
            truths.append(Truth(corners.clamp(0, 1) * picture.repeat(2), classes, masks))
        return truths

    def _fill(self, out: OnePeaceDetections, found: Sequence[Found], pictures: Tensor) -> None:
        """Rows of all pictures, filled up to one number, in the form that transformers' post-processing reads."""
        kept, classes = self.detector.sizes.kept, self.config.num_classes
        device = pictures.device
        shares = torch.zeros(len(found), kept, classes + 1, device=device)
        boxes = torch.zeros(len(found), kept, 4, device=device)
        side = 2 * self.detector.sizes.mask_bins
        masks = torch.zeros(len(found), kept, side, side, device=device)
        for i, (one, picture) in enumerate(zip(found, pictures, strict=True)):
            rows = torch.arange(len(one.scores), device=device)
            shares[i, rows, one.classes] = one.scores
            size = one.boxes[:, 2:] - one.boxes[:, :2]
            boxes[i, rows] = torch.cat([one.boxes[:, :2] + size / 2, size], dim=1) / picture.repeat(2)
            if one.masks is not None:
                masks[i, rows] = one.masks
        shares[..., -1] = 1 - shares.sum(dim=-1)
        # The softmax of these logarithms gives the shares back: no post-processing of transformers needs to know.
        out["logits"], out["pred_boxes"] = shares.clamp_min(torch.finfo(shares.dtype).tiny).log(), boxes
        if self.detector.mask_head is not None:
            out["pred_masks"] = masks


@dataclass
class OnePeaceMasks(ModelOutput):
    """What a segmenter says, in the words of transformers' universal segmenters.

    loss: sum of `loss_dict`, where labels are given.
    class_queries_logits: (batch, queries, classes + 1), the last for "no object".
    masks_queries_logits: (batch, queries, side / 4, side / 4).
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None


class OnePeaceForUniversalSegmentation(OnePeaceDensePreTrainedModel):
    """Classes and masks of the regions of images: Mask2Former's head on the backbone with ViT-Adapter.

    The head's decoders are transformers' own.

    Args:
        config: with `segmentation` and `num_classes`.

    Raises:
        ValueError: without classes, and for a configuration of no segmenter.

    Source: Mask2Former (arXiv 2112.01527); specification ONE-PEACE, 8.5.
    """

    def __init__(self, config: OnePeaceConfig) -> None:
        from transformers import Mask2FormerConfig
        from transformers.models.mask2former.modeling_mask2former import (
            Mask2FormerPixelDecoder,
            Mask2FormerTransformerModule,
        )

        super().__init__(config)
        if not config.num_classes:
            raise ValueError("expected config.num_classes for a segmenter, got 0; name its classes in id2label")
        sizes = config.segmentation_sizes
        self.model = OnePeaceBackbone(config, config.stage_names)
        width = sizes.head_dim
        head = Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            num_attention_heads=sizes.head_heads,
            encoder_feedforward_dim=sizes.head_mlp_dim,
            dim_feedforward=sizes.head_mlp_dim,
            encoder_layers=sizes.pixel_layers,
            decoder_layers=sizes.query_layers + 1,  # it counts the prediction before the first layer
            num_queries=sizes.num_queries,
        )
        self.pixel_decoder = keeping_start(Mask2FormerPixelDecoder(head, [config.dim] * 4))
        self.transformer = keeping_start(Mask2FormerTransformerModule(width, head))
        self.class_predictor = keeping_start(nn.Linear(width, config.num_classes + 1))
        # The only tensor that its constructor leaves as memory was found.
        nn.init.normal_(cast("Tensor", self.pixel_decoder.level_embed))
        self.post_init()

    @classmethod
    def from_encoder(
        cls, encoder: OnePeaceModel, labels: Sequence[str], **sizes: Any
    ) -> OnePeaceForUniversalSegmentation:
        """A segmenter on the image branch of a pretrained model; adapter and head are fresh.

        Args:
            encoder: with an image branch, of the images' size (`image_rel_bucket_size` of `plait.load` enlarges).
            labels: names of the classes.
            sizes: fields of `SegmentationConfig`; four equal groups of layers without `groups`.

        Raises:
            ValueError: for an encoder without images, with an odd number of patches a side, or too few layers.
        """
        layers, side = encoder.config.num_layers, encoder.config.image_rel_bucket_size
        if "image" not in encoder.modalities or side % 2 or layers < 4:
            raise ValueError(
                f"expected an image branch of 4 layers and an even number of patches a side, got {layers} and {side}; "
                "choose another size"
            )
        bounds = [round(layers * i / 4) for i in range(5)]
        groups = [[bounds[i], bounds[i + 1] - 1] for i in range(4)]
        kept = {"modalities": ["image"], "decoder": None, "norm_ways": {}, "use_projections": False}
        config = OnePeaceConfig.from_dict(encoder.config.to_dict() | kept)
        config.segmentation = vars(SegmentationConfig(**cast("dict[str, Any]", {"groups": groups, **sizes})))
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
        model = cls(config)
        net = model.model.net
        assert isinstance(net, SegmentationBackbone)
        own = net.vision.state_dict()
        load_strict(net.vision, {key: value for key, value in encoder.state_dict().items() if key in own})
        return model

    @outputs_for_transformers
    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: Sequence[Tensor] | None = None,
        class_labels: Sequence[Tensor] | None = None,
    ) -> OnePeaceMasks:
        """Classes and masks of all queries, and the losses of all layers where labels are given.

        Args:
            pixel_values: (batch, 3, side, side) with side = `config.image_size`.
            mask_labels: per image (regions, side, side), of any number.
            class_labels: per image (regions,).

        Raises:
            ValueError: for images of another size, one sort of labels without the other, unknown classes, and masks
                of another size.
        """
        decoded = self.pixel_decoder(list(self.model(pixel_values).feature_maps))
        found = self.transformer(decoded.multi_scale_features, decoded.mask_features)
        classes = [self.class_predictor(hidden.transpose(0, 1)) for hidden in found.intermediate_hidden_states]
        masks = found.masks_queries_logits
        out = OnePeaceMasks(class_queries_logits=classes[-1], masks_queries_logits=masks[-1])
        if (mask_labels is None) != (class_labels is None):
            raise ValueError("expected mask_labels and class_labels together, got one of them; give both")
        if mask_labels is not None and class_labels is not None:
            self._check(mask_labels, class_labels, pixel_values)
            points = self.config.segmentation_sizes.num_loss_points
            of_layers = [
                mask_set_losses(c, m, class_labels, mask_labels, points=points)
                for c, m in zip(classes, masks, strict=True)
            ]
            out["loss_dict"] = {name: torch.stack([one[name] for one in of_layers]).sum() for name in of_layers[0]}
            out["loss"] = torch.stack(list(out["loss_dict"].values())).sum()
        return out

    def _check(self, masks: Sequence[Tensor], classes: Sequence[Tensor], pixel_values: Tensor) -> None:
        """Refuse labels that do not fit. Raises ValueError, naming the picture."""
        if not len(masks) == len(classes) == len(pixel_values):
            raise ValueError(f"expected labels of {len(pixel_values)} pictures, got {len(masks)} and {len(classes)}")
        for i, (shapes, own) in enumerate(zip(masks, classes, strict=True)):
            if len(own) and not 0 <= int(own.min()) <= int(own.max()) < self.config.num_classes:
                most = self.config.num_classes - 1
                raise ValueError(f"labels {i}: expected classes 0 to {most}, got {own.tolist()}; map ids to classes")
            wanted = (len(own), *pixel_values.shape[-2:])
            if tuple(shapes.shape) != wanted:
                raise ValueError(f"labels {i}: expected masks {wanted}, got {tuple(shapes.shape)}; make them alike")

    def segment(
        self, pixel_values: Tensor, *, stride: int | None = None, scales: Sequence[float] = (1.0,), flip: bool = False
    ) -> Tensor:
        """Scores of every class at every pixel of one image, by windows that overlap, at one or several scales.

        Args:
            pixel_values: (3, height, width) of any size, normalised; published: the shorter side is the window's.
            stride: between windows in pixels, four sevenths of a window (512 of 896 published) without it.
            scales: of the image; published with several: 384 to 1152 of 896.
            flip: whether mirrored images are looked at as well, as published with several scales.

        Returns:
            (classes, height, width), the mean of all looks.
        """
        side = self.config.image_size
        stride = stride or max(16, round(side * 4 / 7))
        size = pixel_values.shape[-2:]
        total = torch.zeros((), device=pixel_values.device)
        looks = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
        for scale, mirrored in looks:
            picture = pixel_values[None]
            if scale != 1:
                wanted = tuple(max(1, round(length * scale)) for length in size)
                picture = F.interpolate(picture, size=wanted, mode="bilinear", align_corners=False)
            scores = self._windows(picture.flip(-1) if mirrored else picture, side, stride)
            scores = scores.flip(-1) if mirrored else scores
            total = total + F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)[0]
        return total / len(looks)

    def _windows(self, picture: Tensor, side: int, stride: int) -> Tensor:
        """Scores (1, classes, height, width): each pixel's mean over the windows that see it.

        picture: (1, 3, height, width); a side shorter than a window is padded with zeros behind the normalisation.
        """
        height, width = picture.shape[-2:]
        padded = F.pad(picture, (0, max(0, side - width), 0, max(0, side - height)))
        total = padded.new_zeros(1, self.config.num_classes, *padded.shape[-2:], dtype=torch.float32)
        count = padded.new_zeros(1, 1, *padded.shape[-2:], dtype=torch.float32)
        # The last window of a row or column is moved inside, as released, instead of being cut.
        starts = [
            sorted({min(start, length - side) for start in range(0, max(length - side, 0) + stride, stride)})
            for length in padded.shape[-2:]
        ]
        for top in starts[0]:
            for left in starts[1]:
                out = self(pixel_values=padded[..., top : top + side, left : left + side])
                masks = F.interpolate(
                    out.masks_queries_logits.float(), size=(side, side), mode="bilinear", align_corners=False
                )
                area = (..., slice(top, top + side), slice(left, left + side))
                total[area] += semantic_map(out.class_queries_logits.float(), masks)
                count[area] += 1
        return (total / count)[..., :height, :width]

    def key_map(self) -> KeyMap:
        """Rules between the official segmenter and this model; names of its head as the toolkit builds them.

        Those of the head are inferred from the toolkit (specification ONE-PEACE, 8.5), not read off a file.
        """
        net = self.model.net
        assert isinstance(net, SegmentationBackbone)
        both, layer = "{p:weight|bias}", "encoder.layers.{i}."
        pixel = [
            Rename(f"input_convs.{{i}}.conv.{both}", "input_projections.{i}.0.{p}"),
            Rename(f"input_convs.{{i}}.gn.{both}", "input_projections.{i}.1.{p}"),
            *(
                Rename(f"{layer}attentions.0.{name}.{both}", f"{layer}self_attn.{name}.{{p}}")
                for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
            ),
            Rename(f"{layer}ffns.0.layers.0.0.{both}", f"{layer}fc1.{{p}}"),
            Rename(f"{layer}ffns.0.layers.1.{both}", f"{layer}fc2.{{p}}"),
            Rename(f"{layer}norms.0.{both}", f"{layer}self_attn_layer_norm.{{p}}"),
            Rename(f"{layer}norms.1.{both}", f"{layer}final_layer_norm.{{p}}"),
            Rename("level_encoding.weight", "level_embed"),
            Rename("lateral_convs.0.conv.weight", "adapter_1.0.weight"),
            Rename(f"lateral_convs.0.gn.{both}", "adapter_1.1.{p}"),
            Rename("output_convs.0.conv.weight", "layer_1.0.weight"),
            Rename(f"output_convs.0.gn.{both}", "layer_1.1.{p}"),
            Rename(f"mask_feature.{both}", "mask_projection.{p}"),
        ]
        old, new = "transformer_decoder.layers.{i}.", "transformer.decoder.layers.{i}."
        parts = tuple(f"{new}self_attn.{name}_proj.{{p}}" for name in ("q", "k", "v"))
        query: list[Rule] = [
            Rename(f"{old}attentions.0.attn.in_proj_{both}", f"{new}cross_attn.in_proj_{{p}}"),
            Rename(f"{old}attentions.0.attn.out_proj.{both}", f"{new}cross_attn.out_proj.{{p}}"),
            Split(f"{old}attentions.1.attn.in_proj_{both}", parts),
            Rename(f"{old}attentions.1.attn.out_proj.{both}", f"{new}self_attn.out_proj.{{p}}"),
            Rename(f"{old}ffns.0.layers.0.0.{both}", f"{new}fc1.{{p}}"),
            Rename(f"{old}ffns.0.layers.1.{both}", f"{new}fc2.{{p}}"),
            Rename(f"{old}norms.0.{both}", f"{new}cross_attn_layer_norm.{{p}}"),
            Rename(f"{old}norms.1.{both}", f"{new}self_attn_layer_norm.{{p}}"),
            Rename(f"{old}norms.2.{both}", f"{new}final_layer_norm.{{p}}"),
            Rename(f"transformer_decoder.post_norm.{both}", "transformer.decoder.layernorm.{p}"),
            Rename("query_embed.weight", "transformer.queries_embedder.weight"),
            Rename("query_feat.weight", "transformer.queries_features.weight"),
            Rename("level_embed.weight", "transformer.level_embed.weight"),
            Rename(f"cls_embed.{both}", "class_predictor.{p}"),
            *(
                Rename(f"mask_embed.{2 * i}.{both}", f"transformer.decoder.mask_predictor.mask_embedder.{i}.0.{{p}}")
                for i in range(3)
            ),
        ]
        head = [*prefixed(pixel, official="pixel_decoder.", native="pixel_decoder."), *query]
        return KeyMap([*prefixed(net.key_map().rules, native="model.net."), *prefixed(head, official="decode_head.")])


def _classifier(
    checkpoint: Checkpoint, dtype: torch.dtype | None, device: str | torch.device, **changes: Any
) -> OnePeacePreTrainedModel:
    """A classifier of pictures or of videos from a file without settings, whose tensors tell all sizes."""
    kind: Any = OnePeaceImageClassifier if "head.weight" in checkpoint.state else OnePeaceVideoClassifier
    state, _ = kind.key_map().forward(checkpoint.state)
    sizes: dict[str, Any] = {"num_classes": state["head.weight"].shape[0], **changes}
    if kind is OnePeaceVideoClassifier:
        sizes["num_frames"] = state["time_embedding"].shape[1]
    elif "norm.weight" not in state:
        sizes["norm_ways"] = {"image": ["image"]}  # CLS behind the final norm, in the place of a mean
    return assemble(vision_sizes(state, "vision.", **sizes), kind, state, dtype, device)


def from_official_vision(
    checkpoint: Checkpoint,
    *,
    official_config: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **changes: Any,
) -> OnePeacePreTrainedModel:
    """A model of one of the four vision files: images, videos, or the backbone of detection or segmentation.

    A file of the detector gives its backbone: names of its heads are not published (specification 8.4). One of the
    segmenter gives the whole where its head is in the file, at the published sizes.

    Args:
        checkpoint: the file.
        official_config: fields of the released vision model, where the file has none.
        dtype, device: of the model.
        changes: fields of `OnePeaceConfig`.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: without a configuration, for unknown fields, and keys that do not fit.
    """
    given = official_config or checkpoint.config
    if given is None and ("head.weight" in checkpoint.state or "cls_head.fc_cls.weight" in checkpoint.state):
        return _classifier(checkpoint, dtype, device, **changes)
    if given is None:
        raise ValueError("expected the settings of a vision model beside its file, got none; pass official_config=")
    state: Mapping[str, Tensor] = checkpoint.state
    config, keys = vision_config(given, **changes), list(state)
    model: OnePeacePreTrainedModel
    if any(key.startswith("backbone.net.") for key in keys):
        table = given.get("effective_adapter_pretrain_bucket_size", 16)
        config.detection = {
            "window": given["window_size"],
            "windowed": list(given["window_block_indexes"]),
            "axis_positions": given.get("use_decomposed_rel_pos", True),
            "table_width": table,
        }
        model = OnePeaceBackbone(config)
        assert isinstance(model.net, DetectionBackbone)
        state = {key: state[key] for key in keys if key.startswith("backbone.net.")}
        load_strict(model.net, model.net.key_map().forward(state)[0], dtype=dtype)
    elif any(key.startswith("backbone.spm.") for key in keys):
        names = {"conv_inplane": "stem_channels", "n_points": "num_points", "deform_num_heads": "num_heads",
                 "deform_ratio": "value_ratio", "cffn_ratio": "mlp_ratio", "interaction_indexes": "groups"}  # fmt: skip
        config.segmentation = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
        if "decode_head.cls_embed.weight" in state:
            config.num_classes = len(state["decode_head.cls_embed.weight"]) - 1
            model = OnePeaceForUniversalSegmentation(config)
            load_strict(model, model.key_map().forward(state)[0], dtype=dtype)
        else:
            model = OnePeaceBackbone(config)
            assert isinstance(model.net, SegmentationBackbone)
            load_strict(model.net, model.net.key_map().forward(state)[0], dtype=dtype)
    else:
        is_video = any(".T_Adapter." in key for key in keys)
        model = (
            OnePeaceVideoClassifier(
                config, num_frames=given["num_frames"], adapter_scale=given.get("adapter_scale", 0.5)
            )
            if is_video
            else OnePeaceImageClassifier(config, mean=given.get("global_pool", True))
        )
        load_strict(model, model.key_map().forward(state)[0], dtype=dtype)
    return model.to(device).eval()


class OnePeaceRegionSkills(Asking):
    """See `plait.types.Skills`: what a detector does for an `Assistant`."""

    capabilities: tuple[Capability, ...] = ("detect",)

    def __init__(self, model: Any, processor: OnePeaceProcessor) -> None:
        self.model, self.processor = model, processor
        self.tasks, self.kinds, self.num_frames = frozenset({"detect"}), frozenset({"image"}), 1
        self.labels = tuple(model.config.id2label[i] for i in sorted(model.config.id2label))

    def prepare(self, kind: str, value: Any) -> Any:
        """An image -> its tensors and its height and width."""
        picture = load_image(value)
        return self.processor(images=[picture]), (picture.height, picture.width)

    def check_text(self, text: str) -> None:
        """No text is read."""

    def detect(self, prepared: Sequence[Any], threshold: float) -> list[dict[str, Any]]:
        """scores, labels, boxes in pixels and masks of every image, best first."""
        inputs = {
            name: torch.cat([one[name] for one, _ in prepared]).to(self.model.device)
            for name in ("pixel_values", "pixel_mask")
        }
        outputs, sizes = self.model(**inputs), [size for _, size in prepared]
        has_masks = outputs.pred_masks is not None
        found = self.processor.post_process_object_detection(outputs, threshold, sizes, return_masks=has_masks)
        return [{name: value.cpu() for name, value in one.items()} for one in found]


SCALES = tuple(side / 896 for side in range(384, 1153, 128))
"""At which a picture is looked at, mirrored as well, where several scales are asked for (specification 8.5)."""


class OnePeaceMaskSkills(Asking):
    """See `plait.types.Skills`: what a segmenter does for an `Assistant`."""

    capabilities: tuple[Capability, ...] = ("segment",)

    def __init__(self, model: Any, processor: OnePeaceProcessor) -> None:
        self.model, self.processor = model, processor
        self.tasks, self.kinds, self.num_frames = frozenset({"segment"}), frozenset({"image"}), 1
        self.labels = tuple(model.config.id2label[i] for i in sorted(model.config.id2label))

    def prepare(self, kind: str, value: Any) -> Any:
        """An image -> (3, height, width) whose shorter side is a window's, as published, and its own size."""
        picture, side = load_image(value).convert("RGB"), self.processor.image_size
        ratio = side / min(picture.size)
        width, height = (max(side, round(length * ratio)) for length in picture.size)
        image = self.processor.image_processor
        mean, std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
        return (to_tensor(resize(picture, width, height)) - mean) / std, (picture.height, picture.width)

    def check_text(self, text: str) -> None:
        """No text is read."""

    def segment(self, prepared: Sequence[Any], multi_scale: bool = False) -> list[Tensor]:
        """The class of every pixel of every image, (height, width) int64 on the host, at one scale or at `SCALES`."""
        looks: dict[str, Any] = {"scales": SCALES, "flip": True} if multi_scale else {}
        found = []
        for pixels, size in prepared:  # one by one: windows of one picture are a batch's work already
            scores = self.model.segment(pixels.to(self.model.device), **looks)
            scores = F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
            found.append(scores.argmax(dim=0).cpu())
        return found


def skills(model: Any, processor: OnePeaceProcessor) -> Any:
    """The skills of a model of this family, by its class: of those that detect, segment or classify, or of `tasks`."""
    if isinstance(model, OnePeaceForUniversalSegmentation):
        return OnePeaceMaskSkills(model, processor)
    if isinstance(model, OnePeaceImageClassifier | OnePeaceVideoClassifier):
        return OnePeaceVisionSkills(model, processor)
    return (OnePeaceRegionSkills if isinstance(model, OnePeaceForObjectDetection) else tasks.skills)(model, processor)
