# SPDX-License-Identifier: Apache-2.0
"""Hugging Face transformers: Swin (and its copies in Donut, MaskFormer, CLAP), Swin V2, NAT and DiNAT."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.kernels import neighborhood_attention

from ._adapter import Accelerated, Adapter, arguments
from ._windows import attend, bias_table, cosine, split_heads


class SwinLayer(Accelerated):
    """Swin's layer as transformers 4 has it, and the copies of it in transformers 5."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        call = arguments(self, args, kwargs)
        if _asks_more(self, call, _dropout(self)):
            return self._library_class.forward(self, *args, **kwargs)
        inner = self.attention.self
        normed = _enter(self, call)
        project = partial(_project, (inner.query, inner.key, inner.value), inner.num_attention_heads)
        out = _mix(self, project, normed, inner.relative_position_bias_table).flatten(1, 2)
        x = call["hidden_states"] + self.drop_path(self.attention.output(out, normed))
        return (x + self.output(self.intermediate(self.layernorm_after(x))),)


class SwinLayer5(Accelerated):
    """Swin's layer as transformers 5 has it."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        call, inner = arguments(self, args, kwargs), self.attention
        wanted = getattr(inner.config, "output_attentions", False)
        if _asks_more(self, {"output_attentions": wanted, **call}, inner.attention_dropout):
            return self._library_class.forward(self, *args, **kwargs)
        project = partial(_project, (inner.q_proj, inner.k_proj, inner.v_proj), inner.num_attention_heads)
        out = _mix(self, project, _enter(self, call), inner.relative_position_bias.relative_position_bias_table)
        x = call["hidden_states"] + self.drop_path(self.dropout(inner.o_proj(out.flatten(1, 2))))
        return x + self.dropout(self.mlp(self.layernorm_after(x))), None


class SwinV2Layer(Accelerated):
    """`Swinv2Layer`: norms follow the branches."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        call = arguments(self, args, kwargs)
        if _asks_more(self, call, _dropout(self)):
            return self._library_class.forward(self, *args, **kwargs)
        x, inner = call["hidden_states"], self.attention.self
        rows = inner.continuous_position_bias_mlp(inner.relative_coords_table).flatten(0, -2)
        out = _mix(
            self,
            partial(_project_v2, inner),
            x.unflatten(1, tuple(call["input_dimensions"])),
            16 * torch.sigmoid(rows),
            1.0,
        )
        x = x + self.drop_path(self.layernorm_before(self.attention.output(out.flatten(1, 2), x)))
        return (x + self.drop_path(self.layernorm_after(self.output(self.intermediate(x)))),)


class Neighborhoods(Accelerated):
    """`NeighborhoodAttention` of NAT and DiNAT; runs without NATTEN."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        call = arguments(self, args, kwargs)
        if _asks_more(self, call, self.dropout.p):
            return self._library_class.forward(self, *args, **kwargs)
        q, k, v = _project((self.query, self.key, self.value), self.num_attention_heads, call["hidden_states"])
        dilation = getattr(self, "dilation", 1)
        out = neighborhood_attention(q, k, v, self.kernel_size, dilation=dilation, bias=self.rpb)
        return (out.flatten(3),)  # type: ignore[union-attr]


def _asks_more(module: Any, call: dict[str, Any], dropout: float) -> bool:
    """Whether a call needs the attention weights: to return them, to mask heads or to drop some."""
    if call.get("output_attentions") or call.get("head_mask") is not None:
        return True
    return module.training and dropout > 0


def _enter(layer: Any, call: dict[str, Any]) -> Tensor:
    """The normed map `(B, H, W, C)`, after the layer adapted window and shift to its size where it does so."""
    size = tuple(call["input_dimensions"])
    if hasattr(layer, "set_shift_and_window_size") and not call.get("always_partition"):
        layer.set_shift_and_window_size(size)
    return layer.layernorm_before(call["hidden_states"]).unflatten(1, size)


def _mix(layer: Any, project: Any, x: Tensor, rows: Tensor, scale: float | None = None) -> Tensor:
    window, shift = int(layer.window_size), int(layer.shift_size)
    return attend(project, x, (window, window), (shift, shift), bias_table(rows, (window, window)), scale)


def _project(layers: Sequence[nn.Module], heads: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (split_heads(layer(x), heads) for layer in layers)
    return q, k, v


def _project_v2(inner: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = _project((inner.query, inner.key, inner.value), inner.num_attention_heads, x)
    return cosine(q, k, v, inner.logit_scale)


def _dropout(layer: Any) -> float:
    return layer.attention.self.dropout.p


BLOCK = ("window_size", "shift_size", "layernorm_before", "layernorm_after", "drop_path", "attention")
PROJECTIONS = ("num_attention_heads", "query", "key", "value", "dropout.p")
LAYER = (*BLOCK, "intermediate", "output", "attention.output", *(f"attention.self.{part}" for part in PROJECTIONS))
SWIN_COPIES = {
    "swin.modeling_swin": "Swin",
    "donut.modeling_donut_swin": "DonutSwin",
    "maskformer.modeling_maskformer_swin": "MaskFormerSwin",
    "clap.modeling_clap": "ClapAudio",
}
NEIGHBORHOODS = ("dinat.modeling_dinat", "nat.modeling_nat", "deprecated.nat.modeling_nat")


def _layer(file: str, prefix: str, accelerated: type[Accelerated], *parts: str) -> Adapter:
    module = f"transformers.models.{file}"
    inner = {"attention": f"{module}.{prefix}Attention", "attention.self": f"{module}.{prefix}SelfAttention"}
    return Adapter(f"{module}.{prefix}Layer", accelerated, _dropout, parts=(*LAYER, *parts), inner=inner)


ADAPTERS = (
    Adapter(
        "transformers.models.swin.modeling_swin.SwinLayer",
        SwinLayer5,
        lambda layer: layer.attention.attention_dropout,
        parts=(
            *BLOCK,
            "mlp",
            "dropout",
            *(f"attention.{part}" for part in ("num_attention_heads", "q_proj", "k_proj", "v_proj", "o_proj")),
            "attention.relative_position_bias.relative_position_bias_table",
        ),
        inner={
            "attention": "transformers.models.swin.modeling_swin.SwinAttention",
            "attention.relative_position_bias": "transformers.models.swin.modeling_swin.SwinRelativePositionBias",
        },
    ),
    *(
        _layer(file, prefix, SwinLayer, "attention.self.relative_position_bias_table")
        for file, prefix in SWIN_COPIES.items()
    ),
    _layer(
        "swinv2.modeling_swinv2",
        "Swinv2",
        SwinV2Layer,
        *(
            f"attention.self.{part}"
            for part in ("logit_scale", "continuous_position_bias_mlp", "relative_coords_table")
        ),
    ),
    *(
        Adapter(
            f"transformers.models.{file}.NeighborhoodAttention",
            Neighborhoods,
            lambda module: module.dropout.p,
            parts=(*PROJECTIONS, "kernel_size", "rpb"),
            op="neighborhood_attention",
        )
        for file in NEIGHBORHOODS
    ),
)
