# SPDX-License-Identifier: Apache-2.0
"""HRNetV2 with polarized self-attention between the two convolutions of every basic block.

Branches at strides 4 to 32 run side by side and are fused again and again. The gates fold channels or positions of a
map completely and keep the other at half its resolution.

Paper: Polarized Self-Attention: Towards High-quality Pixel-wise Regression, arXiv 2107.00782. Weights: Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import checkpoint
from timm.models.hrnet import HighResolutionModule, HighResolutionNet
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from visionattn.layers import attach

from ._base import drop_path_rates
from ._checkpoint import KeyMap
from ._reference import source_file
from ._registry import Family, Paper, Published, register

PAPER = Paper("Polarized Self-Attention: Towards High-quality Pixel-wise Regression", "2107.00782")


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Map `(B, C, H, W)` at the size of another one, bilinear, corners not aligned."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class BilinearFusion(HighResolutionModule):
    """timm's module of parallel branches, fused as in the segmentation network: maps of any size, bilinear."""

    grad_checkpointing = False

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """Maps of all branches, the largest first, to as many of the same shapes."""
        run = checkpoint if self.grad_checkpointing else _call
        x = [run(branch, maps) for branch, maps in zip(self.branches, x, strict=True)]
        return [F.relu(self._fused(i, x)) for i in range(len(x))]

    def _fused(self, i: int, x: list[Tensor]) -> Tensor:
        total = torch.zeros_like(x[i])
        for j, layer in enumerate(self.fuse_layers[i]):
            total = total + (resize(layer(x[j]), x[i]) if j > i else layer(x[j]))
        return total


def _call(branch: nn.Module, x: Tensor) -> Tensor:
    return branch(x)


def join(maps: Sequence[Tensor]) -> Tensor:
    """All maps as one at the size of the first."""
    return torch.cat([maps[0], *(resize(x, maps[0]) for x in maps[1:])], 1)


