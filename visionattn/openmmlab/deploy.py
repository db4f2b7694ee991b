# SPDX-License-Identifier: Apache-2.0
"""Segmentors and detectors of mmsegmentation and mmdet as modules of tensors alone, which export to ONNX.

mmdet's own inference branches on the number of boxes and passes sizes as tensors. Here each step has one form for any
number: candidates are chosen by top-k, and what a step leaves out is marked instead of removed.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.export import GraphInfo
from visionattn.kernels import ms_deform_attn
from visionattn.openmmlab import dense
from visionattn.openmmlab.config import SCOPES, task_of
from visionattn.openmmlab.graph_info import describe


class Graph(nn.Module):
    """What is exported: a module of images `(B, 3, H, W)`, already normalised, and the names of its outputs."""

    names: tuple[str, ...] = ("logits",)


class Segmentor(Graph):
    """A segmentor of mmsegmentation on whole images.

    Args:
        model: The segmentor.
        class_map: Give the class index of each pixel, `(B, H, W)`, in place of logits `(B, classes, H, W)`.
    """

    def __init__(self, model: nn.Module, class_map: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.class_map = class_map
        self.names = ("class_map",) if class_map else ("logits",)

    def forward(self, images: Tensor) -> Tensor:
        """Logits or class indices at the size of the images."""
        size = images.shape[2:]
        metas = [{"img_shape": size, "pad_shape": size, "ori_shape": size}]
        logits = self.model.encode_decode(images, metas)
        if not self.class_map:
            return logits
        if logits.shape[1] > 1:
            return logits.argmax(1)
        return (logits.sigmoid()[:, 0] > self.model.decode_head.threshold).long()


class Detector(Graph):
    """A detector of mmdet on one image of a fixed size.

    Its outputs are `boxes` `(N, 4)` (left, top, right, bottom in pixels), `scores` `(N,)` and `labels` `(N,)`, from
    the likeliest on, and `masks` `(N, S, S)`, probabilities that fill each box, where it has a mask head.

    Args:
        model: The detector.
        size: Height and width of the image.
    """

    names: tuple[str, ...] = ("boxes", "scores", "labels")

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.model: Any = model
        self.size = size

    def sizes(self) -> list[tuple[int, int]]:
        """Sides of the feature maps."""
        parameter = next(self.model.parameters())
        with torch.inference_mode():
            maps = self.model.extract_feat(torch.zeros(1, 3, *self.size, device=parameter.device))
        return [(m.shape[-2], m.shape[-1]) for m in maps]

    def add_priors(self, head: Any, sizes: Sequence[tuple[int, int]]) -> None:
        """Keep the anchors or points of each map."""
        self.levels = len(sizes)
        for level, priors in enumerate(head.prior_generator.grid_priors(sizes, device="cpu")):
            self.register_buffer(f"priors_{level}", priors.clone(), persistent=False)


class OneStage(Detector):
    """RetinaNet, ATSS, FCOS and others whose head has mmdet's common dense prediction."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__(model, size)
        self.add_priors(self.model.bbox_head, self.sizes())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores, labels."""
        head = self.model.bbox_head
        cfg = head.test_cfg
        maps = head(self.model.extract_feat(images))
        factors = maps[2] if len(maps) > 2 else [None] * self.levels
        parts = [
            _dense_candidates(head, cfg, scores, deltas, factor, getattr(self, f"priors_{level}"))
            for level, (scores, deltas, factor) in enumerate(zip(maps[0], maps[1], factors, strict=True))
        ]
        scores, labels, valid, deltas, priors = (torch.cat(part) for part in zip(*parts, strict=True))
        boxes = head.bbox_coder.decode(priors, deltas, max_shape=self.size)
        valid = valid & _large_enough(boxes, cfg)
        chosen, found = select(boxes, scores, labels, valid, cfg.nms, cfg.max_per_img)
        chosen = chosen[found.nonzero().squeeze(1)]
        return boxes[chosen], scores[chosen], labels[chosen]


def _dense_candidates(head: Any, cfg: Any, logits: Tensor, deltas: Tensor, factor: Tensor | None, priors: Tensor):
    """Scores, labels, whether they reach the threshold, box deltas and priors of a map's likeliest candidates."""
    classes = head.cls_out_channels
    logits = logits[0].permute(1, 2, 0).reshape(-1, classes)
    deltas = deltas[0].permute(1, 2, 0).reshape(-1, head.bbox_coder.encode_size)
    scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
    classes = scores.shape[1]
    scores, index = scores.flatten().topk(_at_most(cfg.get("nms_pre", -1), scores.numel()))
    place, labels = index // classes, index % classes
    valid = scores > cfg.get("score_thr", 0)
    if factor is not None:
        scores = scores * factor[0].permute(1, 2, 0).reshape(-1).sigmoid()[place]
    return scores, labels, valid, deltas[place], priors[place]


