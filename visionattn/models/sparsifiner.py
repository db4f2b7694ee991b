# SPDX-License-Identifier: Apache-2.0
"""Sparsifiner: DeiT and LV-ViT whose attention computes the pairs of tokens that a predictor finds worth it.

Paper: Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers, arXiv 2303.13755.
Licence: MIT.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.layers import Connectivity, ConvPatchStem, PatchStem, SparsifiedAttention, init_linear, split_class

from ._checkpoint import KeyMap
from ._class_token import ClassTokenHost
from ._reference import translate
from ._registry import Family, Paper, Published, register

PAPER = Paper(
    "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers", "2303.13755"
)


class Sparsifiner(ClassTokenHost):
    """`ClassTokenHost` of sparse predicted attention, which may also drop tokens on the way.

    Dropped tokens become zeros, so that features stay maps.

    Args:
        token_keep_rates: For each block the share of all tokens that it keeps, those that the class token attends to
            most; None where it drops none.
        branch_scale: Factor on the branches of the blocks.
        dense_head: Whether a second classifier reads every token, and half of its largest logits count.
        **kwargs: Of `ClassTokenHost`.

    Raises:
        ValueError: If there is not one entry of `token_keep_rates` for each block, or one is not in (0, 1].
    """

    def __init__(
        self,
        token_keep_rates: Sequence[float | None] | None = None,
        branch_scale: float = 1.0,
        dense_head: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        rates = [None] * len(self.blocks) if token_keep_rates is None else list(token_keep_rates)
        if len(rates) != len(self.blocks) or any(rate is not None and not 0 < rate <= 1 for rate in rates):
            raise ValueError(f"token_keep_rates={rates} must give each of the {len(self.blocks)} blocks None or (0, 1]")
        self.token_keep_rates = rates
        self.dense_head: nn.Module | None = None
        self.has_dense_head = dense_head
        self._add_dense_head()
        if branch_scale != 1:
            for block in self.blocks:
                block.scale1 = block.scale2 = Factor(branch_scale)

    def _add_dense_head(self) -> None:
        has_classes = self.has_dense_head and self.num_classes > 0
        self.dense_head = nn.Linear(self.num_features, self.num_classes) if has_classes else None
        if self.dense_head is not None:
            init_linear(self.dense_head)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifiers; see `VisionModel.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        self._add_dense_head()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits `(B, num_classes)`, or to the pooled features before the classifier."""
        logits = self.head(x, pre_logits=pre_logits)
        if pre_logits or self.dense_head is None:
            return logits
        return logits + 0.5 * self.dense_head(x[:, 1:]).amax(1)

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        if not any(rate is not None for rate in self.token_keep_rates):
            return super()._walk(x, take, last)
        tokens = self.embed(x)
        stem, step = cast(PatchStem, self.stem), cast(Any, self._pruned)
        size = stem.map_size(x.shape[2], x.shape[3])
        kept: Tensor | None = None
        taken: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[: last + 1]):
            tokens, kept = self.run_block(step, tokens, block, size, kept, self.token_keep_rates[i])
            if i in take:
                taken[i] = split_class(tokens, size)[1]
        return tokens, taken

    @staticmethod
    def _pruned(
        x: Tensor, block: Any, size: tuple[int, int], kept: Tensor | None, rate: float | None
    ) -> tuple[Tensor, Tensor | None]:
        """One block, after which tokens that are not kept are zero; and which ones are, `(B, N)`."""
        branch, attention = block.attn.attend(block.norm1(x), size, kept)
        x = x + block.drop_path(block.scale1(branch))
        if rate is not None:
            kept = best_tokens(attention, kept, math.ceil(rate * (x.shape[1] - 1)))
        x = x + block.drop_path(block.scale2(block.mlp(block.norm2(x))))
        return (x, None) if kept is None else (x * kept[..., None], kept)


