# SPDX-License-Identifier: Apache-2.0
"""The hierarchical host: a stem, stages of blocks around any token mixer, a downsampler between stages."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from visionattn.layers import DOWNSAMPLERS, STEMS, Block, PositionEmbedding, create_mixer, init_linear, pick

from ._base import VisionModel, drop_path_rates

# Arguments of the mixer of one block: the same for all, or made from (stage, index of the block in it).
MixerArgs = Mapping[str, Any] | Callable[[int, int], Mapping[str, Any]]


class Stage(nn.Module):
    """Blocks at one resolution, and the downsampler that leads to the next; the feature is what the blocks return."""

    def __init__(self, blocks: Sequence[nn.Module], down: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
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
        mixers: Name of the token mixer, one of `visionattn.layers.MIXERS`; or one a stage.
        mixer_args: Arguments of the mixers: a mapping, or a function of (stage, block) that returns one.
        mlp_ratio: Hidden width of the MLPs over the channels.
        layer_scale: Initial value of per-channel factors on the branches; None for no factors.
        position_size: `(height, width)` of a learned position table added after the stem; None for none.
        output_norms: A LayerNorm of its own for each stage's output feature, as dense-prediction backbones have; True
            for all stages, or a list of stages. The last stage's is the final norm.
        final_norm: Whether there is a norm after the last stage.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the stem, after attention projections and in MLPs.
        drop_path_rate: Drop-path rate of the last block, rising linearly from 0.

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
        mixers: str | Sequence[str] = "neighborhood",
        mixer_args: MixerArgs | None = None,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        position_size: tuple[int, int] | None = None,
        output_norms: bool | Sequence[int] = False,
        final_norm: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, num_classes)
        names = [mixers] * len(depths) if isinstance(mixers, str) else list(mixers)
        _check_lengths(depths, dims=dims, num_heads=num_heads, mixers=names)
        self.stem = pick("stem", stem, STEMS)(in_chans, dims[0], **(stem_args or {}))
        self.pos_embed = nn.Identity() if position_size is None else PositionEmbedding(dims[0], position_size)
        self.pos_drop = nn.Dropout(proj_drop_rate)
        self.stages = nn.ModuleList()
        reducer = pick("downsample", downsample, DOWNSAMPLERS)
        rates = drop_path_rates(drop_path_rate, depths)
        for i, (name, dim, heads) in enumerate(zip(names, dims, num_heads, strict=True)):
            blocks = []
            for j, rate in enumerate(rates[i]):
                args = mixer_args(i, j) if callable(mixer_args) else (mixer_args or {})
                mixer = create_mixer(name, dim, heads, proj_drop=proj_drop_rate, **args)
                blocks.append(Block(dim, mixer, mlp_ratio, layer_scale, proj_drop_rate, rate))
            self.stages.append(Stage(blocks, reducer(dim, dims[i + 1]) if i + 1 < len(dims) else nn.Identity()))
        self._name_features(dims)
        self._add_norms(dims, output_norms, final_norm)
        self._add_head(dims[-1], global_pool, drop_rate)
        self.apply(init_linear)

    def _name_features(self, dims: Sequence[int]) -> None:
        self.feature_info = [
            {"num_chs": dim, "reduction": self.stem.stride * 2**i, "module": f"stages.{i}"}
            for i, dim in enumerate(dims)
        ]

    def _add_norms(self, dims: Sequence[int], output_norms: bool | Sequence[int], final_norm: bool) -> None:
        last = len(dims) - 1
        stages = range(last + 1) if output_norms is True else () if output_norms is False else tuple(output_norms)
        if any(not 0 <= i <= last for i in stages):
            raise ValueError(f"output_norms={output_norms!r} must name stages 0..{last}")
        # The last stage's output norm is the classifier's norm, so that one set of weights serves both uses.
        self.norms_last_output = last in stages
        self.output_norms.update({str(i): nn.LayerNorm(dims[i]) for i in stages if i != last})
        self.norm = nn.LayerNorm(dims[last]) if final_norm else nn.Identity()

    def advance(self, level: int, x: Tensor) -> Tensor:
        """Downsamples the feature of stage `level`."""
        return cast(Stage, self.stages[level]).down(x)

    def run_level(self, level: nn.Module, x: Tensor) -> Tensor:
        """Runs the blocks of one stage."""
        for block in cast(Stage, level).blocks:
            x = self.run_block(block, x)
        return x

    def _takes_final_norm(self, i: int, norm: bool) -> bool:
        return i == len(self.stages) - 1 and (norm or self.norms_last_output)

    def _end_at(self, level: int) -> None:
        # The final norm and the head were made for the channels of a stage that is gone.
        self.stages[level].down = nn.Identity()
        self.norm, self.norms_last_output = nn.Identity(), False
        self._add_head(self.feature_info[level]["num_chs"], self.head.global_pool.pool_type, self.head.drop.p)

    def _drop_final_norm(self, take: Sequence[int]) -> None:
        if not (self.norms_last_output and len(self.stages) - 1 in take):
            self.norm, self.norms_last_output = nn.Identity(), False

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers for layer-wise decay of the learning rate, as timm's regular expressions; `coarse` means by stage."""
        fine = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.down", (99999,)),
            (r"^output_norms\.(\d+)", (99999,)),
            (r"^norm", (99999,)),
        ]
        by_stage = [(r"^(?:stages|output_norms)\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem|^pos_embed", "blocks": by_stage if coarse else fine}


def _check_lengths(depths: Sequence[int], **others: Sequence[Any]) -> None:
    if len(depths) == 0 or min(depths) < 1:
        raise ValueError(f"depths={tuple(depths)} must give each stage at least one block")
    for name, values in others.items():
        if len(values) != len(depths):
            raise ValueError(f"{name}={tuple(values)} must have one entry for each of the {len(depths)} stages")
