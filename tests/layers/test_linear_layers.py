# SPDX-License-Identifier: Apache-2.0
"""Mixers of linear cost, and the parts of their hosts, against their definitions; maps of any size; bad arguments."""

import pickle
import sys
import types

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from visionattn.layers import (
    AgentAttention,
    Block,
    ClassTokenEmbedding,
    FocusedLinearAttention,
    InlineAttention,
    PatchDownsample,
    PositionedDownsample,
    TokenAttention,
    create_mixer,
)
from visionattn.layers.head import TokenHead
from visionattn.layers.inline import convolve_samples
from visionattn.layers.linear_mixer import depthwise
from visionattn.layers.pooling import average_cells
from visionattn.models import convert, read_checkpoint

SIZES = [(7, 11), (5, 3), (1, 6), (1, 1)]
MAPS = {
    "agent": {"num_agents": 4, "map_size": 5},
    "agent-grid": {"num_agents": 4, "map_size": 5, "agent_grid": (3, 2)},
    "agent-stripes": {"num_agents": 4, "map_size": 6, "stripe_width": 2},
    "agent-reduced": {"num_agents": 4, "map_size": 6, "reduction": 2},
    "focused_linear": {"map_size": 5, "kernel_size": 3},
    "focused_linear-reduced": {"map_size": 6, "reduction": 2, "local_values": True},
    "inline": {"local_values": True},
    "inline-unpacked": {"reduction": 1},
}


def drawn(layer, dtype=torch.float64):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.to(dtype)


def maps(*size, dim=12, batch=2, dtype=torch.float64):
    return torch.randn(batch, *size, dim, dtype=dtype)


def make(key, dtype=torch.float64):
    return drawn(create_mixer(key.split("-")[0], 12, 2, **MAPS[key]), dtype)


@pytest.mark.parametrize("key", MAPS)
def test_maps_of_any_size_are_mixed_image_by_image(key):
    layer = make(key)
    for size in SIZES:
        x = maps(*size)
        out = layer(x)
        assert out.shape == x.shape and torch.isfinite(out).all()
        assert torch.allclose(layer(x[1:]), out[1:])
        assert layer.attention_macs(*size) > 0


@pytest.mark.parametrize("key", MAPS)
def test_half_precision_and_autocast_stay_close(key):
    layer, x = make(key, torch.float32), maps(7, 11, dtype=torch.float32)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    for out in (mixed, half):
        assert (out.float() - exact).norm() <= 0.05 * exact.norm()


def test_biases_of_agents_are_resized_to_the_map_and_the_agents():
    positions = drawn(AgentAttention(8, 2, 4, map_size=(5, 6), agent_grid=(3, 2))).positions[0]
    keys, queries = positions((4, 9), (4, 9))
    assert keys.shape == (2, 6, 36) and queries.shape == (2, 36, 6)

    def resized(table, rows, columns):
        terms = rows[..., None] + columns[:, :, None]  # each pair of tables is resized as the map it makes
        parts = [F.interpolate(t, size=(4, 9), mode="bilinear") for t in (table, terms)]
        planes = sum(parts).flatten(2).transpose(1, 2).unflatten(2, (2, 2))
        return F.interpolate(planes, size=(3, 2), mode="bilinear").flatten(2).transpose(1, 2)

    p = positions
    assert torch.allclose(keys, resized(p.key_table, p.key_rows, p.key_columns))
    assert torch.allclose(queries.transpose(1, 2), resized(p.query_table, p.query_rows, p.query_columns))


def test_agents_of_a_stripe_know_that_stripe_alone():
    layer, x = drawn(AgentAttention(12, 2, 4, map_size=6, stripe_width=2)), maps(6, 6)
    q, k, v = layer.project_in(x)
    parts = [[layer.attend(0, *(t[:, :, i : i + 2, :1] for t in (q, k, v))) for i in (0, 2, 4)],
             [layer.attend(1, *(t[:, i : i + 2, :, 1:] for t in (q, k, v))) for i in (0, 2, 4)]]  # fmt: skip
    expected = torch.cat([torch.cat(parts[0], 2), torch.cat(parts[1], 1)], 3)
    assert torch.allclose(layer(x), layer.project_out(expected))


