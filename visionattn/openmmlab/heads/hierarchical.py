# SPDX-License-Identifier: Apache-2.0
"""The segmentor of PSA's published networks: HRNet, object context, attention between scales.

    custom_imports = dict(imports=["visionattn.openmmlab", "visionattn.openmmlab.heads.hierarchical"])

Needs mmsegmentation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmseg.models.segmentors import EncoderDecoder
from mmseg.structures import SegDataSample
from torch import Tensor

from visionattn.models import KeyMap, read_checkpoint
from visionattn.models.psa import GATE, join
from visionattn.openmmlab.heads.ocr import OCR, ScaleAttention, fuse_scales, resize
from visionattn.openmmlab.runner import load_strictly

AUTHORS = KeyMap(
    "PSA",
    (
        *GATE,
        (r"^backbone\.", "backbone.model."),
        (r"^ocr\.", "decode_head.ocr."),
        (r"^scale_attn\.", "decode_head.attention."),
        (r"\.(conv3x3_ocr|aux_head|f_\w+|conv_bn_dropout)\.([13])\.0\.", r".\1.\2."),  # norms come with their ReLUs
        (r"\bocr_distri_head\.object_context_block\.", "context."),
        (r"\bconv3x3_ocr\.", "reduce."),
        (r"\baux_head\.([01])\.", r"auxiliary.0.\1."),
        (r"\baux_head\.2\.", "auxiliary.1."),
        (r"\bf_pixel\.", "query."),
        (r"\bf_object\.", "key."),
        (r"\b(query|key)\.([01])\.(?!\d)", r"\1.0.\2."),
        (r"\b(query|key)\.2\.", r"\1.1.0."),
        (r"\b(query|key)\.3\.", r"\1.1.1."),
        (r"\bf_down\.", "value."),
        (r"\bf_up\.", "up."),
        (r"\bocr_distri_head\.conv_bn_dropout\.", "fuse.0."),
        (r"\bcls_head\.", "classifier."),
        (r"\battention\.conv([01])\.", r"attention.\1.0."),
        (r"\battention\.bn([01])\.", r"attention.\1.1."),
        (r"\battention\.conv2\.", "attention.2."),
    ),
)


def from_authors(content: Any, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict in our names of an authors' file, which may wrap it; our own names pass.

    Args:
        content: What the file holds.
        target: State dict of the segmentor, for shapes.
    """
    entries = content.get("state_dict", content)
    state = {}
    for name, tensor in entries.items():
        name = name.removeprefix("module.")
        ours, transforms = (name, []) if name in target else AUTHORS.rename(name)
        for transform in transforms:
            tensor = transform(tensor, target[ours]) if ours in target else tensor
        state[ours] = tensor
    return state


@MODELS.register_module()
class HierarchicalOCRHead(BaseModule):
    """OCR and attention between scales on the joined maps of a HRNet.

    Args:
        in_channels: Channels of the maps, which are joined.
        num_classes: Number of classes.
        channels: Channels of the OCR's pixels.
        key_channels: Channels of its attention.
        attention_channels: Channels of the attention between scales; None for one scale alone.
        dropout_ratio: Share of channels dropped before the classifier.
        loss_decode: Loss of mmsegmentation, for all logits.
        align_corners: Must be False, as in the published networks.
        ignore_index: Label that is not learned.
        init_cfg: As for mmengine's BaseModule.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        key_channels: int = 256,
        attention_channels: int | None = 256,
        dropout_ratio: float = 0.05,
        loss_decode: Mapping[str, Any] | None = None,
        align_corners: bool = False,
        ignore_index: int = 255,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        if align_corners:
            raise ValueError("align_corners=True must be False, as in the published networks")
        self.num_classes = self.out_channels = num_classes
        self.align_corners, self.ignore_index = align_corners, ignore_index
        self.threshold = None
        self.ocr = OCR(sum(in_channels), num_classes, channels, key_channels, dropout_ratio)
        self.attention = None if attention_channels is None else ScaleAttention(channels, attention_channels)
        self.loss_decode = MODELS.build(dict(loss_decode or {"type": "mmseg.CrossEntropyLoss"}))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits, auxiliary logits and attention of one scale, at the `(height, width)` of its image.

        Args:
            maps: Maps of the backbone, the largest first, each `(B, C, H, W)`.
            size: Height and width of the image.
        """
        logits, auxiliary, features = self.ocr(join(maps))
        attention = None if self.attention is None else resize(self.attention(features), size)
        return resize(logits, size), resize(auxiliary, size), attention


