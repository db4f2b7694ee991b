# SPDX-License-Identifier: Apache-2.0
"""The host that looks twice: stages, a coarse overview of what they see, and stages that look again with it."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.layers import (
    BatchNorm,
    ChannelAffine,
    ContextBlock,
    ContextDownsample,
    NormedDownsample,
    ProjectedHead,
    StaticBlock,
    fuse,
    init_conv,
    pool_type_of,
)

from ._base import VisionModel, drop_path_rates


class DoubleStem(nn.Sequential):
    """Image to a map at stride 4 `(B, C, H / 4, W / 4)`: twice two 3x3 convolutions, all normed."""

    stride = 4

    def __init__(self, in_chans: int, dim: int) -> None:
        widths = (in_chans, dim // 2, dim // 2, dim, dim)
        parts: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            parts += [nn.Conv2d(before, after, 3, stride=1 + (i + 1) % 2, padding=1, bias=False), BatchNorm(after)]
            parts += [nn.GELU()] if i < 3 else []
        super().__init__(*parts)


class Overview(nn.Module):
    """The map at stride 32 that the deepest static stage makes, and the context that it gives."""

    def __init__(self, dim: int, out_dim: int, context_dim: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.down = NormedDownsample(dim, out_dim)
        self.blocks = nn.ModuleList(blocks)
        self.proj = nn.Conv2d(out_dim, context_dim, 1)


class Stage(nn.Module):
    """Static blocks; an overview; blocks that look again with it. Each part may be missing."""

    def __init__(
        self, blocks: Sequence[nn.Module], overview: Overview | None, focus: Sequence[nn.Module], norm: nn.Module,
        down: nn.Module,
    ) -> None:  # fmt: skip
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.overview = overview
        self.focus = nn.ModuleList(focus)
        self.norm = norm
        self.down = down


class OverviewNeck(nn.Module):
    """What the overview adds to the last feature of detectors."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim)
        self.proj = nn.Conv2d(dim, out_dim, 1)
        self.scale = ChannelAffine(out_dim, 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, dim, H, W)` to `(B, out_dim, H, W)`."""
        return self.scale(self.proj(self.norm(x)))


class OverLoCK(VisionModel):
    """Backbone whose last stages look again at the map with an overview of it; features at strides 4, 8, 16, 32.

    Args:
        depths: Static blocks of the stages at strides 4, 8 and 16, and of the overview at stride 32.
        focus_depths: Blocks that look again at strides 16 and 32.
        dims: Channels at strides 4, 8, 16 and 32; the last two features also hold the context, a quarter of the last.
        num_heads: Kernels of each size that a pixel has, at strides 16 and 32.
        kernel_sizes: Side of the convolutions at each stride.
        small_kernel_size: Side of the small dynamic kernels.
        mlp_ratio: Hidden width of the static blocks' MLPs over the channels; or one a stride.
        focus_mlp_ratios: The same of the blocks that look again.
        layer_scale: Initial value of per-channel factors at each stride; None for none.
        scale_input: Whether the factors are those of what branches are added to, not of the branches.
        fused: Whether the branches of large convolutions are merged; `fuse` merges those of a trained model.
        head_dim: Hidden channels of the head.
        aux_head: Whether the overview has a classifier of its own, for training; see `set_aux_training`.
        output_norms: Whether the model is the authors' for detection and segmentation: each feature has a norm, and the
            network goes on from the normed map of stride 8.
        overview_neck: Whether the last feature also holds the overview, as in the authors' detectors.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
        global_pool: Pooling of the head, as timm names it.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path rate of the last block, rising linearly from 0.

    Raises:
        ValueError: If there are not four depths, dims, kernel sizes, ratios and layer scales, and two of what looks
            again, or a kernel's side or number of heads does not fit.

    Paper: OverLoCK, arXiv 2502.20087.
    """

    levels_name = "stages"
    head: Any  # a ProjectedHead

    def __init__(
        self,
        depths: Sequence[int] = (4, 4, 6, 2),
        focus_depths: Sequence[int] = (12, 2),
        dims: Sequence[int] = (64, 128, 256, 512),
        num_heads: Sequence[int] = (8, 16),
        kernel_sizes: Sequence[int] = (17, 15, 13, 7),
        small_kernel_size: int = 5,
        mlp_ratio: float | Sequence[float] = 4.0,
        focus_mlp_ratios: Sequence[float] = (3.0, 3.0),
        layer_scale: Sequence[float | None] = (None, None, 1.0, 1.0),
        scale_input: bool = True,
        fused: bool = False,
        head_dim: int = 1024,
        aux_head: bool = True,
        output_norms: bool = False,
        overview_neck: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, num_classes)
        ratios = list(mlp_ratio) if isinstance(mlp_ratio, Sequence) else [mlp_ratio] * 4
        fours = {"depths": depths, "dims": dims, "kernel_sizes": kernel_sizes, "mlp_ratio": ratios,
                 "layer_scale": layer_scale}  # fmt: skip
        pairs = {"focus_depths": focus_depths, "num_heads": num_heads, "focus_mlp_ratios": focus_mlp_ratios}
        for name, values, count in [*((n, v, 4) for n, v in fours.items()), *((n, v, 2) for n, v in pairs.items())]:
            if len(values) != count:
                raise ValueError(f"{name}={tuple(values)} must have {count} entries")
        if min(*depths, *focus_depths) < 1:
            raise ValueError(f"depths={tuple(depths)}, focus_depths={tuple(focus_depths)} must all be at least 1")
        rates = drop_path_rates(drop_path_rate, (*depths, *focus_depths))
        context_dim = dims[3] // 4
        common: dict[str, Any] = {"scale_input": scale_input, "fused": fused}

        def static(i: int) -> list[nn.Module]:
            args = {"mlp_ratio": ratios[i], "layer_scale": layer_scale[i], **common}
            return [StaticBlock(dims[i], kernel_sizes[i], **args, drop_path=rate) for rate in rates[i]]

        def focus(i: int) -> list[nn.Module]:
            args = {"small_kernel_size": small_kernel_size, "mlp_ratio": focus_mlp_ratios[i],
                    "layer_scale": layer_scale[2 + i], **common}  # fmt: skip
            sizes = dims[2 + i], context_dim, num_heads[i], kernel_sizes[2 + i]
            return [
                ContextBlock(*sizes, **args, is_first=i + j == 0, drop_path=rate) for j, rate in enumerate(rates[4 + i])
            ]

        self.stem = DoubleStem(in_chans, dims[0])
        none, trunk_norm = nn.Identity(), LayerNorm2d(dims[1]) if output_norms else nn.Identity()
        overview = Overview(dims[2], dims[3], context_dim, static(3))
        self.stages = nn.ModuleList([
            Stage(static(0), None, [], none, NormedDownsample(dims[0], dims[1])),
            Stage(static(1), None, [], trunk_norm, NormedDownsample(dims[1], dims[2])),
            Stage(static(2), overview, focus(0), none, ContextDownsample(dims[2], dims[3], context_dim)),
            Stage([], None, focus(1), none, none),
        ])  # fmt: skip
        widths = (*dims[:2], dims[2] + context_dim, dims[3] + context_dim)
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(widths)
        ]
        if output_norms:
            self.output_norms.update({str(i): nn.LayerNorm(widths[i], 1e-6) for i in (0, 2, 3)})
        self.overview_neck = OverviewNeck(dims[3], widths[3]) if overview_neck else None
        self.aux_training = False
        self.num_features = widths[3]
        aux_dim = dims[3] if aux_head else 0
        self.head = ProjectedHead(widths[3], num_classes, global_pool, drop_rate, head_dim, aux_dim)
        self.head_hidden_size = cast(Any, self.head).num_features
        self.apply(init_conv)

    def _run(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor], Tensor | None]:
        """Runs levels 0..last; returns the last map, the features asked for, and the overview."""
        x = self.embed(x)
        taken: dict[int, Tensor] = {}
        overview: Tensor | None = None
        context: Tensor | None = None
        for i, level in enumerate(self.stages):
            if i > last:
                break
            stage = cast(Stage, level)
            if i > 0:
                x = cast(Stage, self.stages[i - 1]).down(x)
            for block in stage.blocks:
                x = self.run_block(block, x)
            x, given = stage.norm(x), context
            if stage.overview is not None:
                overview, context = found = self._look_over(stage.overview, x)
                wide = F.interpolate(found[1], x.shape[2:], mode="bilinear", align_corners=False)
                x, given = torch.cat([x, wide], 1), wide
            for block in stage.focus:
                x = self.run_block(block, x, given)
            if i in take:
                taken[i] = self._feature(i, x, overview)
        return x.permute(0, 2, 3, 1), taken, overview

    def _look_over(self, overview: Overview, x: Tensor) -> tuple[Tensor, Tensor]:
        """The overview of a map, and its context."""
        x = overview.down(x)
        for block in overview.blocks:
            x = self.run_block(block, x)
        return x, overview.proj(x)

    def _feature(self, i: int, x: Tensor, overview: Tensor | None) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        if i < 3 or self.overview_neck is None:
            return x
        normed = self.output_norms["3"](x) if "3" in self.output_norms else x
        return normed + self.overview_neck(cast(Tensor, overview)).permute(0, 2, 3, 1)

    def _normed_feature(self, i: int, x: Tensor, norm: bool) -> Tensor:
        return x if i == 3 and self.overview_neck is not None else super()._normed_feature(i, x, norm)

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        return self._run(x, take, last)[:2]

    def forward(self, x: Tensor) -> Any:
        """Images `(B, C, H, W)` of any size to logits `(B, num_classes)`; see `set_aux_training`."""
        last, overview = self.forward_both(x)
        logits = self.forward_head(last)
        if self.training and self.aux_training and self.head.aux is not None:
            return logits, self.head.aux(overview)
        return logits

    def forward_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images `(B, C, H, W)` to the last map `(B, H / 32, W / 32, C')` and the overview `(B, C'', H / 32, W / 32)`.

        A model pruned to the first two levels has no overview.
        """
        last, _, overview = self._run(x, (), len(self.stages) - 1)
        return last, cast(Tensor, overview)

    def set_aux_training(self, enable: bool = True) -> None:
        """Makes the forward pass in training return `(logits, auxiliary logits)`, whose loss the authors weigh 0.4."""
        self.aux_training = enable

    def fuse(self) -> "OverLoCK":
        """Merges the branches of large convolutions, in place and for good; the same in evaluation. Returns itself."""
        fuse(self)
        return self

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As `VisionModel.prune_intermediate_layers`; also drops the neck where the last level is not asked for."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if 3 not in take:
            self.overview_neck = None
        return take

    def _end_at(self, level: int) -> None:
        cast(Stage, self.stages[level]).down = nn.Identity()
        head, width = self.head, self.feature_info[level]["num_chs"]
        self.num_features = width
        self.head = ProjectedHead(width, self.num_classes, pool_type_of(head), head.drop.p, head.num_features)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay of the learning rate, as timm's regular expressions; `coarse` means by stage."""
        if coarse:
            return {"stem": r"^stem", "blocks": [(r"^(?:stages|output_norms)\.(\d+)", None), (r"^overview_neck", (9,))]}
        last = (99999,)
        early = [(r"^stages\.([01])\.blocks\.(\d+)", None), (r"^stages\.([01])\.(?:norm|down)", last)]
        late = [(r"^stages\.([23])\.focus\.(\d+)", None), (r"^stages\.(2)\.down", last)]
        return {
            "stem": r"^stem",
            "blocks": [*early, (r"^stages\.(2)\.blocks\.(\d+)", None), (r"^output_norms\.([01])", last)],
            "overview": [(r"^stages\.2\.overview\.blocks\.(\d+)", None), (r"^stages\.2\.overview\.down", (0,)),
                         (r"^stages\.2\.overview\.proj", last)],
            "focus": [*late, (r"^output_norms\.([23])", last), (r"^overview_neck", (3, *last))],
        }  # fmt: skip
