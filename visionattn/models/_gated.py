# SPDX-License-Identifier: Apache-2.0
"""timm's CNNs with gates put in, as the authors of the gates built theirs."""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import BatchNormAct2d
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from visionattn.layers import CBAM, TripletAttention, attach, pick

from ._registry import Published

BLOCKS: dict[str, type[nn.Module]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
# Levels of timm's networks at strides 4, 8, 16, 32; the first one is at stride 2.
STAGES = (1, 2, 3, 4)


class CornerPool(nn.Module):
    """Mean over the upper left corner of a map, the whole of a smaller one.

    The authors' ResNets pool 7x7 pixels with a stride of 7 and read one result, whatever the map's size.

    Args:
        size: Side of the corner.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C)`."""
        return x[:, :, : self.size, : self.size].mean((2, 3))


def gated_resnet(
    gate: str | None,
    block: str = "bottleneck",
    layers: Sequence[int] = (3, 4, 6, 3),
    where: str | Sequence[str] = "after_bottleneck",
    gate_args: Mapping[str, Any] | None = None,
    small_images: bool = False,
    corner_pool: int | None = None,
    **kwargs: Any,
) -> ResNet:
    """ResNet of timm with gates, initialised as the published ones are.

    Args:
        gate: Name of the gates, one of `visionattn.layers.GATES`; None for a plain ResNet.
        block: "basic" or "bottleneck".
        layers: Blocks of each stage.
        where: Place of the gates, as `visionattn.layers.attach` takes it.
        gate_args: Arguments of the gates.
        small_images: Start with a 3x3 convolution at full resolution, for images such as CIFAR's.
        corner_pool: Let the head see only so many rows and columns of the last map, as the authors' heads do (7, and 4
            for small images); None for the whole map, which is the same at 224x224.
        **kwargs: Of timm's `ResNet`.

    Raises:
        ValueError: If `block`, `gate` or `where` is unknown.
    """
    model = ResNet(pick("block", block, BLOCKS), list(layers), zero_init_last=False, **kwargs)
    if small_images:
        _start_at_full_resolution(model)
    if gate is not None:
        attach(model, gate, where, **(gate_args or {}))
    init_as_published(model)
    if corner_pool is not None:
        model.global_pool = CornerPool(corner_pool)
    return model


def _start_at_full_resolution(model: ResNet) -> None:
    old = model.conv1
    model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    for level in model.feature_info:
        level["reduction"] = max(level["reduction"] // 4, 1)


def init_as_published(model: ResNet) -> None:
    """Initial values of the ResNets of CBAM, BAM and triplet attention.

    All biases are 0; spatial gates start as 1/2 everywhere, those of channels do not.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if "downsample" in name:
                module.reset_parameters()
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(module.bias)
        if isinstance(module, (CBAM, TripletAttention)) and module.spatial is not None:
            nn.init.zeros_(module.spatial.bn.weight)
    if isinstance(model.fc, nn.Linear):
        nn.init.kaiming_normal_(model.fc.weight, mode="fan_in", nonlinearity="relu")


# Kind, repeats, kernel, stride, expansion and channels of each stage, in timm's words.
MOBILENETV2 = (
    "ds_r1_k3_s1_c16",
    "ir_r2_k3_s2_e6_c24",
    "ir_r3_k3_s2_e6_c32",
    "ir_r4_k3_s2_e6_c64",
    "ir_r3_k3_s1_e6_c96",
    "ir_r3_k3_s2_e6_c160",
    "ir_r1_k3_s1_e6_c320",
)


def gated_mobilenetv2(
    gate: str,
    where: str | Sequence[str] = "after_bottleneck",
    gate_args: Mapping[str, Any] | None = None,
    width_mult: float = 1.0,
    **kwargs: Any,
) -> EfficientNet:
    """MobileNetV2 of timm with gates.

    Args:
        gate: Name of the gates, one of `visionattn.layers.GATES`.
        where: Place of the gates, as `visionattn.layers.attach` takes it.
        gate_args: Arguments of the gates.
        width_mult: Factor on all channels but the last, rounded down and to no multiple.
        **kwargs: Of timm's `EfficientNet`.

    Raises:
        ValueError: If `gate` or `where` is unknown, or `width_mult` leaves a stage without channels.
    """
    if int(16 * width_mult) < 1:
        raise ValueError(f"width_mult={width_mult} must be at least {1 / 16}")
    model = EfficientNet(
        decode_arch_def([[stage] for stage in MOBILENETV2]),
        num_features=int(1280 * max(1.0, width_mult)),
        round_chs_fn=lambda channels: int(channels * width_mult),
        act_layer=nn.ReLU6,
        **kwargs,
    )
    for block in model.modules():
        if isinstance(block, InvertedResidual):
            _set_hidden(block, 6 * block.conv_pw.in_channels)
    attach(model, gate, where, **(gate_args or {}))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _set_hidden(block: InvertedResidual, hidden: int) -> None:
    """Gives a block of timm, which rounds hidden channels to a multiple of 8, exactly so many."""
    old = block.conv_dw
    if old.out_channels == hidden:
        return
    block.conv_pw = nn.Conv2d(block.conv_pw.in_channels, hidden, 1, bias=False)
    block.conv_dw = nn.Conv2d(hidden, hidden, old.kernel_size, old.stride, old.padding, groups=hidden, bias=False)
    block.conv_pwl = nn.Conv2d(hidden, block.conv_pwl.out_channels, 1, bias=False)
    block.bn1, block.bn2 = (BatchNormAct2d(hidden, act_layer=nn.ReLU6) for _ in range(2))


DEPTHS: dict[int, dict[str, Any]] = {
    18: {"block": "basic", "layers": (2, 2, 2, 2)},
    34: {"block": "basic", "layers": (3, 4, 6, 3)},
    50: {"block": "bottleneck", "layers": (3, 4, 6, 3)},
    101: {"block": "bottleneck", "layers": (3, 4, 23, 3)},
}
MICRO: dict[str, Any] = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}


def on_drive(reference: str, file: str, *figures: float | None, **more: Any) -> Published:
    """Published weights that a person has to download from Google Drive."""
    url = f"https://drive.google.com/{file}"
    return Published(reference, url, *figures, is_page=True, interpolation="bilinear", **more)


REFERENCE_BLOCKS = {"BasicBlock": "basic", "Bottleneck": "bottleneck"}


def resnet_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our arguments for those that the references of CBAM, BAM and triplet attention share, gates excepted."""
    is_small = config["network_type"] != "ImageNet"
    shape = DEPTHS[config["depth"]] if "depth" in config else {
        "block": REFERENCE_BLOCKS[config["block"]], "layers": tuple(config["layers"])}  # fmt: skip
    head = {"num_classes": config["num_classes"], "corner_pool": 4 if is_small else 7}
    return {**shape, **head, "small_images": is_small}
