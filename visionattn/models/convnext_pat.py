# SPDX-License-Identifier: Apache-2.0
"""ConvNeXt with partial convolutions and partial attention in place of its depth-wise convolutions.

Paper: Partial Channel Network: Compute Fewer, Perform Better, arXiv 2502.01303.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visionattn.layers import NestedBlock, init_conv

from ._checkpoint import KeyMap, to_stage
from ._pyramid import CONVNEXT, MixerArgs, Pyramid
from ._registry import Family, Published, register
from .partialnet import GATE, MICRO, MIXER, PAPER, PARTIALNET, Mixers, arguments, mixer_args_of, mixers_of


def convnext_pat(
    depths: Sequence[int] = (3, 3, 9, 3),
    dims: Sequence[int] = (96, 192, 384, 768),
    num_heads: Sequence[int] = (1, 1, 1, 4),
    kernel_size: int = 7,
    spatial_gate: bool = False,
    divisor: int = 4,
    layer_scale: float | None = 1e-6,
    attn_drop: float = 0.1,
    mixers: Mixers = None,
    mixer_args: MixerArgs | None = None,
    **kwargs: Any,
) -> Pyramid:
    """ConvNeXt whose depth-wise convolutions gave way to partial ones, with partial attention in the last stage.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage; of the authors' mixers the last stage's alone has some.
        kernel_size: Side of the convolutions.
        spatial_gate: Whether MLPs end in a gate for pixels; they have no biases then.
        divisor: Parts of the channels, of which one is convolved.
        layer_scale: Initial value of per-channel factors on the branches; None for no factors.
        attn_drop: Dropout of the attention weights in training.
        mixers: Other token mixers, as `Pyramid` takes them; then `mixer_args` are theirs.
        mixer_args: Arguments of other mixers.
        **kwargs: Of `Pyramid`.
    """
    own = {"divisor": divisor, "kernel_size": kernel_size, "bias": True}
    model = Pyramid(
        depths,
        dims,
        num_heads,
        mixers=mixers or mixers_of(len(depths), True),
        mixer_args=mixer_args_of(len(depths) - 1, True, attn_drop, **own) if mixers is None else mixer_args,
        mlp="plain_gated" if spatial_gate else "mlp",
        layer_scale=layer_scale,
        block=lambda stage, block: NestedBlock,
        head="norm",
        **{**CONVNEXT, **kwargs},
    )
    model.apply(init_conv)
    return model


KEYS = KeyMap(
    "PartialNet's ConvNeXt",
    (
        (r"^stem\.0\.", "stem.proj."),
        (r"^stem\.1\.", "stem.norm."),
        (r"^stages\.(\d)\.downsample\.0\.", to_stage("down.norm.")),
        (r"^stages\.(\d)\.downsample\.1\.", to_stage("down.proj.")),
        (r"\.conv_dw\.", ".attn."),
        *MIXER,
        (r"\.mlp_conv([12])\.", r".mlp.fc\1."),
        (r"\.mlp_spatial\.", ".mlp.gate."),
        *GATE,
        (r"\.gamma$", ".scale.gamma"),
    ),
)


def _from_reference(record: Mapping[str, Any]) -> Pyramid | None:
    """Model of a record; None for one of PartialNet itself."""
    return convnext_pat(**arguments(record)) if "dims" in record["config"] else None


VARIANTS: dict[str, dict[str, Any]] = {"va_convnext_pat_tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}}
WEIGHTS = {"va_convnext_pat_tiny.untrained": Published("convnext_tiny_pat", "", crop_pct=0.9)}

CONVNEXT_PAT = Family(
    "convnext_pat", "ConvNeXt with partial attention", (PAPER,), "mit", PARTIALNET.origin, convnext_pat,
    (KEYS,), "partialnet", _from_reference,
    micros={"va_convnext_pat_tiny": {**MICRO, "dims": (8, 16, 24, 32)}}, dense_args={"*": {"output_norms": True}},
)  # fmt: skip
register(__name__, CONVNEXT_PAT, VARIANTS, WEIGHTS)