class TwoStage(Detector):
    """Faster R-CNN and Mask R-CNN, and their cascades."""

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__(model, size)
        roi = self.model.roi_head
        self.box_stages = list(zip(_listed(roi.bbox_roi_extractor), _listed(roi.bbox_head), strict=True))
        self.mask_stages: list[Any] = []
        if roi.with_mask:
            extractors = roi.bbox_roi_extractor if roi.share_roi_extractor else roi.mask_roi_extractor
            self.mask_stages = list(zip(_listed(extractors), _listed(roi.mask_head), strict=True))
            self.names = (*Detector.names, "masks")
        for extractor, _ in (*self.box_stages, *self.mask_stages):
            _check_extractor(extractor)
        sizes = self.sizes()
        strides = self.model.rpn_head.prior_generator.strides
        self.add_priors(self.model.rpn_head, sizes[: len(strides)])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores, labels and, with a mask head, masks."""
        maps = self.model.extract_feat(images)
        regions, proposed = self.propose(maps)
        logits: Any = 0
        for stage, (extractor, head) in enumerate(self.box_stages):
            found, deltas = head(read_regions(extractor, maps, regions))
            logits = logits + found
            if stage + 1 < len(self.box_stages):
                likeliest = found[:, :-1].argmax(1)
                regions = head.regress_by_class(regions, likeliest, deltas, {"img_shape": self.size})
        scores = (logits / len(self.box_stages)).softmax(-1)[:, :-1]
        boxes = self.decode(regions, deltas, scores.shape[1])
        cfg = self.model.roi_head.test_cfg
        labels = torch.arange(scores.shape[1], device=scores.device).expand_as(scores).flatten()
        valid = ((scores > cfg.score_thr) & proposed[:, None]).flatten()
        scores = scores.flatten()
        chosen, found = select(boxes, scores, labels, valid, cfg.nms, cfg.max_per_img)
        boxes, scores, labels = boxes[chosen], scores[chosen], labels[chosen]
        kept = found.nonzero().squeeze(1)
        outputs = (boxes[kept], scores[kept], labels[kept])
        return (*outputs, self.masks(maps, boxes, labels)[kept]) if self.mask_stages else outputs

    def propose(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Regions that may hold an object, `(R, 4)`, and whether each is one."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        parts = []
        for level, (logits, deltas) in enumerate(zip(*head(maps), strict=True)):
            logits = logits[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels)
            scores = logits[:, 0].sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, 0]
            scores, place = scores.topk(_at_most(cfg.nms_pre, len(scores)))
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, head.bbox_coder.encode_size)[place]
            parts.append((scores, deltas, getattr(self, f"priors_{level}")[place], torch.full_like(place, level)))
        scores, deltas, priors, levels = (torch.cat(part) for part in zip(*parts, strict=True))
        boxes = head.bbox_coder.decode(priors, deltas, max_shape=self.size)
        chosen, found = select(boxes, scores, levels, _large_enough(boxes, cfg), cfg.nms, cfg.max_per_img)
        return boxes[chosen], found

    def decode(self, regions: Tensor, deltas: Tensor, classes: int) -> Tensor:
        """Boxes of each region for each class, `(R * classes, 4)`."""
        head = self.box_stages[-1][1]
        if head.reg_class_agnostic:
            boxes = head.bbox_coder.decode(regions, deltas, max_shape=self.size)
            return boxes[:, None].expand(-1, classes, -1).reshape(-1, 4)
        return head.bbox_coder.decode(
            regions.repeat_interleave(classes, 0), deltas.reshape(-1, head.bbox_coder.encode_size), max_shape=self.size
        )

    def masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probability of the pixels of each box, `(N, S, S)`, averaged over the stages of a cascade."""
        total: Any = 0
        for extractor, head in self.mask_stages:
            probabilities = head(read_regions(extractor, maps, boxes)).sigmoid()
            channel = torch.zeros_like(labels) if head.class_agnostic else labels
            total = total + probabilities[torch.arange(len(labels), device=labels.device), channel]
        return total / len(self.mask_stages)