class Factor(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Any tensor to one of its shape."""
        return x * self.factor


def best_tokens(attention: Tensor, kept: Tensor | None, count: int) -> Tensor:
    """Which tokens `(B, N)` are the class token or among the `count` others, kept so far, that it attends to most."""
    scores = attention.detach() if kept is None else attention.detach().masked_fill(~kept, -math.inf)
    order = scores[:, 1:].topk(count, -1).indices + 1
    best = attention.new_zeros(attention.shape, dtype=torch.bool).scatter(1, order, True)
    best[:, 0] = True
    return best


def sparsifiner(
    dim: int = 384,
    depth: int = 12,
    num_heads: int = 6,
    img_size: int | tuple[int, int] = 224,
    patch_size: int = 16,
    keep_rates: float | Sequence[float] = 0.25,
    attention: Mapping[str, Any] | None = None,
    conv_stem: bool = False,
    qkv_bias: bool = True,
    qk_scale: float | None = None,
    mixer: str | Sequence[str] = "sparsified",
    mixer_args: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Sparsifiner:
    """Vision transformer with a class token and predicted sparse attention.

    Args:
        dim: Channels of the tokens.
        depth: Number of blocks.
        num_heads: Attention heads.
        img_size: Side or `(height, width)` of the images that tables are made for. Images of other sizes are taken too.
        patch_size: Side of a patch.
        keep_rates: Share of the keys that a token attends to; or one a block.
        attention: More arguments of `SparsifiedAttention`.
        conv_stem: Whether patches are made by four convolutions, as LV-ViT has it.
        qkv_bias: Whether the qkv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        mixer: Another token mixer, as `Isotropic` takes it; then `mixer_args` are its arguments.
        mixer_args: Arguments of another mixer.
        **kwargs: Of `Sparsifiner`.

    Raises:
        ValueError: If there is not one entry of `keep_rates` for each block, or a size is not positive.
    """
    rates = [keep_rates] * depth if isinstance(keep_rates, float | int) else list(keep_rates)
    if len(rates) != depth:
        raise ValueError(f"keep_rates={rates} must have one entry for each of the {depth} blocks")
    if patch_size < 1 or min(to_2tuple(img_size)) < 1:
        raise ValueError(f"img_size={img_size} and patch_size={patch_size} must be positive")
    height, width = (-(-side // patch_size) for side in to_2tuple(img_size))
    shared = {"map_size": (height, width), "qkv_bias": qkv_bias, "qk_scale": qk_scale, "class_token": True}

    def args_of(block: int) -> dict[str, Any]:
        return {**shared, "keep_rate": rates[block], **(attention or {})}

    model = Sparsifiner(
        depth=depth,
        dim=dim,
        num_heads=num_heads,
        map_size=(height, width),
        patch_size=patch_size,
        mixer=mixer,
        mixer_args=args_of if mixer == "sparsified" else mixer_args,
        **kwargs,
    )
    if conv_stem:
        model.stem = ConvPatchStem(model.in_chans, dim, patch_size)
    return model


def _flat(table: Tensor, target: Tensor) -> Tensor:
    return table.reshape(target.shape) if table.numel() == target.numel() else table[0]


KEYS = (
    (r"^patch_embed\.", "stem."),
    (r"^cls_token$", "pos_embed.class_token", _flat),
    (r"^pos_embed$", "pos_embed.table", _flat),
    (r"\.mask_predictor\.proj_c_([qk])\.", r".predictor.\1."),
    (r"\.mask_predictor\.proj_n$", ".predictor.down"),
    (r"\.mask_predictor\.proj_back_n$", ".predictor.up"),
    (r"^head\.", "head.fc."),
    (r"^aux_head\.", "dense_head."),
)
# The authors start from dense weights, which lack predictors.
AUTHORS = KeyMap("Sparsifiner", KEYS, optional=(r"\.attn\.predictor\.",))


def _from_reference(record: Mapping[str, Any], conv_stem: bool) -> Sparsifiner | None:
    if ("p_emb" in record["config"]) != conv_stem:
        return None
    config = dict(record["config"])
    coefficients, scores = config.pop("BASIS_COEF"), config.pop("ATTN_SCORE")
    attention = {
        "reduce_tokens": config.pop("reduce_n_factor"),
        "reduce_channels": config.pop("reduce_c_factor"),
        "basis_threshold": config.pop("BASIS_THRESHOLD"),
        "top_coefficients": coefficients["TOPK"] if coefficients["USE_TOPK"] else None,
        "coefficient_threshold": max(coefficients["THRESHOLD"], 0.0),
        "score_threshold": None if scores["USE_TOPK"] else scores["THRESHOLD"],
    }
    for name in ("share_inout_proj", "PRUNE_ATTN_MATRIX_ROW"):
        if config.pop(name):
            raise ValueError(f"{name}=True of the reference has no counterpart")
    for name in ("p_emb", "return_dense", "mix_token"):  # what the form says, or of training alone
        config.pop(name, None)
    pruned = config.pop("token_pruning_loc_indicator", None) or [False] * config["depth"]
    rates = config.pop("token_keep_rate_list", [1.0] * config["depth"])
    scale = 1 / config.pop("skip_lam", 1.0)
    args = translate(config, {"depth": "depth", "embed_dim": "dim", "img_size": "img_size",
                              "attn_keep_rate_list": "keep_rates"})  # fmt: skip
    args["token_keep_rates"] = [rate if prunes else None for rate, prunes in zip(rates, pruned, strict=True)]
    return sparsifiner(**{**(LVVIT if conv_stem else {}), **args, "attention": attention, "branch_scale": scale})


def _outputs(model: Sparsifiner, x: Tensor) -> dict[str, Tensor]:
    """What records hold: besides the logits, predictions, masks and tokens."""
    seen: list[tuple[SparsifiedAttention, Tensor | None, Connectivity]] = []
    handles = []
    for block in model.blocks:
        attn: Any = block.attn
        hook = lambda m, given, found, attn=attn: seen.append((attn, given[3], found))  # noqa: E731
        handles.append(attn.predictor.register_forward_hook(hook))
    try:
        tokens, maps = model.forward_intermediates(x, output_fmt="NHWC")
    finally:
        for handle in handles:
            handle.remove()
    patches = tokens[:, 1:]
    outputs = {"logits": model.forward_head(tokens)}
    outputs["tokens"] = patches if model.dense_head is None else model.dense_head(patches)
    for i, (attn, kept, prediction) in enumerate(seen):
        # Of dropped tokens anything may be chosen.
        rows = 1.0 if kept is None else kept[:, None, 1:, None]
        mask = attn.mask(prediction.scores, kept).to(x.dtype) * rows
        outputs[f"approx_attn.{i}"] = prediction.scores * rows
        outputs[f"attn_mask.{i}"] = nn.functional.pad(mask, (0, 0, 1, 0), value=1.0)
        outputs[f"token_mask.{i}"] = maps[i].flatten(1, 2).ne(0).any(-1).to(x.dtype)
    return outputs


LVVIT: dict[str, Any] = {
    "depth": 16, "qkv_bias": False, "mlp_ratio": 3.0, "norm_eps": 1e-5, "branch_scale": 0.5, "conv_stem": True,
    "dense_head": True,
}  # fmt: skip
VARIANTS = {"va_sparsifiner_deit_small": {"depth": 12}}
LVVIT_VARIANTS = {"va_sparsifiner_lvvit_small": LVVIT}
START = "None were published: training starts from the dense weights of {}, which load, without a predictor"
WEIGHTS = {"va_sparsifiner_deit_small.untrained": Published("sparsifiner", "", note=START.format("DeiT-S"))}
LVVIT_WEIGHTS = {
    "va_sparsifiner_lvvit_small.untrained": Published("sparsifiner_lvvit", "", note=START.format("LV-ViT-S"))
}
MICRO: dict[str, Any] = {"dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}
ORIGIN = "https://github.com/lim142857/Sparsifiner"
SPARSIFINER = Family(
    "sparsifiner", "Sparsifiner", (PAPER,), "mit", ORIGIN, sparsifiner, (AUTHORS,), "sparsifiner",
    partial(_from_reference, conv_stem=False), micros={"va_sparsifiner_deit_small": MICRO}, outputs=_outputs,
)  # fmt: skip
SPARSIFINER_LVVIT = Family(
    "sparsifiner_lvvit", "Sparsifiner of LV-ViT", (PAPER,), "mit", ORIGIN, sparsifiner, (AUTHORS,), "sparsifiner",
    partial(_from_reference, conv_stem=True), "stem.conv1", {"va_sparsifiner_lvvit_small": MICRO}, outputs=_outputs,
)  # fmt: skip
register(__name__, SPARSIFINER, VARIANTS, WEIGHTS)
register(__name__, SPARSIFINER_LVVIT, LVVIT_VARIANTS, LVVIT_WEIGHTS)
