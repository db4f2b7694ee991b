# SPDX-License-Identifier: Apache-2.0
"""The hierarchical host: a stem, stages of blocks around any token mixer, a downsampler between stages."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from visionattn.layers import (
    DOWNSAMPLERS,
    STEMS,
    Block,
    ConditionalPosition,
    PositionEmbedding,
    create_mixer,
    create_norm,
    init_linear,
    pick,
    pool_type_of,
)

from ._base import VisionModel, drop_path_rates

# Arguments of the mixer of one block: the same for all, or made from (stage, index of the block in it).
MixerArgs = Mapping[str, Any] | Callable[[int, int], Mapping[str, Any]]
# What makes one block, called as `Block` is; from (stage, index of the block in it).
BlockOf = Callable[[int, int], Callable[..., nn.Module]]

# Arguments of `Pyramid` that ConvNeXt and what grew from it share: patches, norms before them, one after the pooling.
CONVNEXT: dict[str, Any] = {
    "stem": "patch", "stem_args": {"drop_ragged": True, "norm_eps": 1e-6}, "downsample": "patch",
    "downsample_args": {"norm_first": True, "norm_eps": 1e-6}, "norm_eps": 1e-6, "own_last_norm": True,
    "final_norm": False,
}  # fmt: skip


class Stage(nn.Module):
    """Blocks at one resolution, and the downsampler that leads to the next.

    The feature is what the blocks return, normed where `norm` does so; `position` follows the first block.
    """

    def __init__(self, blocks: Sequence[nn.Module], down: nn.Module, position: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.position = position
        self.norm = norm
        self.down = down


class Pyramid(VisionModel):
    """Backbone of stages whose maps halve from one to the next; features at strides 4, 8, 16, 32.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage's mixer.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
        global_pool: Pooling of the head, as timm names it.
        stem: Name of the stem, one of `visionattn.layers.STEMS`.
        stem_args: More arguments of the stem.
        downsample: Name of the downsampler, one of `visionattn.layers.DOWNSAMPLERS`.
        downsample_args: More arguments of the downsamplers: a mapping, or a sequence of one for each.
        mixers: Name of the token mixer, one of `visionattn.layers.MIXERS`; or for each stage a name, or a sequence
            of one for each block. None for blocks of the MLP alone.
        mixer_args: Arguments of the mixers: a mapping, or a function of (stage, block) that returns one.
        mlp_ratio: Hidden width of the MLPs over the channels; or one a stage.
        mlp: Name of the MLPs, one of `visionattn.layers.MLPS`; None for blocks of the mixer alone. Or one a stage.
        layer_scale: Initial value of per-channel factors on the branches; None for no factors. Or one a stage.
        block_positions: Whether a convolution that encodes positions comes first in each block; or one a stage.
        conditional_position: Whether a convolution that encodes positions follows the first block of each stage.
        position_size: `(height, width)` of a learned position table added after the stem; None for none.
        position_mode: How it is resized for other maps, "bicubic" or "bilinear".
        stage_norms: Whether each stage ends in a LayerNorm, whose result is the feature and what the next one reads.
        output_norms: A norm of its own for each stage's output feature, as dense-prediction backbones have; True
            for all stages, or a list of stages. The last stage's is the final norm, unless `own_last_norm`.
        own_last_norm: Whether the last stage's output norm is not the classifier's, which is of another kind.
        final_norm: Whether there is a norm after the last stage.
        final_norm_layer: Name of the final norm, one of `visionattn.layers.NORMS`.
        head: Name of the head, one of `visionattn.layers.HEADS`, or what makes one as they do.
        norm_layer: Name of the norms of blocks and outputs, one of `visionattn.layers.NORMS`.
        norm_eps: Added to the variance by the norms of blocks and outputs.
        input_scale: Initial value of per-channel factors on what branches are added to; None for no factors. Or one a
            stage.
        post_norm: Whether blocks norm what their branches return, not what they read.
        norm_sums: Whether blocks norm the sums of branches and their inputs instead.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the stem, after attention projections and in MLPs.
        drop_path_rate: Drop-path rate of the last block, rising linearly from 0.
        block: Function of (stage, block) that returns a class of blocks, called as `Block` is; None for `Block`.

    Raises:
        ValueError: If the lengths of `depths`, `dims`, `num_heads` and `mixers` differ, or a name is unknown.
    """

    levels_name = "stages"

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        num_heads: Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        stem: str = "conv",
        stem_args: Mapping[str, Any] | None = None,
        downsample: str = "conv",
        downsample_args: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        mixers: str | Sequence[str | None | Sequence[str | None]] = "neighborhood",
        mixer_args: MixerArgs | None = None,
        mlp_ratio: float | Sequence[float] = 4.0,
        mlp: str | None | Sequence[str | None] = "mlp",
        layer_scale: float | None | Sequence[float | None] = None,
        block_positions: bool | Sequence[bool] = False,
        conditional_position: bool = False,
        position_size: tuple[int, int] | None = None,
        position_mode: str = "bicubic",
        stage_norms: bool = False,
        output_norms: bool | Sequence[int] = False,
        own_last_norm: bool = False,
        final_norm: bool = True,
        final_norm_layer: str = "layer",
        head: str | Callable[..., nn.Module] = "linear",
        norm_layer: str = "layer",
        norm_eps: float = 1e-5,
        input_scale: float | None | Sequence[float | None] = None,
        post_norm: bool = False,
        norm_sums: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        block: BlockOf | None = None,
    ) -> None:
        super().__init__(in_chans, num_classes)
        stage_mixers = [mixers] * len(depths) if isinstance(mixers, str) else list(mixers)
        ratios, mlps, scales, led, kept = (
            _per_stage(v, depths) for v in (mlp_ratio, mlp, layer_scale, block_positions, input_scale)
        )
        _check_lengths(
            depths, dims=dims, num_heads=num_heads, mixers=stage_mixers, mlp_ratio=ratios, mlp=mlps, layer_scale=scales,
            block_positions=led, input_scale=kept,
        )  # fmt: skip
        names = _per_block(stage_mixers, depths)
        self.stem = pick("stem", stem, STEMS)(in_chans, dims[0], **(stem_args or {}))
        if position_size is not None:
            self.pos_embed = PositionEmbedding(dims[0], position_size, position_mode)
        self.pos_drop = nn.Dropout(proj_drop_rate)
        self.stages = nn.ModuleList()
        reducer = pick("downsample", downsample, DOWNSAMPLERS)
        down_args = downsample_args if isinstance(downsample_args, Sequence) else [downsample_args or {}] * len(dims)
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (dim, heads, ratio) in enumerate(zip(dims, num_heads, ratios, strict=True)):
            blocks = []
            for j, (name, rate) in enumerate(zip(names[i], rates[i], strict=True)):
                args = mixer_args(i, j) if callable(mixer_args) else (mixer_args or {})
                mixer = None if name is None else create_mixer(name, dim, heads, proj_drop=proj_drop_rate, **args)
                more = {"norm_eps": norm_eps, "post_norm": post_norm, "mlp": mlps[i], "position": led[i],
                        "norm_sums": norm_sums, "norm_layer": norm_layer, "input_scale": kept[i]}  # fmt: skip
                make = Block if block is None else block(i, j)
                blocks.append(make(dim, mixer, ratio, scales[i], proj_drop_rate, rate, **more))
            down = reducer(dim, dims[i + 1], **down_args[i]) if i + 1 < len(dims) else nn.Identity()
            position = ConditionalPosition(dim) if conditional_position else nn.Identity()
            norm = create_norm(norm_layer, dim, norm_eps) if stage_norms else nn.Identity()
            self.stages.append(Stage(blocks, down, position, norm))
        self._name_features(dims)
        self._add_norms(dims, output_norms, own_last_norm, partial(create_norm, norm_layer, eps=norm_eps))
        if final_norm:
            # Batch norms keep their own default, as in the references.
            eps = norm_eps if final_norm_layer == "layer" else 1e-5
            self.norm = create_norm(final_norm_layer, dims[-1], eps)
        self._add_head(dims[-1], global_pool, drop_rate, head)
        self.apply(init_linear)

    def _name_features(self, dims: Sequence[int]) -> None:
        self.feature_info = [
            {"num_chs": dim, "reduction": self.stem.stride * 2**i, "module": f"stages.{i}"}
            for i, dim in enumerate(dims)
        ]

    def _add_norms(
        self, dims: Sequence[int], output_norms: bool | Sequence[int], own_last: bool, norm: Callable[[int], nn.Module]
    ) -> None:
        last = len(dims) - 1
        stages = range(last + 1) if output_norms is True else () if output_norms is False else tuple(output_norms)
        if any(not 0 <= i <= last for i in stages):
            raise ValueError(f"output_norms={output_norms!r} must name stages 0..{last}")
        # The last stage's output norm is the classifier's norm where it can be: one set of weights serves both uses.
        self.norms_last_output = last in stages and not own_last
        self.output_norms.update({str(i): norm(dims[i]) for i in stages if i != last or own_last})

    def advance(self, level: int, x: Tensor) -> Tensor:
        """Downsamples the feature of stage `level`."""
        return cast(Stage, self.stages[level]).down(x)

    def run_level(self, level: nn.Module, x: Tensor) -> Tensor:
        """Runs the blocks of one stage."""
        stage = cast(Stage, level)
        for i, block in enumerate(stage.blocks):
            x = self.run_block(block, x)
            if i == 0:
                x = stage.position(x)
        return stage.norm(x)

    def _takes_final_norm(self, i: int, norm: bool) -> bool:
        return i == len(self.stages) - 1 and (norm or self.norms_last_output)

    def _end_at(self, level: int) -> None:
        # The final norm and the head were made for the channels of a stage that is gone.
        self.stages[level].down = nn.Identity()
        self.norm, self.norms_last_output = nn.Identity(), False
        self._add_head(self.feature_info[level]["num_chs"], pool_type_of(self.head), self.head.drop.p)

    def _drop_final_norm(self, take: Sequence[int]) -> None:
        if not (self.norms_last_output and len(self.stages) - 1 in take):
            self.norm, self.norms_last_output = nn.Identity(), False

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay of the learning rate, as timm's regular expressions; `coarse` means by stage."""
        fine = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.position", (0,)),
            (r"^stages\.(\d+)\.(?:norm|down)", (99999,)),
            (r"^output_norms\.(\d+)", (99999,)),
            (r"^norm", (99999,)),
        ]
        by_stage = [(r"^(?:stages|output_norms)\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem|^pos_embed", "blocks": by_stage if coarse else fine}


def _per_stage(value: Any, depths: Sequence[int]) -> list[Any]:
    """One value for every stage, of one for all or of a sequence of them."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * len(depths)


def _per_block(mixers: Sequence[Any], depths: Sequence[int]) -> list[list[str | None]]:
    """Mixer of every block of every stage."""
    names = [[m] * n if m is None or isinstance(m, str) else list(m) for m, n in zip(mixers, depths, strict=True)]
    if [len(stage) for stage in names] != list(depths):
        raise ValueError(f"mixers={mixers} must give every block one; the stages have {tuple(depths)} blocks")
    return names


def _check_lengths(depths: Sequence[int], **others: Sequence[Any]) -> None:
    if len(depths) == 0 or min(depths) < 1:
        raise ValueError(f"depths={tuple(depths)} must give each stage at least one block")
    for name, values in others.items():
        if len(values) != len(depths):
            raise ValueError(f"{name}={tuple(values)} must have one entry for each of the {len(depths)} stages")
