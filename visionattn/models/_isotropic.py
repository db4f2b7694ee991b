# SPDX-License-Identifier: Apache-2.0
"""The ViT-like host: patches, then blocks around any token mixer at one resolution."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from visionattn.layers import Block, PatchStem, create_mixer, create_norm, init_linear

from ._base import VisionModel, drop_path_rates


class Isotropic(VisionModel):
    """Backbone of blocks on one map of patches; every block's output is a feature at the stride of the patches.

    Args:
        depth: Number of blocks.
        dim: Channels of the map.
        num_heads: Heads of the mixers.
        patch_size: Side of a patch.
        patch_stride: Pixels from patch to patch; None for `patch_size`.
        patch_norm: Whether a LayerNorm follows the patch embedding.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
        global_pool: Pooling of the head, as timm names it.
        mixer: Name of the token mixer, one of `visionattn.layers.MIXERS`; or one for each block.
        mixer_args: Arguments of the mixers: a mapping, or a function of the block's index that returns one.
        mlp_ratio: Hidden width of the MLPs over the channels.
        mlp: Name of the MLPs, one of `visionattn.layers.MLPS`; None for blocks of the mixer alone.
        norm_layer: Name of the norms of blocks and output, one of `visionattn.layers.NORMS`.
        norm_eps: Added to the variance by the norms of blocks and output.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the stem, after attention projections and in MLPs.
        drop_path_rate: Drop-path rate of the last block, rising linearly from 0.

    Raises:
        ValueError: If `depth` is not positive, there is not one mixer for each block, or a mixer's name is unknown.
    """

    levels_name = "blocks"

    def __init__(
        self,
        depth: int,
        dim: int,
        num_heads: int,
        patch_size: int = 16,
        patch_norm: bool = True,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        mixer: str | Sequence[str] = "neighborhood",
        mixer_args: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] | None = None,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_stride: int | None = None,
        mlp: str | None = "mlp",
        norm_layer: str = "layer",
    ) -> None:
        super().__init__(in_chans, num_classes)
        if depth < 1:
            raise ValueError(f"depth={depth} must be at least 1")
        names = [mixer] * depth if isinstance(mixer, str) else list(mixer)
        if len(names) != depth:
            raise ValueError(f"mixer={mixer} must give each of the {depth} blocks one")
        self.stem = PatchStem(in_chans, dim, patch_size, patch_norm, stride=patch_stride)
        self.pos_drop = nn.Dropout(proj_drop_rate)
        self.blocks = nn.ModuleList()
        for i, rate in enumerate(drop_path_rates(drop_path_rate, [depth])[0]):
            args = mixer_args(i) if callable(mixer_args) else (mixer_args or {})
            mixer_module = create_mixer(names[i], dim, num_heads, proj_drop=proj_drop_rate, **args)
            more: dict[str, Any] = {"mlp": mlp, "norm_layer": norm_layer}
            self.blocks.append(Block(dim, mixer_module, mlp_ratio, None, proj_drop_rate, rate, norm_eps, **more))
        stride = self.stem.stride
        self.feature_info = [{"num_chs": dim, "reduction": stride, "module": f"blocks.{i}"} for i in range(depth)]
        self.norm = create_norm(norm_layer, dim, norm_eps)
        self._add_head(dim, global_pool, drop_rate)
        self.apply(init_linear)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay of the learning rate, as timm's regular expressions; `coarse` changes nothing."""
        return {"stem": r"^stem|^pos_embed", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}