@pytest.mark.parametrize("kind", [AgentAttention, InlineAttention])
def test_the_class_token_is_a_key_and_a_query_but_no_pixel(kind):
    args = {"num_agents": 4, "map_size": (4, 5)} if kind is AgentAttention else {}
    layer, x = drawn(kind(12, 2, class_token=True, **args)), maps(21)
    out = layer(x, (4, 5))
    assert out.shape == x.shape
    # The convolution sees pixels alone: without its kernels all changes come by attention.
    changed = x.clone()
    changed[:, 0] += 1
    assert not torch.allclose(layer(changed, (4, 5))[:, 1:], out[:, 1:])
    q, k, v = layer.project_in(x)
    if kind is AgentAttention:
        pixels = average_cells(q[:, 1:].flatten(2).unflatten(1, (4, 5)), (2, 2)).flatten(1, 2)
        assert torch.allclose(layer._agents(q[:, 1:].unflatten(1, (4, 5))).flatten(2), pixels)
    with torch.no_grad():
        for conv in getattr(layer, "lepe", []):
            conv.weight.zero_(), conv.bias.zero_()
    attended = layer.attend_tokens(q, k, v, *([(4, 5)] if kind is AgentAttention else []))
    assert torch.allclose(layer(x, (4, 5))[:, 0], layer.project_out(attended)[:, 0])


def test_tokens_attend_to_all_tokens():
    layer, x = drawn(TokenAttention(12, 2)), maps(7)
    q, k, v = layer.qkv(x).chunk(3, -1)
    heads = []
    for h in (slice(0, 6), slice(6, 12)):
        heads.append((q[..., h] @ k[..., h].transpose(1, 2) * 6**-0.5).softmax(-1) @ v[..., h])
    expected = layer.proj(torch.cat(heads, -1))
    assert torch.allclose(layer(x, (2, 3)), expected)
    assert torch.allclose(layer(x[:, 1:].unflatten(1, (2, 3))).flatten(1, 2), layer(x[:, 1:], (2, 3)))


def test_heads_share_the_kernels_of_focused_attention():
    layer, v = drawn(FocusedLinearAttention(12, 3, kernel_size=3, map_size=4)), maps(5, 6).unflatten(-1, (3, 4))
    out = depthwise(v, layer.local)
    for head in range(3):
        expected = layer.local(v[..., head, :].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        assert torch.allclose(out[..., head, :], expected)


def test_convolution_of_samples_is_a_grouped_one():
    x, taps = maps(5, 4, dim=3), torch.randn(2, 3, 9, dtype=torch.float64)
    planes = x.permute(0, 3, 1, 2).reshape(1, 6, 5, 4)
    grouped = F.conv2d(planes, taps.reshape(6, 1, 3, 3), padding=1, groups=6)
    assert torch.allclose(convolve_samples(x, taps), grouped.reshape(2, 3, 5, 4).permute(0, 2, 3, 1))


def test_blocks_hand_their_input_to_mixers_that_take_it():
    mixer = drawn(InlineAttention(12, 2, takes_input=True))
    block, x = drawn(Block(12, mixer, mlp=None)), maps(4, 5)
    assert torch.allclose(block(x), x + mixer(block.norm1(x), x))
    mixer.takes_input = False
    assert not torch.allclose(block(x), x + mixer(block.norm1(x), x) + 1e-3) and block(x).shape == x.shape


@pytest.mark.parametrize(("size", "cells"), [((7, 11), (3, 4)), ((2, 3), (4, 5)), ((1, 1), (2, 2))], ids=str)
def test_cells_are_averaged_as_adaptive_pooling_does(size, cells):
    x = maps(*size)
    expected = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), cells).permute(0, 2, 3, 1)
    assert torch.allclose(average_cells(x, cells), expected)


def test_class_tokens_lead_and_positions_fit_other_maps():
    layer, x = drawn(ClassTokenEmbedding(12, (4, 4))), maps(4, 4)
    tokens = layer(x)
    assert torch.allclose(tokens[:, 0], (layer.class_token + layer.table[0]).expand(2, -1))
    assert torch.allclose(tokens[:, 1:], x.flatten(1, 2) + layer.table[1:])
    with torch.no_grad():
        layer.table[1:] = layer.table[1]
    other = maps(3, 7)
    assert torch.allclose(layer(other)[:, 1:], other.flatten(1, 2) + layer.table[1])


