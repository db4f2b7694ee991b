# SPDX-License-Identifier: Apache-2.0
"""Gates, and what they are put into: timm's CNNs keep everything that timm promises of them."""

import copy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

import visionattn
from visionattn.layers import BAM, DAS, GATES, PLACES, ULSAM, TripletAttention, attach, batch_norm, create_gate
from visionattn.layers.attach import GatedPath
from visionattn.layers.das import deform_conv
from visionattn.layers.gates import TIMM_GATES

OURS = {
    "cbam": {"reduction": 4},
    "bam": {"reduction": 4},
    "triplet": {"kernel_size": 3},
    "ulsam": {"groups": 2},
    "polarized": {},
    "polarized_sequential": {},
    "efficient": {"num_heads": 2},
    "das": {},
}
CARRIERS = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": (16, 16, 24, 32), "zero_init_last": False},
    "mobilenetv2_050": {},
    "convnext_atto": {"depths": (1, 1, 2, 1), "dims": (16, 16, 24, 32)},
}

CONVNEXT_BLOCKS = [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]


def gates_of(model):
    kinds = tuple(type(create_gate(name, 16, **args)) for name, args in OURS.items())
    return [module for module in model.modules() if isinstance(module, kinds)]


def carrier(name, **kwargs):
    return timm.create_model(name, **{"num_classes": 5, **CARRIERS[name], **kwargs})


def images(batch=2, size=(40, 56)):
    return torch.randn(batch, 3, *size)


# --- gates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATES)
def test_every_gate_keeps_the_shape_and_trains(name):
    gate = create_gate(name, 32, **OURS.get(name, {}))
    x = torch.randn(3, 32, 9, 7, requires_grad=True)
    out = gate(x)
    out.square().sum().backward()
    assert out.shape == x.shape
    assert x.grad.isfinite().all() and all(p.grad is not None for p in gate.parameters())


def test_every_gate_of_ours_is_tried():
    assert set(GATES) - set(TIMM_GATES) - {"timm_cbam"} == set(OURS)


@pytest.mark.parametrize("size", [(7, 10), (7, 5), (4, 9)], ids=str)
def test_bam_pools_the_left_square_only_where_the_published_code_can(size):
    height, width = size
    published, whole = BAM(32, 8, square_pool=True).double().eval(), BAM(32, 8).double().eval()
    whole.load_state_dict(published.state_dict())
    x = torch.randn(2, 32, height, width, dtype=torch.float64)
    columns = height if height < width < 2 * height else width
    channel = published.channel(x[..., :columns].mean((2, 3)))
    expected = x * (1 + (channel[..., None, None] * published.spatial(x)).sigmoid())
    assert torch.allclose(published(x), expected)
    assert torch.allclose(published(x), whole(x)) == (columns == width)


def test_triplet_attention_gates_rotated_copies():
    layer = TripletAttention(kernel_size=3).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)

    def branch(gate, permutation):
        rotated = x.permute(permutation)
        plane = torch.stack([rotated.amax(1), rotated.mean(1)], 1)
        return (rotated * gate.bn(gate.conv(plane)).sigmoid()).permute(permutation)

    layer.eval()
    # Each permutation swaps two axes, so that it undoes itself.
    gated = [(layer.channel_width, (0, 2, 1, 3)), (layer.height_channel, (0, 3, 2, 1)), (layer.spatial, (0, 1, 2, 3))]
    assert torch.allclose(layer(x), sum(branch(*pair) for pair in gated) / 3)


def test_batch_norm_differentiates_maps_made_of_tokens():
    norm = nn.BatchNorm2d(6).double().eval()
    nn.init.normal_(norm.weight)
    # (1, L, C) as a map: the stride of the axis of size 1 is odd.
    tokens, cotangent = (torch.randn(1, 35, 6, dtype=torch.float64).transpose(1, 2).view(1, 6, 5, 7) for _ in range(2))
    for x, gradient in [(tokens, cotangent.contiguous()), (tokens.contiguous(), cotangent)]:
        x = x.detach().requires_grad_()
        (got,) = torch.autograd.grad(batch_norm(norm, x), x, gradient)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        assert torch.allclose(got, gradient * scale[:, None, None])


