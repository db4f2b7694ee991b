# SPDX-License-Identifier: Apache-2.0
"""PyramidTNT: a pyramid of sentences with words inside, strides 8 to 64, on a stem of convolutions.

Paper: PyramidTNT: Improved Transformer-in-Transformer Baselines with Pyramid Architecture, arXiv 2201.00978.
Licence: Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.kernels.pattern import ceil_div
from visionattn.layers import PairBias, WordMerging, WordPath, WordPositions, WordStem, init_conv_fan_out, init_linear

from ._checkpoint import KeyMap, grid_of
from ._pyramid import Pyramid, Stage
from ._reference import translate
from ._registry import Family, Paper, Published, register
from .swin import position_planes

PAPER = Paper("PyramidTNT: Improved Transformer-in-Transformer Baselines with Pyramid Architecture", "2201.00978")
MANY = 6  # stages of more blocks have a second one with words


class PyramidTNT(Pyramid):
    """`Pyramid` of sentences; the first blocks of each stage also mix the words inside them, and listen to these.

    Features are the maps of sentences, at strides 8, 16, 32, 64.

    Args:
        depths: Blocks of each stage.
        dims: Channels of the sentences of each stage.
        num_heads: Heads of the sentences of each stage.
        word_dims: Channels of the words of each stage.
        word_heads: Heads of the words of each stage.
        reductions: Side of the patches of each stage that keys of sentences average.
        img_size: Side or `(height, width)` of the images that position and bias tables are made for. Images of other
            sizes are taken too.
        in_chans: Channels of the image.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        qk_scale: Factor on the sentences' logits; None means `head_dim ** -0.5`.
        mlp_ratio: Hidden width of the MLPs over the channels.
        proj_drop_rate: Dropout after positions, attention projections and in MLPs.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If lengths differ, or `img_size` is not positive.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 6, 3, 2),
        dims: Sequence[int] = (80, 160, 320, 320),
        num_heads: Sequence[int] = (2, 4, 8, 8),
        word_dims: Sequence[int] = (5, 10, 20, 20),
        word_heads: Sequence[int] = (1, 2, 4, 4),
        reductions: Sequence[int] = (4, 2, 1, 1),
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        for name, values in (("word_dims", word_dims), ("word_heads", word_heads), ("reductions", reductions)):
            if len(values) != len(depths):
                raise ValueError(f"{name}={tuple(values)} must have one entry for each of the {len(depths)} stages")
        if min(to_2tuple(img_size)) < 1:
            raise ValueError(f"img_size={img_size} must be positive")

        def averaged(stage: int, block: int) -> dict[str, Any]:
            return {"reduction": reductions[stage], "qkv_bias": qkv_bias, "qk_scale": qk_scale}

        super().__init__(
            depths, dims, num_heads, in_chans, stem="patch", stem_args={"patch_size": WordStem.stride},
            downsample_args={"bias": True, "norm_first": True}, mixers="averaged", mixer_args=averaged,
            mlp_ratio=mlp_ratio, proj_drop_rate=proj_drop_rate, **kwargs,
        )  # fmt: skip
        grid = tuple(ceil_div(side, WordStem.stride) for side in to_2tuple(img_size))
        self.stem = WordStem(in_chans, dims[0], word_dims[0])
        self.pos_embed = WordPositions(dims[0], word_dims[0], (grid[0], grid[1]), proj_drop_rate)
        self.pos_drop = nn.Identity()
        for i, stage in enumerate(cast(Sequence[Stage], self.stages)):
            size = (ceil_div(grid[0], 2**i), ceil_div(grid[1], 2**i))
            stage.position = PairBias(num_heads[i], size, reductions[i])
            if i + 1 < len(depths):
                stage.down = WordMerging(stage.down, word_dims[i], word_dims[i + 1])
            for block in cast(Sequence[Any], stage.blocks)[: 2 if depths[i] > MANY else 1]:
                rate = getattr(block.drop_path, "drop_prob", 0.0)
                sizes = (word_dims[i], dims[i], word_heads[i], mlp_ratio)
                block.words = WordPath(*sizes, qkv_bias, proj_drop_rate, rate)
                block.words.apply(init_linear)
        self.apply(init_conv_fan_out)

    def run_level(self, level: nn.Module, x: Any) -> Any:
        """Runs the blocks of one stage on sentences and words."""
        stage, (sentences, words) = cast(Stage, level), x
        bias = stage.position((sentences.shape[1], sentences.shape[2]))
        for block in cast(Sequence[Any], stage.blocks):
            if hasattr(block, "words"):
                sentences, words = self.run_block(block.words, sentences, words)
            sentences = self.run_block(block, sentences, bias)  # which blocks hand on to their mixers
        return sentences, words

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Runs stages 0..last; returns the last map of sentences and those asked for."""
        (sentences, _), taken = super()._walk(x, take, last)  # type: ignore[misc]
        return sentences, {i: pair[0] for i, pair in taken.items()}


def _pairs(table: Tensor, target: Tensor) -> Tensor:
    """`(1, heads, pixels, keys)` to `(heads, h, w, key h, key w)` of the target's maps, or of square ones."""
    if table.ndim != 4:
        return table
    _, height, width, rows, columns = target.shape
    queries, keys = grid_of(table.shape[2], (height, width)), grid_of(table.shape[3], (rows, columns))
    return table if queries is None or keys is None else table[0].unflatten(2, keys).unflatten(1, queries)