def read_regions(extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Features of boxes, `(R, C, S, S)`, each from the map of its scale.

    All maps are read for all boxes, as a selection by map would give each a size known at run time alone.
    """
    maps = maps[: extractor.num_inputs]
    regions = F.pad(boxes, (1, 0))  # of the first and only image
    levels = extractor.map_roi_levels(regions, len(maps))
    total: Any = 0
    for level, (layer, features) in enumerate(zip(extractor.roi_layers, maps, strict=True)):
        read = torchvision.ops.roi_align(
            features, regions, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        total = total + torch.where((levels == level)[:, None, None, None], read, 0.0)
    return total


def select(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, nms: Mapping[str, Any], count: int
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression within groups.

    Args:
        boxes: `(K, 4)`.
        scores: `(K,)`.
        groups: `(K,)`; boxes of different groups do not suppress each other.
        valid: `(K,)` bool; others take no part.
        nms: The config's: its `iou_threshold`.
        count: Boxes that are kept at most.

    Returns:
        Indices of the likeliest `min(count, K)` boxes, and whether each is one that was kept.
    """
    apart = boxes if nms.get("class_agnostic", False) else boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    candidates = valid.nonzero().squeeze(1)
    kept = torchvision.ops.nms(apart[candidates], scores[candidates], nms["iou_threshold"])
    marked = torch.zeros_like(scores).index_fill(0, candidates[kept], 1.0)
    # Below every probability, so that what was left out comes last.
    ranked, chosen = torch.where(marked > 0, scores, -1.0).topk(min(count, len(scores)))
    return chosen, ranked >= 0


class QueryDetector(Detector):
    """Deformable DETR, which needs no suppression: the best `max_per_img` of its queries.

    Positions that depend on the image's size and the model's level embedding are computed once, here.
    """

    proposals: Tensor

    def __init__(self, model: nn.Module, size: tuple[int, int]) -> None:
        super().__init__(model, size)
        from mmcv.ops import MultiScaleDeformableAttention
        from mmdet.structures import DetDataSample

        meta = {"img_shape": size, "ori_shape": size, "pad_shape": size, "batch_input_shape": size}
        maps = [torch.zeros(1, self.model.encoder.embed_dims, *sides) for sides in self.sizes()]
        with torch.inference_mode():
            inputs, _ = self.model.pre_transformer(maps, [DetDataSample(metainfo=meta)])
            points = self.model.encoder.get_encoder_reference_points(
                inputs["spatial_shapes"], inputs["valid_ratios"], device="cpu"
            )
        self.shapes = [(int(h), int(w)) for h, w in inputs["spatial_shapes"].tolist()]
        # What depends on sizes alone is computed once.
        for name in ("feat_pos", "spatial_shapes", "level_start_index", "valid_ratios"):
            self.register_buffer(name, inputs[name].clone(), persistent=False)
        self.register_buffer("points", points.clone(), persistent=False)
        if self.model.as_two_stage:
            with torch.inference_mode():
                _, proposals = self.model.gen_encoder_output_proposals(inputs["feat"], None, inputs["spatial_shapes"])
            self.register_buffer("proposals", proposals.clone(), persistent=False)
        self.deformable = [m for m in self.model.modules() if isinstance(m, MultiScaleDeformableAttention)]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Boxes, scores, labels."""
        maps = self.model.extract_feat(images)
        features = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        shapes = {name: getattr(self, name) for name in ("spatial_shapes", "level_start_index", "valid_ratios")}
        encoder = self.model.encoder
        for module in self.deformable:
            module.forward = functools.partial(deformable_forward, module, self.shapes)
        encoder.get_encoder_reference_points = lambda *_, **__: self.points
        self.model.gen_encoder_output_proposals = self.encoder_proposals
        try:
            memory = encoder(query=features, query_pos=self.feat_pos, key_padding_mask=None, **shapes)
            inputs, _ = self.model.pre_decoder(memory, None, self.spatial_shapes)
            states = self.model.forward_decoder(**inputs, memory_mask=None, **shapes)
        finally:
            for module in self.deformable:
                del module.forward
            del encoder.get_encoder_reference_points, self.model.gen_encoder_output_proposals
        logits, boxes = (part[-1, 0] for part in self.model.bbox_head(**states))
        return self.best(logits, boxes)

    def encoder_proposals(self, memory: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Of a two-stage model: its encoder's output where a proposal is, projected; and the proposals."""
        inside = self.proposals.isfinite().all(-1, keepdim=True)
        memory = self.model.memory_trans_fc(memory.masked_fill(~inside, 0.0))
        return self.model.memory_trans_norm(memory), self.proposals

    def best(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of the likeliest queries."""
        head = self.model.bbox_head
        count = head.test_cfg.get("max_per_img", len(logits))
        if head.loss_cls.use_sigmoid:
            scores, index = logits.sigmoid().flatten().topk(min(count, logits.numel()))
            query, labels = index // head.num_classes, index % head.num_classes
        else:
            likeliest, every = logits.softmax(-1)[:, :-1].max(-1)
            scores, query = likeliest.topk(min(count, len(likeliest)))
            labels = every[query]
        x, y, width, height = boxes[query].unbind(-1)
        corners = torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2), -1).clamp(0, 1)
        return corners * corners.new_tensor([*self.size[::-1], *self.size[::-1]]), scores, labels


def deformable_forward(
    module: Any,
    shapes: Sequence[tuple[int, int]],
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    identity: Tensor | None = None,
    query_pos: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    reference_points: Tensor | None = None,
    **_: Any,
) -> Tensor:
    """Multi-scale deformable attention of mmcv's module with sizes that are numbers, where it reads them from tensors.

    Args:
        module: The attention module; its weights are used.
        shapes: Height and width of each map.
        query: `(B, N, C)`, or `(N, B, C)` where the module is not `batch_first`.
        key: Not used.
        value: All maps in a row, `(B, sum of sizes, C)`; None for `query`.
        identity: What is added to the result; None for `query`.
        query_pos: Added to `query`.
        key_padding_mask: Not supported; None.
        reference_points: `(B, N, levels, 2 or 4)`, 0 to 1.

    Returns:
        Same shape as `query`.
    """
    assert reference_points is not None and key_padding_mask is None
    value = query if value is None else value
    identity = query if identity is None else identity
    query = query if query_pos is None else query + query_pos
    if not module.batch_first:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    batch, count, _channels = query.shape
    heads, levels, points = module.num_heads, module.num_levels, module.num_points
    values = module.value_proj(value).unflatten(-1, (heads, -1))
    offsets = module.sampling_offsets(query).view(batch, count, heads, levels, points, 2)
    weights = module.attention_weights(query).view(batch, count, heads, levels * points).softmax(-1)
    places = reference_points[:, :, None, :, None, :2]
    if reference_points.shape[-1] == 2:
        sides = offsets.new_tensor([[width, height] for height, width in shapes])
        places = places + offsets / sides[:, None]
    else:
        places = places + offsets / points * reference_points[:, :, None, :, None, 2:] * 0.5
    weights = weights.unflatten(-1, (levels, points))
    mixed = ms_deform_attn(values, shapes, None, places, weights)
    result = module.output_proj(mixed)
    return (result if module.batch_first else result.transpose(0, 1)) + identity


def _check_extractor(extractor: Any) -> None:
    for layer in extractor.roi_layers:
        if type(extractor).__name__ != "SingleRoIExtractor" or type(layer).__name__ != "RoIAlign":
            raise ValueError(
                f"{type(extractor).__name__} with {type(layer).__name__} cannot be exported; "
                "use SingleRoIExtractor with RoIAlign"
            )


def _listed(part: Any) -> list[Any]:
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def _at_most(limit: int, length: int) -> int:
    return length if limit <= 0 else min(limit, length)


def _large_enough(boxes: Tensor, cfg: Any) -> Tensor:
    least = cfg.get("min_bbox_size", -1)
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides > least).all(-1) if least >= 0 else torch.ones_like(boxes[:, 0], dtype=torch.bool)


def graph_of(model: nn.Module, task: str, size: tuple[int, int], class_map: bool = False) -> Graph:
    """A detector or segmentor in exportable form.

    Args:
        model: Of mmdet or mmsegmentation, in evaluation mode.
        task: "detection" or "segmentation".
        size: Height and width; a detector is fixed to it.
        class_map: Whether a segmentor gives class indices instead of logits.

    Raises:
        ValueError: The detector is of a kind that has no exportable form here.
    """
    if task == "segmentation":
        return Segmentor(model, class_map)
    base = importlib.import_module("mmdet.models")
    if isinstance(model, base.DeformableDETR) and not isinstance(model, getattr(base, "DINO", ())):
        return QueryDetector(model, size)
    if isinstance(model, base.TwoStageDetector) and type(model.roi_head).__name__ in (
        "StandardRoIHead",
        "CascadeRoIHead",
    ):
        if not getattr(model, "with_rpn", False):
            raise ValueError(f"{type(model).__name__} has no RPN, so it cannot be exported")
        _check_nms(model.rpn_head.test_cfg.nms, "the RPN")
        _check_nms(model.roi_head.test_cfg.nms, "the box head")
        return TwoStage(model, size)
    head: Any = getattr(model, "bbox_head", None)
    if isinstance(model, base.SingleStageDetector) and _predicts_as_usual(head):
        _check_nms(head.test_cfg.nms, type(head).__name__)
        return OneStage(model, size)
    raise ValueError(
        f"{type(model).__name__} with {type(head).__name__} cannot be exported; one-stage detectors with mmdet's "
        "common prediction (RetinaNet, ATSS, FCOS), Faster, Mask and Cascade R-CNN and Deformable DETR can; any "
        "backbone exports by its model name with --features"
    )


def _predicts_as_usual(head: Any) -> bool:
    base = importlib.import_module("mmdet.models.dense_heads.base_dense_head").BaseDenseHead
    return isinstance(head, base) and all(
        getattr(type(head), name) is getattr(base, name)
        for name in ("predict_by_feat", "_predict_by_feat_single", "_bbox_post_process")
    )


def _check_nms(nms: Mapping[str, Any], where: str) -> None:
    if nms.get("type", "nms") != "nms":
        raise ValueError(f"nms.type={nms.get('type')!r} of {where} has no ONNX operator; use 'nms'")


def load(
    cfg: Config, checkpoint: Any = None, size: Sequence[int] | None = None, class_map: bool = False
) -> tuple[Graph, GraphInfo]:
    """Exportable form of a config's detector or segmentor, and what its file says about itself.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ModuleNotFoundError: mmdet or mmsegmentation is not installed.
        ValueError: The checkpoint does not fit, or the detector has no exportable form.
    """
    task = task_of(cfg)
    importlib.import_module(SCOPES[task])
    backbone = cfg.model.get("backbone") or {}
    if checkpoint is not None and backbone.get("pretrained"):
        backbone["pretrained"] = False  # the checkpoint has all weights
    model = dense.load_model(cfg, checkpoint).cpu()
    info = describe(cfg, model, checkpoint, size)
    _, height, width = info.input_size
    return graph_of(model, task, (height, width), class_map), info