@MODELS.register_module()
class HierarchicalSegmentor(EncoderDecoder):
    """Encoder and decoder that look at an image at several scales and weigh them pixel by pixel.

    Training sees half and full size, as the published networks' does.

    Args:
        scales: Scales of prediction.
        auxiliary_weight: Weight of the loss of the auxiliary logits.
        scale_weight: Weight of the losses of each scale's logits.
        checkpoint: The authors' file of a whole network, which `init_weights` loads; no code in it is run.
        **kwargs: Of mmsegmentation's EncoderDecoder; `decode_head` is a HierarchicalOCRHead.

    Raises:
        TypeError: If `decode_head` is of another kind.
        ValueError: If a scale is not above 0, or there are several and the head has no attention between them.
    """

    def __init__(
        self,
        scales: Sequence[float] = (0.5, 1.0),
        auxiliary_weight: float = 0.4,
        scale_weight: float = 0.05,
        checkpoint: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"test_cfg": ConfigDict(mode="whole"), **kwargs})
        if not isinstance(self.decode_head, HierarchicalOCRHead):
            raise TypeError(f"decode_head is {type(self.decode_head).__name__}, not HierarchicalOCRHead")
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales={tuple(scales)} must be above 0")
        if len(scales) > 1 and self.decode_head.attention is None:
            raise ValueError(f"scales={tuple(scales)}: several scales need a head with attention_channels")
        self.scales, self.checkpoint = tuple(scales), checkpoint
        self.auxiliary_weight, self.scale_weight = auxiliary_weight, scale_weight

    def look(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits, auxiliary logits and attention at one scale; inputs `(B, 3, H, W)`, all at their size."""
        return self.decode_head(self.extract_feat(inputs), inputs.shape[2:])

    def look_at(self, inputs: Tensor, scales: Sequence[float]) -> dict[float, tuple[Tensor, Tensor, Tensor | None]]:
        """What `look` sees at each scale."""
        seen = {}
        for scale in scales:
            size = [int(side * scale) for side in inputs.shape[2:]]
            seen[scale] = self.look(inputs if scale == 1 else resize(inputs, size))
        return seen

    def encode_decode(self, inputs: Tensor, batch_img_metas: Any = None) -> Tensor:
        """Logits `(B, classes, H, W)` of images `(B, 3, H, W)`, of all scales."""
        return self._fused(self.look_at(inputs, self.scales), inputs)

    def _fused(self, seen: Mapping[float, tuple[Tensor, Tensor, Tensor | None]], inputs: Tensor) -> Tensor:
        ones = torch.ones((), device=inputs.device, dtype=inputs.dtype)
        passes = [(s, logits, ones if trust is None else trust) for s, (logits, _, trust) in seen.items()]
        fused = fuse_scales(passes)
        return fused if fused.shape[2:] == inputs.shape[2:] else resize(fused, inputs.shape[2:])

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        return self.encode_decode(inputs)

    def loss(self, inputs: Tensor, data_samples: list[SegDataSample]) -> dict[str, Tensor]:
        """Losses of the fused logits, of the auxiliary ones and of each scale.

        Args:
            inputs: Images, `(B, 3, H, W)`.
            data_samples: Their labels, `gt_sem_seg`.
        """
        labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).squeeze(1)
        seen = self.look_at(inputs, (0.5, 1.0) if self.decode_head.attention is not None else (1.0,))
        head = self.decode_head

        def loss(logits: Tensor) -> Tensor:
            logits = resize(logits, labels.shape[1:])
            return head.loss_decode(logits, labels, ignore_index=head.ignore_index)

        losses = {"decode.loss_ce": loss(self._fused(seen, inputs))}
        losses["aux.loss_ce"] = self.auxiliary_weight * loss(seen[1.0][1])
        if len(seen) > 1 and self.scale_weight > 0:
            losses |= {f"scale_{s}.loss_ce": self.scale_weight * loss(logits) for s, (logits, _, _) in seen.items()}
        return losses

    def init_weights(self) -> None:
        """Initialises the network, from `checkpoint` where there is one.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it does not fit; the message says where.
        """
        super().init_weights()
        if self.checkpoint is not None:
            state = from_authors(read_checkpoint(self.checkpoint), self.state_dict())
            load_strictly(self, state, os.fspath(self.checkpoint))