def test_downsamplers_add_positions_resized_bilinearly():
    layer, x = drawn(PositionedDownsample(12, 8, (3, 3))), maps(9, 12)
    table = F.interpolate(layer.position.table[None], size=(4, 6), mode="bilinear")[0].permute(1, 2, 0)
    assert torch.allclose(layer(x), PatchDownsample.forward(layer, x) + table)


def test_token_heads_pool_as_asked():
    x = maps(7)
    for pool, expected in {"token": x[:, 0], "avg": x[:, 1:].mean(1), "max": x[:, 1:].amax(1), "": x}.items():
        head = TokenHead(12, 5, pool, 0.0).double()
        assert torch.allclose(head(x, pre_logits=True), expected)
        assert torch.allclose(head(x), head.fc(expected))
    head.reset(0)
    assert isinstance(head.fc, nn.Identity) and head.pool_type == ""
    with pytest.raises(ValueError, match="global_pool='sum' must be one of"):
        TokenHead(12, 5, "sum", 0.0)


@pytest.mark.parametrize(
    ("kind", "args", "message"),
    [
        (AgentAttention, {"num_agents": 10}, "num_agents=10 must be a positive square number"),
        (AgentAttention, {"num_agents": 0}, "num_agents=0"),
        (AgentAttention, {"map_size": 0}, r"map_size=\(0, 0\) must be positive"),
        (AgentAttention, {"agent_grid": (0, 3)}, r"agent_grid=\(0, 3\)"),
        (AgentAttention, {"stripe_width": 2, "num_heads": 3}, "stripe_width=2 .* even num_heads=3"),
        (AgentAttention, {"stripe_width": 2, "reduction": 2}, "no reduction and no class token"),
        (AgentAttention, {"reduction": 2, "class_token": True}, "reduction=2 must be .* None beside a class token"),
        (FocusedLinearAttention, {"power": 0}, "power=0 must be positive"),
        (FocusedLinearAttention, {"kernel_size": 4}, "kernel_size=4 must be odd"),
        (FocusedLinearAttention, {"reduction": 0}, "reduction=0 must be at least 1"),
        (InlineAttention, {"reduction": 2}, "reduction=2 must be None or 1"),
        (InlineAttention, {"class_token": True, "takes_input": True}, "class_token=True takes neither"),
        (InlineAttention, {"num_heads": 5}, "num_heads=5 must be a positive divisor of dim=12"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(kind, args, message):
    with pytest.raises(ValueError, match=message):
        kind(12, **{"num_heads": 2, **args})


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("va_agent_deit_tiny", {"embed_dim": 16, "num_heads": 2, "depth": 2, "num_agents": (4, 4, 4, 4)}),
        ("va_flatten_pvt_tiny", {"depths": (1, 1), "dims": (8, 8), "num_heads": (1, 2), "linear_blocks": (1, 1),
                                 "reductions": (1, 1), "mlp_ratio": (2, 2)}),
    ],
    ids=["agents", "positions"],
)  # fmt: skip
def test_tables_of_another_image_size_are_resized_on_loading(name, args):
    small, large = (timm.create_model(name, img_size=size, num_classes=3, **args).eval() for size in (64, 96))
    large.load_state_dict(convert(small.state_dict(), large))
    x = torch.randn(1, 3, 96, 96)
    # At load time and at run time tables are resized by the same rule, but for PVT's, which resizes bilinearly.
    if "deit" in name:
        assert torch.allclose(large(x), small(x), atol=1e-5)
    assert torch.isfinite(large(x)).all()


def test_checkpoints_with_a_configuration_node_are_read(tmp_path, monkeypatch):
    class CfgNode(dict):
        """As yacs has it: a dictionary with attributes of its own."""

        def __init__(self, *args):
            super().__init__(*args)
            self.__dict__["__immutable__"] = False

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module = types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    config = CfgNode({"MODEL": CfgNode({"NAME": "agent"}), "SIZES": (1, 2)})
    torch.save({"model": {"w": torch.ones(2)}, "config": config}, tmp_path / "w.pth")
    assert pickle.loads(pickle.dumps(config)) == config
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")
    read = read_checkpoint(tmp_path / "w.pth")
    assert torch.equal(read["model"]["w"], torch.ones(2)) and read["config"]["MODEL"]["NAME"] == "agent"