class PolarizedHRNet(HighResolutionNet):
    """timm's HRNet as the trunk of a segmentation network: its map joins all branches at stride 4.

    Args:
        width: Channels of the first branch; each next has twice as many.
        num_modules: Fusions of stages 2, 3 and 4.
        num_blocks: Blocks of each branch between two fusions.
        stem_channels: Width of the bottlenecks before the first stage.
        sequential: Whether the gates of a block act one after the other (PSA_s) or at once (PSA_p).
        in_chans: Channels of the image.
        num_classes: Classes of a linear classifier on the joined map; 0 for none.
        global_pool: Pooling of the classifier.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path rate of the last block, rising linearly from 0.

    Raises:
        ValueError: If `drop_path_rate` is not in [0, 1).
    """

    def __init__(
        self,
        width: int = 48,
        num_modules: Sequence[int] = (1, 4, 3),
        num_blocks: int = 4,
        stem_channels: int = 64,
        sequential: bool = False,
        in_chans: int = 3,
        num_classes: int = 0,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        channels = [width * 2**i for i in range(4)]
        stages: dict[str, Any] = {"stem_width": 64, "stage1": _stage("BOTTLENECK", 1, num_blocks, [stem_channels])}
        for i, modules in enumerate(num_modules, start=2):
            stages[f"stage{i}"] = _stage("BASIC", modules, num_blocks, channels[:i])
        super().__init__(stages, in_chans=in_chans, num_classes=0, drop_rate=drop_rate, head="")
        for info in self.feature_info:
            info["module"] = "conv1" if info["module"] == "stem" else "stage4"
        for module in self.modules():
            if isinstance(module, HighResolutionModule):
                module.__class__ = BilinearFusion
                for i, layers in enumerate(module.fuse_layers):
                    for layer in layers[i + 1 :]:
                        layer[2] = nn.Identity()  # it doubled the map's sides
        attach(self, "polarized", "stage?.*.branches.*.*.act1", sequential=sequential)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)
        blocks = [module for module in self.modules() if isinstance(module, (BasicBlock, Bottleneck))]
        for block, rate in zip(blocks, drop_path_rates(drop_path_rate, [len(blocks)])[0], strict=True):
            block.drop_path = DropPath(rate) if rate > 0 else None
        self.head_drop = nn.Dropout(drop_rate)
        self.num_features = self.head_hidden_size = sum(channels)
        self.reset_classifier(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches recomputation of every branch in the backward pass on or off."""
        for module in self.modules():
            if isinstance(module, BilinearFusion):
                module.grad_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `(B, C, H, W)` to the joined map `(B, 15 * width, H / 4, W / 4)`, or to the stem's where pruned."""
        maps = super().forward_features(x)
        return maps if isinstance(maps, Tensor) else join(maps)


def _stage(block: str, modules: int, blocks: int, channels: Sequence[int]) -> dict[str, Any]:
    """A stage in the words of timm's HRNet."""
    return {"num_modules": modules, "num_branches": len(channels), "block_type": block,
            "num_blocks": (blocks,) * len(channels), "num_channels": tuple(channels), "fuse_method": "SUM"}  # fmt: skip


# A checkpoint of the whole segmentation network has the trunk as `backbone.`, which loading takes off.
GATE = (
    (r"\bdeattn\.", "act1.gate."),
    (r"\bconv_q_right\.", "channel.query."),
    (r"\bconv_v_right\.", "channel.value."),
    (r"\bconv_up\.weight", "channel.up.weight"),
    (r"\bconv_up\.0\.", "channel.up.conv1."),
    (r"\bconv_up\.1\.", "channel.up.norm.", lambda tensor, target: tensor.reshape(target.shape)),
    (r"\bconv_up\.3\.", "channel.up.conv2."),
    (r"\bconv_q_left\.", "spatial.query."),
    (r"\bconv_v_left\.", "spatial.value."),
)
KEYS = KeyMap("PSA", GATE, optional=(r"num_batches_tracked$",))


def _outputs(model: PolarizedHRNet, x: Tensor) -> dict[str, Tensor]:
    return {"features.0": model.forward_features(x)}


def _from_reference(record: Mapping[str, Any]) -> PolarizedHRNet | None:
    if source_file(record).name != "hrnetv2.py":
        return None
    config = record["config"]
    modules = config["num_modules"][1:]
    sizes = {"width": config["width"], "num_blocks": config["num_blocks"], "stem_channels": config["stage1_channels"]}
    return PolarizedHRNet(num_modules=modules, sequential=config["psa"] == "s", **sizes)


VARIANTS: dict[str, dict[str, Any]] = {
    "va_psa_hrnetv2_w48": {"sequential": False},
    "va_psa_s_hrnetv2_w48": {"sequential": True},
}
NOTE = (
    "The published files hold a whole segmentation network, of which the trunk is loaded; they score 86.95 (PSA_p) and "
    "86.72 (PSA_s) mIoU on Cityscapes val with their OCR head at several scales"
)


def _row(reference: str, page: str) -> Published:
    return Published(reference, f"https://cmu.box.com/s/{page}", num_classes=0, is_page=True, note=NOTE)


WEIGHTS = {
    "va_psa_hrnetv2_w48.cityscapes": _row("hrnetv2_w48_ocr_mscale_psa_p", "if90kw6r66q2y6c5xparflhnbwi6c2yi"),
    "va_psa_s_hrnetv2_w48.cityscapes": _row("hrnetv2_w48_ocr_mscale_psa_s", "uyzzfmkx8p2ipcznpzdtf14ng63s65sq"),
}

MICRO = {"width": 8, "num_modules": (1, 1, 1), "num_blocks": 1, "stem_channels": 8}
PSA = Family(
    "psa", "PSA-HRNetV2", (PAPER,), "apache-2.0", "https://github.com/DeLightCMU/PSA", PolarizedHRNet, (KEYS,), "psa",
    _from_reference, "conv1", {"va_psa_hrnetv2_w48": MICRO}, classifier="classifier", features=(1, 2, 3, 4),
    outputs=_outputs,
)  # fmt: skip
register(__name__, PSA, VARIANTS, WEIGHTS)