KEYS = (
    (r"^outer_pos$", "pos_embed.table", position_planes),
    (r"^inner_pos$", "pos_embed.words", lambda tensor, target: tensor.flatten(0, -2)),
    (r"^patch_embed\.common_conv\.", "stem.common."),
    (r"^patch_embed\.inner_convs\.", "stem.words."),
    (r"^patch_embed\.outer_convs\.", "stem.sentences."),
    (r"^word_merges\.(\d)\.norm\.", r"stages.\1.down.norm."),
    (r"^word_merges\.(\d)\.conv\.0\.", r"stages.\1.down.words."),
    (r"^sentence_merges\.(\d)\.norm\.", r"stages.\1.down.sentences.norm."),
    (r"^sentence_merges\.(\d)\.conv\.0\.", r"stages.\1.down.sentences.reduction."),
    (r"\.relative_pos$", ".position.table", _pairs),
    (r"\.inner_", ".words."),
    (r"(\.blocks\.\d+)\.proj", r"\1.words.proj"),
    (r"\.outer_", "."),
    (r"\.attn\.linear\.", ".attn.sr."),
    (r"^head\.", "head.fc."),
)


def _from_reference(record: Mapping[str, Any]) -> PyramidTNT:
    config = dict(record["config"])
    sizes = config.pop("configs")
    args = translate(config, {"img_size": "img_size"})
    return PyramidTNT(
        sizes["depths"], sizes["outer_dims"], sizes["outer_heads"], sizes["inner_dims"], sizes["inner_heads"], **args
    )


def _sizes(depths: Sequence[int], dim: int, heads: int, word_dim: int, word_heads: int, **more: Any) -> dict[str, Any]:
    """Arguments of a variant; widths and heads grow by the same factors from stage to stage."""
    grown = {"dims": dim, "num_heads": heads, "word_dims": word_dim, "word_heads": word_heads}
    shared = {name: tuple(first * factor for factor in (1, 2, 4, 4)) for name, first in grown.items()}
    return {"depths": depths, **shared, "drop_path_rate": 0.1, **more}


VARIANTS: dict[str, dict[str, Any]] = {
    "va_pyramid_tnt_tiny": _sizes((2, 6, 3, 2), 80, 2, 5, 1, img_size=192),
    "va_pyramid_tnt_small": _sizes((2, 8, 4, 2), 128, 4, 8, 2),
    "va_pyramid_tnt_medium": _sizes((2, 8, 6, 2), 192, 4, 12, 2),
    "va_pyramid_tnt_base": _sizes((2, 10, 6, 2), 256, 4, 16, 2),
}
NOTE = "The files are on a disk that asks for a password: {}"


def _row(size: str, side: int, page: str, password: str, *figures: float) -> Published:
    params, gflops, top1 = figures
    half = (0.5, 0.5, 0.5)
    return Published(
        f"ptnt_{size}_patch16_{side}", f"https://pan.baidu.com/s/{page}", top1, None, params, gflops, side,
        is_page=True, note=NOTE.format(password), mean=half, std=half,
    )  # fmt: skip


WEIGHTS = {
    "va_pyramid_tnt_tiny.in1k": _row("ti", 192, "1xm3DSGcAJbvFQm4jmDAlnQ", "0r5t", 10.6, 0.6, 75.2),
    "va_pyramid_tnt_small.in1k": _row("s", 256, "1xha8x3DTlPq9-KeC6EPPow", "v5w5", 32.0, 3.3, 82.0),
    "va_pyramid_tnt_medium.in1k": _row("m", 256, "1B9zkWkrUAETuiyr08ClY-w", "jqm3", 85.0, 8.2, 83.5),
    "va_pyramid_tnt_base.in1k": _row("b", 256, "1tT0mxRrZQx6facYsdPBt0g", "ns4t", 157.0, 16.0, 84.1),
}
MICRO: dict[str, Any] = {
    "depths": (1, 2, 1), "dims": (16, 24, 32), "num_heads": (2, 2, 4), "word_dims": (4, 4, 8), "word_heads": (1, 2, 2),
    "reductions": (2, 1, 1), "mlp_ratio": 2.0, "img_size": 64,
}  # fmt: skip
PYRAMID_TNT = Family(
    "pyramid_tnt", "PyramidTNT", (PAPER,), "apache-2.0", "https://github.com/huawei-noah/Efficient-AI-Backbones",
    PyramidTNT, (KeyMap("PyramidTNT", KEYS),), "pyramid_tnt", _from_reference, "stem.common.0",
    {"va_pyramid_tnt_tiny": MICRO},
)  # fmt: skip
register(__name__, PYRAMID_TNT, VARIANTS, WEIGHTS)
