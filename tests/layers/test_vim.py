# SPDX-License-Identifier: Apache-2.0
"""Vision Mamba's parts against their definitions: mixer, token order, patches that overlap, rotary positions, taps."""

import pytest
import timm
import torch
import torch.nn.functional as F

from visionattn.layers import (
    ClassTokenEmbedding,
    MiddleTokenEmbedding,
    PatchStem,
    RMSNorm,
    RotaryPosition,
    SelectiveScan,
    create_mixer,
)
from visionattn.models import load_checkpoint

MICRO = {"embed_dim": 16, "depth": 4, "d_state": 3, "patch_size": 16, "img_size": 64}


def drawn(module, dtype=torch.float64):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.to(dtype)


def scanned(branch, x, gate):
    """One direction, written from the paper: `x` and `gate` (L, C) in the order of the scan."""
    taps, length = branch.conv.weight[:, 0], len(x)
    padded = F.pad(x, (0, 0, taps.shape[1] - 1, 0))
    x = torch.stack([(padded[t : t + taps.shape[1]] * taps.T).sum(0) for t in range(length)]) + branch.conv.bias
    x = F.silu(x)
    low, B, C = (x @ branch.x_proj.weight.T).split(branch.split, -1)
    steps = F.softplus(low @ branch.dt_weight.T + branch.dt_bias)
    state, out = torch.zeros_like(branch.A_log), []
    for t in range(length):
        state = (-steps[t, :, None] * branch.A_log.exp()).exp() * state + (steps[t] * x[t])[:, None] * B[t]
        out.append((state @ C[t] + branch.D * x[t]) * F.silu(gate[t]))
    return torch.stack(out)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("size", [(3, 5), (1, 2), (1, 1)], ids=str)
def test_mixer_scans_rows_there_and_back(size, average):
    mixer = drawn(SelectiveScan(6, d_state=3, dt_rank=2, average=average))
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    expected = []
    for image in x.flatten(1, 2):
        tokens, gate = (image @ mixer.in_proj.weight.T).chunk(2, -1)
        out = scanned(mixer.scans[0], tokens, gate) + scanned(mixer.scans[1], tokens.flip(0), gate.flip(0)).flip(0)
        expected.append((out / 2 if average else out) @ mixer.out_proj.weight.T)
    expected = torch.stack(expected)
    assert torch.allclose(mixer(x).flatten(1, 2), expected)
    assert torch.allclose(mixer(x.flatten(1, 2), size), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"d_state": 0}, "d_state=0 must"), ({"d_conv": 0}, "d_conv=0 must"), ({"dt_rank": -1}, "dt_rank=-1 must"),
     ({"expansion_ratio": 0.05}, "expansion_ratio=0.05 leaves none of dim=8 channels")],
    ids=str,
)  # fmt: skip
def test_wrong_mixers_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        create_mixer("selective_scan", 8, 1, **change)


def test_steps_and_rates_start_where_the_paper_says():
    model = timm.create_model("va_vim_tiny", **MICRO)
    there, back = model.blocks[0].attn.scans
    steps = F.softplus(there.dt_bias)
    assert (steps >= 1e-4).all() and (steps <= 0.1001).all() and steps.std() > 0
    assert (back.dt_bias == 0).all() and (there.D == 1).all()
    assert torch.allclose(-there.A_log.exp(), -torch.arange(1.0, 4.0).expand(32, 3))
    assert model.blocks[0].attn.out_proj.weight.abs().max() <= 32**-0.5 / 2  # divided by the root of the depth


@pytest.mark.parametrize("size", [(3, 4), (3, 3), (1, 1), (1, 2)], ids=str)
def test_the_class_token_stands_in_the_middle(size):
    embedding = drawn(MiddleTokenEmbedding(5, (3, 4)))
    x = torch.randn(2, *size, 5, dtype=torch.float64)
    usual, tokens = embedding.tokens(x), embedding(x)
    middle = size[0] * size[1] // 2
    expected = torch.cat([usual[:, 1 : 1 + middle], usual[:, :1], usual[:, 1 + middle :]], 1)
    assert torch.equal(tokens, expected) and torch.equal(embedding.class_first(tokens), usual)


def test_patches_overlap_where_the_stride_is_less():
    stem = drawn(PatchStem(3, 4, 6, norm=False, stride=2))
    x = torch.randn(1, 3, 12, 9, dtype=torch.float64)
    got = stem(x)
    assert got.shape == (1, 4, 3, 4) and stem.map_size(12, 9) == (4, 3)
    padded = F.pad(x, (0, 1))
    patch = padded[0, :, 2:8, 4:10]
    assert torch.allclose(got[0, 1, 2], torch.einsum("chw,dchw->d", patch, stem.proj.weight) + stem.proj.bias)
    for size in [(1, 1), (6, 6), (7, 13)]:
        assert stem(torch.randn(1, 3, *size, dtype=torch.float64)).shape[1:3] == stem.map_size(*size)
    with pytest.raises(ValueError, match="stride=7 must be from 1 to patch_size=6"):
        PatchStem(3, 4, 6, stride=7)


