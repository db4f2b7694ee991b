# SPDX-License-Identifier: Apache-2.0
"""Halo attention and bottleneck attention: as mixers, as layers of CNN blocks, and the networks of both."""

import pytest
import timm
import torch

import visionattn
from visionattn.layers import (
    BottleneckAttention,
    HaloAttention,
    RelativeVectors,
    StridedBottleneckAttention,
    StridedHaloAttention,
    create_mixer,
)
from visionattn.models import Pyramid, convert
from visionattn.models._byob import KEYS
from visionattn.models._macs import count_macs

MIXERS = {
    "halo": dict(block_size=3, halo_size=2),
    "bottleneck": dict(map_size=(4, 5)),
}
SIZES = [(1, 1), (2, 7), (9, 4), (12, 6)]


def redraw(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double()


def attended(q, keys, values, logits_of, scale):
    """Attention of one query: `logits_of` gives each key's relative logit."""
    logits = torch.stack([scale * q @ key + logits_of(n) for n, key in enumerate(keys)])
    return logits.softmax(0) @ torch.stack(values)


def halo_pixel(layer, q, k, v, b, i, u, h, stride=1):
    """Output of one query of a halo layer, read off the definition; keys outside the map are zeros."""
    block, halo = layer.block_size, layer.halo_size
    window, side = block + 2 * halo, block // stride
    tables = layer.pos_embed.height_rel, layer.pos_embed.width_rel
    top, left = i // side * block - halo, u // side * block - halo
    query, places = q[b, i, u, h], [(y, x) for y in range(window) for x in range(window)]
    keys, values = [], []
    for y, x in places:
        inside = 0 <= top + y < k.shape[1] and 0 <= left + x < k.shape[2]
        keys.append(k[b, top + y, left + x, h] if inside else torch.zeros_like(k[0, 0, 0, 0]))
        values.append(v[b, top + y, left + x, h] if inside else torch.zeros_like(v[0, 0, 0, 0]))

    def relative(n):
        y, x = places[n]
        return query @ tables[0][y - i % side + window - 1] + query @ tables[1][x - u % side + window - 1]

    return attended(query, keys, values, relative, layer.scale)


def by_pixel(layer, q, k, v, stride=1):
    """Output `(B, H, W, heads * D)` of a halo layer, query by query."""
    batch, height, width, heads, _ = q.shape
    rows = [[[torch.cat([halo_pixel(layer, q, k, v, b, i, u, h, stride) for h in range(heads)]) for u in range(width)]
             for i in range(height)] for b in range(batch)]  # fmt: skip
    return torch.stack([torch.stack([torch.stack(row) for row in image]) for image in rows])


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (6, 3)], ids=str)
def test_halo_blocks_see_themselves_and_their_halo(size):
    layer = redraw(HaloAttention(8, 2, block_size=3, halo_size=1))
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    expected = layer.proj(by_pixel(layer, *layer.project_in(x)))
    assert torch.allclose(layer(x), expected)