def test_ulsam_trains_rightly_on_maps_made_of_tokens():
    layer = ULSAM(6, groups=2).double()
    tokens = torch.randn(1, 35, 6, dtype=torch.float64).transpose(1, 2).view(1, 6, 5, 7)
    cotangent = torch.randn(1, 35, 6, dtype=torch.float64).transpose(1, 2).view(1, 6, 5, 7)
    grads = []
    for x, gradient in [(tokens, cotangent), (tokens.contiguous(), cotangent.contiguous())]:
        x = x.detach().requires_grad_()
        grads.append(torch.autograd.grad(layer(x), [x, *layer.parameters()], gradient))
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


def test_deformable_convolution_is_torchvisions():
    conv = nn.Conv2d(5, 4, 3).double()
    x, offset, mask = (torch.randn(2, n, 6, 9, dtype=torch.float64, requires_grad=True) for n in (5, 18, 9))
    results = [
        deform_conv(x, 2 * offset, mask, conv),
        torchvision.ops.deform_conv2d(x, 2 * offset, conv.weight, conv.bias, padding=1, mask=mask),
    ]
    cotangent = torch.randn_like(results[0])
    grads = [torch.autograd.grad(r, [x, offset, mask, *conv.parameters()], cotangent) for r in results]
    assert torch.allclose(*results)
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


def test_das_gates_by_the_papers_formula():
    layer = DAS(20, ratio=0.3).double()
    nn.init.normal_(layer.offset.weight)
    x = torch.randn(2, 20, 6, 9, dtype=torch.float64)
    reduced = nn.functional.gelu(nn.InstanceNorm2d(6)(layer.pointwise(layer.depthwise(x))))
    offset, mask = layer.offset(reduced)[:, :18], layer.offset(reduced)[:, 18:].sigmoid()
    weights = layer.deform.weight, layer.deform.bias
    gate = torchvision.ops.deform_conv2d(reduced, offset, *weights, padding=1, mask=mask)
    expected = x * nn.functional.layer_norm(gate.permute(0, 2, 3, 1), (20,)).sigmoid().permute(0, 3, 1, 2)
    assert torch.allclose(layer(x), expected)
    assert layer(x[:, :, :1, :1]).isfinite().all()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("das", dict(ratio=0.0), "ratio=0.0 must be more than 0 and at most 1"),
        ("cbam", dict(reduction=64), r"reduction=64 must lie in 1..32"),
        ("cbam", dict(kernel_size=4), "kernel_size=4 must be odd"),
        ("cbam", dict(pools=("avg", "maxx")), "unknown pooling 'maxx'; did you mean max"),
        ("cbam", dict(pools=()), r"pools=\(\) must name at least one"),
        ("bam", dict(reduction=0), "reduction=0"),
        ("triplet", dict(kernel_size=0), "kernel_size=0"),
        ("ulsam", dict(groups=5), "groups=5 must be a positive divisor of channels=32"),
        ("efficient", dict(num_heads=3), "num_heads=3 must be a positive divisor of key_channels=16"),
        ("triplett", {}, "unknown gate 'triplett'; did you mean triplet"),
    ],
    ids=str,
)
def test_bad_arguments_of_gates_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_gate(name, 32, **kwargs)


# --- gates in networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "name"),
    [
        pytest.param(gate, name, marks=[] if i % len(CARRIERS) == j else [pytest.mark.slow])
        for i, gate in enumerate(OURS)
        for j, name in enumerate(CARRIERS)
    ],
)
def test_gated_networks_train_and_keep_their_state(gate, name):
    model, other = (attach(carrier(name), gate, **OURS[gate]) for _ in range(2))
    x = images(batch=4)
    model(x).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert set(carrier(name).state_dict()) < set(model.state_dict())
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), other.eval()(x))
    parts = attach(carrier(name, features_only=True), gate, **OURS[gate]).eval()
    assert len(gates_of(parts)) == len(gates_of(model)) and len(parts(x)) >= 4