def test_rms_norm_divides_by_the_root_mean_square():
    norm = drawn(RMSNorm(6, 1e-3))
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = torch.stack([v / (v.dot(v) / 6 + 1e-3).sqrt() * norm.weight for v in x.reshape(-1, 6)])
    assert torch.allclose(norm(x).reshape(-1, 6), expected)
    assert torch.isfinite(norm.half()(torch.full((1, 6), 6e4, dtype=torch.float16))).all()


def test_rotary_positions_turn_pairs_of_channels():
    rotary, x = RotaryPosition(8, length=6), torch.randn(1, 3, 4, 8, dtype=torch.float64)
    got = rotary(x)
    for i, j, pair in [(i, j, p) for i in range(3) for j in range(4) for p in range(4)]:
        place = i / 3 * 6 if pair < 2 else j / 4 * 6
        angle = torch.tensor(place / 100 ** (pair % 2), dtype=torch.float64)
        a, b = x[0, i, j, 2 * pair : 2 * pair + 2]
        turned = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])
        assert torch.allclose(got[0, i, j, 2 * pair : 2 * pair + 2], turned, atol=1e-6)
    with pytest.raises(ValueError, match="dim=6 must be a multiple of 4"):
        RotaryPosition(6)


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (5, 3)], ids=str)
def test_taps_give_maps_at_four_strides(size):
    args = {**MICRO, "taps": (0, 1, 2, 3), "num_classes": 0}
    model = timm.create_model("va_vim_tiny", features_only=True, out_indices=(0, 1, 2, 3), **args).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    rows, columns = (-(-side // 16) for side in size)
    sizes = [(4 * rows, 4 * columns), (2 * rows, 2 * columns), (rows, columns), (-(-rows // 2), -(-columns // 2))]
    assert [tuple(f.shape[1:]) for f in model(torch.randn(2, 3, *size))] == [(16, *s) for s in sizes]


def test_backbones_stop_and_freeze_at_their_taps():
    args = {**MICRO, "taps": (0, 2), "necks": False, "tap": "residual", "num_classes": 0}
    model = timm.create_model("va_vim_tiny", **args).eval()
    x = torch.randn(1, 3, 64, 64)
    first, second = model.forward_intermediates(x, intermediates_only=True)
    pruned = timm.create_model("va_vim_tiny", **args).eval()
    pruned.load_state_dict(model.state_dict())
    assert pruned.prune_intermediate_layers([0]) == [0]
    assert torch.equal(pruned.forward_intermediates(x, indices=[0], intermediates_only=True)[0], first)
    assert len(pruned.blocks) == 1 and not torch.equal(first, second)
    model.freeze(1)
    assert [all(p.requires_grad for p in block.parameters()) for block in model.blocks] == [False, True, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"taps": (0, 1, 2)}, r"taps=\(0, 1, 2\) must name four blocks of 0..3"),
     ({"taps": (3, 1), "necks": False}, r"taps=\(3, 1\) must name blocks of 0..3 in rising order"),
     ({"taps": (0, 1, 2, 4)}, "in rising order"),
     ({"taps": (0, 1, 2, 3), "tap": "sum"}, "tap='sum' must be one of"),
     ({"taps": (0, 1, 2, 3), "last": "all"}, "last='all' must be one of"),
     ({"class_token": "end"}, "unknown class_token 'end'")],
    ids=str,
)  # fmt: skip
def test_wrong_models_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("va_vim_tiny", **{**MICRO, **change})


def published(model):
    """Entries of a classifier of ours as the authors name those that their backbones read otherwise."""
    entries = dict(model.state_dict())
    table, middle = entries.pop("pos_embed.tokens.table"), 8
    entries["pos_embed"] = torch.cat([table[1 : 1 + middle], table[:1], table[1 + middle :]])[None]
    entries["cls_token"] = entries.pop("pos_embed.tokens.class_token")[None, None]
    return {name.replace("head.fc.", "head."): tensor for name, tensor in entries.items()}


@pytest.mark.parametrize("size", [64, 96])
def test_backbones_start_from_classifiers(size, tmp_path):
    classifier = drawn(timm.create_model("va_vim_tiny", **MICRO), torch.float32).eval()
    torch.save({"model": published(classifier)}, tmp_path / "vim.pth")
    args = {**MICRO, "img_size": size, "taps": (3,), "necks": False, "tap": "residual", "num_classes": 0}
    backbone = timm.create_model("va_vim_tiny", **args).eval()
    load_checkpoint(backbone, tmp_path / "vim.pth")
    assert torch.equal(backbone.blocks[2].attn.in_proj.weight, classifier.blocks[2].attn.in_proj.weight)
    x = torch.randn(1, 3, size, size)
    positions = ClassTokenEmbedding.forward(classifier.pos_embed.tokens, classifier.stem(x))[:, 1:]
    assert torch.allclose(backbone.embed(x).flatten(1, 2), positions, atol=1e-6)