@pytest.mark.parametrize(
    ("args", "stride"),
    [(dict(block_size=4, halo_size=1, stride=2), 2), (dict(block_size=3, halo_size=1, stride=2), 1),
     (dict(block_size=2, halo_size=2, stride=2, avg_down=True), 1), (dict(block_size=2, halo_size=0), 1)],
    ids=["every other query", "odd block", "pooled", "no halo"],
)  # fmt: skip
@pytest.mark.parametrize("size", [(5, 7), (4, 8)], ids=str)
def test_strided_halo_layers_take_any_map(args, stride, size):
    layer = redraw(StridedHaloAttention(6, 8, num_heads=2, head_dim=3, qkv_bias=True, **args))
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    kv = layer.kv(x).permute(0, 2, 3, 1).unflatten(-1, (2, 7))  # a head's key, then its value
    k, v = kv[..., :3], kv[..., 3:]
    q = layer.q(x).permute(0, 2, 3, 1).unflatten(-1, (2, 3))
    expected = by_pixel(layer, q, k, v, stride).permute(0, 3, 1, 2)
    if expected.shape[2] == size[0] and layer(x).shape[2] < size[0]:
        expected = pooled(expected)
    assert torch.allclose(layer(x), expected)
    halved = args.get("stride", 1)
    assert layer(x).shape == (2, 8, *(-(-side // halved) for side in size)) and layer(x).is_contiguous()


def pooled(x):
    """Mean of 2x2 pixels, of those that exist at the end of odd sides."""
    height, width = x.shape[2:]
    rows = [torch.stack([x[:, :, y : y + 2, u : u + 2].mean((2, 3)) for u in range(0, width, 2)], -1)
            for y in range(0, height, 2)]  # fmt: skip
    return torch.stack(rows, -2)


def test_bottleneck_layers_have_queries_keys_and_values_one_after_the_other():
    layer = redraw(StridedBottleneckAttention(6, 8, num_heads=2, map_size=(3, 5), stride=2, head_dim=3))
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    qkv = layer.qkv(x).permute(0, 2, 3, 1)
    q, k, v = (part.unflatten(-1, (2, -1)) for part in qkv.split([6, 6, 8], -1))
    rows, columns = layer.pos_embed.height_rel, layer.pos_embed.width_rel
    places = [(y, x) for y in range(3) for x in range(5)]
    out = torch.empty(2, 3, 5, 2, 4, dtype=torch.float64)
    for b, i, u, h in torch.cartesian_prod(*map(torch.arange, (2, 3, 5, 2))).tolist():
        query = q[b, i, u, h]
        relative = [query @ rows[y - i + 2] + query @ columns[x - u + 4] for y, x in places]
        out[b, i, u, h] = attended(
            query, k[b, :, :, h].flatten(0, 1), list(v[b, :, :, h].flatten(0, 1)), relative.__getitem__, 3**-0.5
        )
    assert torch.allclose(layer(x), pooled(out.flatten(3).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_mixers_take_maps_of_any_size(name, size):
    mixer = redraw(create_mixer(name, 12, 3, **MIXERS[name]))
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    out = mixer(x)
    assert out.shape == x.shape
    assert torch.autograd.gradcheck(mixer, x[:1, :2, :2].detach().requires_grad_())
    assert torch.allclose(mixer(x[1:]), out[1:])


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_work_in_half_precision_and_under_autocast(name):
    mixer = redraw(create_mixer(name, 16, 2, **MIXERS[name]))
    x = torch.randn(2, 6, 7, 16, dtype=torch.float64)
    exact = mixer(x)
    mixer = mixer.float()
    with torch.autocast("cpu", torch.bfloat16):
        out = mixer(x.float())
    assert out.dtype == torch.bfloat16 and (out - exact).norm() <= 0.03 * exact.norm()
    out = mixer.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16 and (out - exact).norm() <= 0.03 * exact.norm()


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_serve_in_any_host_and_their_tables_do_not_decay(name):
    args = dict(depths=(1, 1), dims=(12, 24), num_heads=(2, 2), num_classes=5)
    model = Pyramid(mixers=name, mixer_args=MIXERS[name], **args)
    assert model(torch.randn(2, 3, 61, 75)).shape == (2, 5)
    assert {n.rsplit(".", 1)[1] for n in model.no_weight_decay()} == {"height_rel", "width_rel"}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_mixers_compile_to_one_graph(name):
    torch._dynamo.reset()
    mixer = redraw(create_mixer(name, 8, 2, **MIXERS[name]))
    x = torch.randn(1, 7, 5, 8, dtype=torch.float64)
    assert torch.allclose(torch.compile(mixer, fullgraph=True, backend="aot_eager")(x), mixer(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_mixers_export_with_any_batch_and_size(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    mixer = redraw(create_mixer(name, 8, 2, **MIXERS[name])).float().eval()
    free = (dict.fromkeys(range(3), torch.export.Dim.DYNAMIC),)
    path = tmp_path / "mixer.onnx"
    torch.onnx.export(
        mixer, (torch.randn(2, 6, 8, 8),), path, dynamo=True, dynamic_shapes=free, input_names=["x"]
    )  # fmt: skip
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in [(1, 4, 5), (3, 9, 2), (2, 13, 7)]:
        x = torch.randn(*size, 8)
        (out,) = session.run(None, {"x": x.numpy()})
        assert torch.allclose(torch.from_numpy(out), mixer(x), rtol=1e-4, atol=1e-5), size


def test_vectors_of_another_map_are_resized_along_their_offsets():
    vectors = RelativeVectors((5, 5), 2).double()
    offsets = torch.arange(-4, 5, dtype=torch.float64)
    vectors.height_rel.data = torch.stack([offsets, offsets**2], 1)
    rows, columns = vectors(5, 5)
    assert rows is vectors.height_rel and columns is vectors.width_rel
    rows, columns = vectors(10, 3)
    assert rows.shape == (19, 2) and columns.shape == (5, 2)
    # Offset 0 stays in the middle: what rises with the offset still does, what is even or odd in it still is.
    assert (rows[:, 0].diff() > 0).all() and torch.allclose(rows[:, 0], -rows.flip(0)[:, 0])
    assert torch.allclose(rows[:, 1], rows.flip(0)[:, 1])


def test_weights_of_another_image_size_load_with_resized_tables():
    args = visionattn.models.FAMILIES["botnet"].micros["va_botnet26t"]
    small, large = (timm.create_model("va_botnet26t", **{**args, "img_size": side}).eval() for side in (64, 128))
    before = large.stages[2][0].self_attn.pos_embed.height_rel.clone()
    large.load_state_dict(convert(small.state_dict(), large, [KEYS]))
    assert before.shape[0] == 31 and not torch.equal(large.stages[2][0].self_attn.pos_embed.height_rel, before)
    image = torch.randn(1, 3, 128, 128)
    assert torch.allclose(large(image), small(image), rtol=1e-4, atol=1e-5)
    tables = {n: t[:, 1:] if "height_rel" in n else t for n, t in small.state_dict().items()}
    with pytest.raises(ValueError, match="1 mis-shaped"):
        convert(tables, large, [KEYS])
    with pytest.raises(ValueError, match="2 mis-shaped"):
        convert(small.state_dict(), large, [KEYS], resize=False)


def test_weights_start_as_published():
    model = timm.create_model("va_halo2botnet50ts")
    for name, parameter in model.named_parameters():
        if "self_attn" in name:
            wanted = parameter.shape[1] ** -0.5  # fan-in of a projection, head size of a table
            assert parameter.std().item() == pytest.approx(wanted, rel=0.15), name
        if name.endswith("conv3_1x1.bn.weight"):
            assert (parameter == 0).all()


# Products of attention, relative logits and convolutions at 256 pixels, in billions.
MACS = {
    "va_botnet26t": 3.29,
    "va_botnet50ts": 5.50,
    "va_sebotnet33ts": 3.85,
    "va_eca_botnext26ts": 2.44,
    "va_halo2botnet50ts": 4.98,
}


@pytest.mark.parametrize("name", MACS)
def test_multiply_accumulates_are_the_definition_s(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(count_macs(model, (3, 256, 256)) / 1e9, 2) == MACS[name]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HaloAttention(8, 3), "num_heads=3 must be a positive divisor of dim=8"),
        (lambda: HaloAttention(8, 2, block_size=0), "block_size=0 must be at least 1"),
        (lambda: HaloAttention(8, 2, halo_size=-1), "halo_size=-1 must be at least 0"),
        (lambda: BottleneckAttention(8, 2, map_size=0), r"size \(0, 0\) must be positive"),
        (lambda: StridedHaloAttention(8, 6, num_heads=4), "num_heads=4 must be a positive divisor of dim_out=6"),
        (lambda: StridedHaloAttention(8, stride=3), "stride=3 must be 1 or 2"),
        (lambda: StridedHaloAttention(16, num_heads=16, qk_ratio=0.1), "head_dim=0 must be at least 1"),
        (lambda: StridedBottleneckAttention(8, map_size=(4, 0)), r"size \(4, 0\) must be positive"),
        (lambda: create("va_halonet26t", stages=(("cx", 16),)), "unknown kind of block 'x'; known: c, h, g"),
        (lambda: create("va_halonet26t", stages=(("", 16),)), "must have a letter for each block"),
        (lambda: create("va_halonet26t", stages=()), r"stages=\(\) must have at least one stage"),
        (lambda: create("va_halonet26t", stem_type="5x5"), "stem_type='5x5' must be one of 'tiered', '7x7', '3x3'"),
        (lambda: create("va_halonet26t", drop_path_rate=1.0), "drop_path_rate=1.0"),
        (lambda: create("va_botnet26t", img_size=16), "img_size leaves a map of .* use a larger one"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def create(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)
