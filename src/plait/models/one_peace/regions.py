"""ONE-PEACE finds objects: the dense backbones as transformers knows backbones, and the detector on one of them.

pixels (padded square) -> OnePeaceBackbone -> maps -> plait.nn.detection.CascadeDetector -> logits, pred_boxes, masks

Sources: ONE-PEACE (arXiv 2305.11172), section 4; specification ONE-PEACE, 8.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BackboneOutput, ModelOutput

from plait.generation.asking import Asking
from plait.models.one_peace import tasks
from plait.models.one_peace.config import DetectionConfig, OnePeaceConfig
from plait.models.one_peace.dense import AxisPositions, DetectionBackbone
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.models.one_peace.weights import vision_key_map
from plait.nn.contract import outputs_for_transformers
from plait.nn.detection import CascadeDetector, CascadeSizes, Found, Truth
from plait.nn.positions import image_table_rows
from plait.types import Capability
from plait.weights.files import load_strict


class OnePeaceDensePreTrainedModel(OnePeacePreTrainedModel):
    """Initialisation of backbones for dense prediction and of what stands on them."""

    main_input_name = "pixel_values"

    def _init_weights(self, module: nn.Module) -> None:
        """As in the other models; positions per axis begin at 0, layers of heads at the deviation they name."""
        if isinstance(module, AxisPositions):
            init.zeros_(module.height)
            init.zeros_(module.width)
        elif (std := getattr(module, "fresh_std", None)) is not None:
            init.normal_(cast("Tensor", module.weight), std=std)
            init.zeros_(cast("Tensor", module.bias))
        elif isinstance(module, DetectionBackbone):
            self._draw(module.position_embedding)
            init.zeros_(module.bias_table)
        else:
            super()._init_weights(module)


class OnePeaceBackbone(OnePeaceDensePreTrainedModel):
    """Images -> maps, behind `transformers.AutoBackbone`.

    Args:
        config: with `detection`.
        out_features, out_indices: which of `stage_names` are given, all without them.

    Raises:
        ValueError: for a stage that there is not, and a configuration of no dense model.

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
        super().__init__(config)
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
        self.stage_names = ["stage1"]
        wanted = out_features or [self.stage_names[i] for i in out_indices or range(len(self.stage_names))]
        if unknown := [name for name in wanted if name not in self.stage_names]:
            raise ValueError(f"expected out_features among {', '.join(self.stage_names)}, got {', '.join(unknown)}")
        self.out_features = list(wanted)
        self.post_init()

    @property
    def channels(self) -> list[int]:
        """Width of every map that is given."""
        return [self.config.dim] * len(self.out_features)

    @outputs_for_transformers
    def forward(self, pixel_values: Tensor) -> BackboneOutput:
        """Maps of pictures.

        Args:
            pixel_values: (batch, 3, side, side) with side = `config.image_size`.

        Returns:
            feature_maps: (batch, dim, ...) of `out_features`; the detector's is at stride 16.

        Raises:
            ValueError: for images of another size.
        """
        maps = {"stage1": self.net(pixel_values.to(self.net.position_embedding.dtype))}
        return BackboneOutput(feature_maps=cast("Any", tuple(maps[name] for name in self.out_features)))


@dataclass
class OnePeaceDetections(ModelOutput):
    """What a detector finds, best first; rows that hold nothing have all their probability on "no object".

    loss: sum of `loss_dict`, where labels are given.
    logits: (batch, kept, classes + 1) logarithms of probabilities, the last of "no object".
    pred_boxes: (batch, kept, 4) centre and sides as shares of the picture without its padding.
    pred_masks: (batch, kept, side, side) probabilities inside of each box, for its class.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    pred_masks: Tensor | None = None


class OnePeaceForObjectDetection(OnePeaceDensePreTrainedModel):
    """Boxes, classes and masks of the objects in pictures: Cascade Mask R-CNN on the windowed backbone.

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
        self.model = OnePeaceBackbone(config)
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
            image_size: of its pictures, in pixels, a multiple of 16.
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
        """Objects of pictures, and the losses where labels are given; in training the losses alone.

        Args:
            pixel_values: (batch, 3, side, side), padded at the right and the lower edge.
            pixel_mask: (batch, side, side), 1 = picture; all without it.
            labels: per picture class_labels (n,), boxes (n, 4) centre and sides as shares of the picture, and masks
                (n, side, side).

        Raises:
            ValueError: for labels of another number of pictures, unknown classes, boxes outside, and masks of
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


class OnePeaceRegionSkills(Asking):
    """See `plait.assistant.Skills`: what a detector does for an `Assistant`."""

    capabilities: tuple[Capability, ...] = ("detect",)

    def __init__(self, model: Any, processor: OnePeaceProcessor) -> None:
        self.model, self.processor = model, processor
        self.tasks, self.kinds, self.num_frames = frozenset({"detect"}), frozenset({"image"}), 1
        self.labels = tuple(model.config.id2label[i] for i in sorted(model.config.id2label))

    def prepare(self, kind: str, value: Any) -> Any:
        """A PIL image -> its tensors and its height and width."""
        return self.processor(images=[value]), (value.height, value.width)

    def check_text(self, text: str) -> None:
        """No text is read."""

    def detect(self, prepared: Sequence[Any], threshold: float) -> list[dict[str, Any]]:
        """scores, labels, boxes in pixels and masks of every picture, best first."""
        inputs = {
            name: torch.cat([one[name] for one, _ in prepared]).to(self.model.device)
            for name in ("pixel_values", "pixel_mask")
        }
        found = self.processor.post_process_object_detection(
            self.model(**inputs), threshold, [size for _, size in prepared], return_masks=True
        )
        return [{name: value.cpu() for name, value in one.items()} for one in found]


def skills(model: Any, processor: OnePeaceProcessor) -> Any:
    """The skills of a model of this family, by its class: those that detect, or those of `tasks`."""
    return (OnePeaceRegionSkills if isinstance(model, OnePeaceForObjectDetection) else tasks.skills)(model, processor)