# Compiling takes seconds: one pair, and every gate in every carrier if asked.
PAIRS = [
    pytest.param(gate, name, marks=[] if (gate, name) == ("triplet", "resnet18") else [pytest.mark.slow])
    for gate in OURS
    for name in CARRIERS
]


@pytest.mark.parametrize(("gate", "name"), PAIRS)
def test_gated_networks_compile_to_one_graph(gate, name):
    torch._dynamo.reset()
    model = attach(carrier(name), gate, **OURS[gate]).eval()
    x = images()
    assert torch.allclose(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "where", "gated"),
    [
        ("resnet18", "after_bottleneck", [f"layer{i}.0.drop_path" for i in range(1, 5)]),
        ("resnet18", "after_block", [f"layer{i}.0" for i in range(1, 5)]),
        ("resnet18", "after_stage", [f"layer{i}" for i in range(1, 5)]),
        ("resnet18", ["layer[23]", "layer4.*"], ["layer2", "layer3", "layer4.0"]),
        ("resnet18", "act1", ["act1"]),
        ("convnext_atto", "after_bottleneck", [f"stages.{i}.blocks.{j}.drop_path" for i, j in CONVNEXT_BLOCKS]),
        ("convnext_atto", "after_stage", [f"stages.{i}.blocks" for i in range(4)]),
        ("mobilenetv2_050", "after_stage", [f"blocks.{i}" for i in range(7)]),
        ("mobilenetv2_050", ["blocks.1.*"], ["blocks.1.0", "blocks.1.1"]),
    ],
    ids=str,
)  # fmt: skip
def test_gates_go_where_they_are_told(name, where, gated):
    model = attach(carrier(name), "triplet", where)
    found = [n.removesuffix(".gate") for n, m in model.named_modules() if isinstance(m, TripletAttention)]
    assert sorted(found) == sorted(gated)


def test_a_gate_acts_at_its_place():
    """The sum of branch and shortcut is what timm's block makes of a gated branch."""
    model = carrier("resnet18").eval()
    block = model.layer2[0]
    x = torch.randn(2, 16, 9, 7)
    branch = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    shortcut = block.downsample(x)
    for where, expected in [
        ("after_bottleneck", lambda gate: torch.relu(gate(branch) + shortcut)),
        ("after_block", lambda gate: gate(torch.relu(branch + shortcut))),
    ]:
        gated = attach(copy.deepcopy(model), "cbam", where, reduction=4).layer2[0]
        gate = gated.drop_path.gate if where == "after_bottleneck" else gated.gate
        assert torch.allclose(gated(x), expected(gate), atol=1e-6)


def test_the_slot_of_squeeze_and_excitation_is_refilled():
    model = timm.create_model("test_efficientnet", num_classes=5)
    before = [n for n, m in model.named_modules() if type(m).__name__ == "SqueezeExcite"]
    attach(model, "eca", where="in_place_of_se")
    after = [n for n, m in model.named_modules() if type(m).__name__ == "EcaModule"]
    assert before and set(before) <= set(after)
    assert not [m for m in model.modules() if type(m).__name__ == "SqueezeExcite"]
    assert model(images()).shape == (2, 5)


@pytest.mark.parametrize("where", PLACES)
def test_copies_and_synchronized_norms_keep_their_gates(where):
    model = attach(carrier("resnet18", drop_path_rate=0.2), "cbam", where, reduction=4).eval()
    x = images()
    twin = copy.deepcopy(model)
    for gate in gates_of(model):
        gate.spatial.bn.bias.data.fill_(-50.0)  # shuts it
    assert not torch.allclose(model(x), twin(x))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert torch.allclose(converted(x), model(x), atol=1e-5)


def test_drop_path_stays_what_it_was():
    model = attach(carrier("resnet18", drop_path_rate=0.3), "triplet")
    rates = [m.drop_prob for m in model.modules() if isinstance(m, GatedPath)]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("name", CARRIERS)
def test_timms_interface_still_works(name):
    model = attach(carrier(name), "cbam", reduction=4).train()
    saving = copy.deepcopy(model)
    saving.set_grad_checkpointing()
    x = images(batch=4)
    for network in (model, saving):
        network(x).square().sum().backward()
    for a, b in zip(model.parameters(), saving.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    model.reset_classifier(3)
    assert model(x).shape == (4, 3)
    assert len(model.forward_intermediates(x, intermediates_only=True)) >= 4


def test_a_trial_changes_nothing():
    model = carrier("resnet18").train()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for where in ("no_such_place", "layer1.0.bn1", "fc"):
        with pytest.raises(ValueError):
            attach(model, "cbam", where)
    with pytest.raises(ValueError, match="reduction=32"):
        attach(model, "cbam", reduction=32)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator) and model.layer1[0].drop_path is None


@pytest.mark.parametrize(
    ("model", "where", "message"),
    [
        ("resnet18", "after_bottlenek", "unknown place or module 'after_bottlenek'; did you mean after_bottleneck"),
        ("resnet18", "layer5", "unknown place or module 'layer5'; did you mean layer"),
        ("resnet18", [], r"where=\[\] must be one of after_bottleneck, .* or names of modules"),
        ("resnet18", "fc", r"module 'fc' returns torch.Size\(\[2, 5\]\); gates need maps"),
        ("resnet18", "layer1.0.bn1", "module 'layer1.0.bn1' is a batch norm; name the block"),
        ("convnext_atto", "in_place_of_se", "ConvNeXt has none; give names of modules, those at its top are stem"),
    ],
    ids=str,
)
def test_wrong_places_are_named(model, where, message):
    with pytest.raises(ValueError, match=message):
        attach(carrier(model), "triplet", where)


def test_wrong_networks_are_named():
    with pytest.raises(TypeError, match="model is str"):
        attach("resnet18", "triplet")
    with pytest.raises(ValueError, match=r"is a network of maps \(B, H, W, C\)"):
        attach(timm.create_model("va_nat_tiny", depths=(1, 1, 1, 1)), "triplet")
    with pytest.raises(ValueError, match="Sequential has no convolution"):
        attach(nn.Sequential(nn.Linear(3, 4)), "triplet", where="*")
    with pytest.raises(TypeError, match="kernel_sise"):
        attach(carrier("resnet18"), "triplet", kernel_sise=3)
    gated = attach(carrier("resnet18"), "triplet")
    with pytest.raises(ValueError, match="block 'layer1.0' has a gate already"):
        attach(gated, "cbam")


def test_create_model_takes_gates():
    options = dict(name="triplet", where=["layer3", "layer4"], kernel_size=3)
    model = visionattn.create_model("resnet18", gate=options, num_classes=5, **CARRIERS["resnet18"])
    assert [n for n, m in model.named_modules() if isinstance(m, TripletAttention)] == ["layer3.gate", "layer4.gate"]
    assert model.layer3.gate.spatial.conv.kernel_size == (3, 3) and options["name"] == "triplet"
    with pytest.raises(ValueError, match=r"gate=\{'where': 'act1'\} must have a name, one of cbam"):
        visionattn.create_model("resnet18", gate=dict(where="act1"))
    with pytest.raises(TypeError, match="gate='triplet' must be a mapping"):
        visionattn.create_model("resnet18", gate="triplet")


def test_timms_own_argument_takes_our_gates():
    layer = partial(create_gate, "triplet", kernel_size=3)
    model = timm.create_model("resnet18", block_args=dict(attn_layer=layer), **CARRIERS["resnet18"])
    assert isinstance(model.layer1[0].se, TripletAttention) and model(images()).shape == (2, 1000)
