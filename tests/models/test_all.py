# SPDX-License-Identifier: Apache-2.0
"""Promises that every model keeps. Micro models, named by the registry, keep all; full-size models keep the cheap ones.

There is no list of models to leave out.
"""

import copy
import re

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import visionattn
from visionattn.layers import ContentAttention, DeformableMerging
from visionattn.models import FAMILIES, Isotropic
from visionattn.models._macs import count_macs

MICROS = {
    f"{family.name}-{name}-{label}": (name, {**args, **extra})
    for family in FAMILIES.values()
    for name, args in family.micros.items()
    for label, extra in {"plain": {}, "dense": {"output_norms": True}}.items()
    if label == "plain" or "depths" in args
}
PLAIN = [m for m in MICROS if m.endswith("plain")]
# Networks of timm with our layers in them have timm's interface, which is not tested again.
HOSTED = [m for m in MICROS if FAMILIES[m.split("-", 1)[0]].features is None]
PLAIN_HOSTED = [m for m in HOSTED if m in PLAIN]
NAMES = visionattn.list_models()


# Checks that take many seconds a model: of these families by default, of the others if asked for.
SAMPLED = ("nat",)
COSTLY = [pytest.param(key, marks=[] if key.split("-")[0] in SAMPLED else [pytest.mark.slow]) for key in PLAIN]
TAGGED = visionattn.list_models(tags=True)


def first_of_each(names):
    """The first name of each family, and the others for the slow run: networks of full size, if without storage."""
    families = {}
    for name in names:
        families.setdefault(visionattn.info(name).family, name)
    return [name if name in families.values() else pytest.param(name, marks=pytest.mark.slow) for name in names]


SIZES = [(61, 75), (33, 130), (5, 3), (1, 1)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Micro models spend more time handing work to threads than doing it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def micro(key, **kwargs):
    """Micro model whose every parameter is drawn afresh, so that none is idle at its initial 0 or 1."""
    name, args = MICROS[key]
    model = timm.create_model(name, **{"num_classes": 7, "drop_path_rate": 0.0, **args, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else parameter.data.add_(
            torch.randn_like(parameter) * 0.2
        )
    for module in model.modules():
        if isinstance(module, DeformableMerging):  # else most pixels are read beyond the border, or by chance not
            module.offset.weight.data.mul_(0.02)
    return model.eval()


def images(size=(61, 75), batch=2, **kwargs):
    return torch.randn(batch, 3, *size, **kwargs)


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def expected_sizes(model, info, size):
    """Sides of a feature: each step rounds up where convolutions overlap or odd maps are padded, else down."""
    stem = getattr(model, "stem", None)
    stride = getattr(stem, "stride", info["reduction"])
    joints = [getattr(stage, "down", None) for stage in getattr(model, "levels", ())]
    rounds_up = all(getattr(joint, "rounds_up", True) for joint in joints)
    sides = [divided(side, stride, getattr(stem, "rounds_up", True)) for side in size]
    if hasattr(stem, "sides"):  # its steps round up and down
        sides = stem.sides(size)
    return tuple(divided(side, info["reduction"] // stride, rounds_up) for side in sides)


def divided(side, stride, up):
    return -(-side // stride) if up else max(side // stride, 1)


# --- every name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", first_of_each(TAGGED))
def test_parameters_and_macs_are_the_published_ones(name):
    info = visionattn.info(name)
    model = on_meta(name)
    params = sum(p.numel() for p in model.parameters())
    if info.params_m is not None:  # whole millions, cut off as often as rounded; the golden test has exact counts
        agrees = abs(params / 1e6 - info.params_m) <= max(1.0, 0.006 * info.params_m)
        assert agrees == (info.params_differ is None)
    if info.gflops is not None:  # rounded to 0.1 by the authors
        macs = count_macs(model, info.input_size, attention=FAMILIES[info.family].counts_attention)
        agrees = abs(macs / 1e9 - info.gflops) <= 0.02 * info.gflops + 0.05
        assert agrees == (info.gflops_differ is None)
    assert model.num_classes == info.num_classes
    assert model.pretrained_cfg["url"] == info.urls[0]


def test_names_and_references_are_unique():
    references = [(info.family, info.reference) for info in map(visionattn.info, TAGGED)]
    assert len(set(references)) == len(references)
    assert all(timm.is_model(name) and name.startswith("va_") for name in NAMES)
    assert set(timm.list_models("va_*")) >= set(NAMES)


@pytest.mark.parametrize("name", first_of_each(NAMES))
def test_feature_info_says_channels_and_strides(name):
    model = on_meta(name, features_only=True)
    channels, strides = model.feature_info.channels(), model.feature_info.reduction()
    if isinstance(model.model, Isotropic):
        assert set(strides) == {8 if "stride8" in name else 16}
    else:
        first = 8 if "pyramid_tnt" in name else 4
        assert strides == [first * 2**i for i in range(4)]
        assert channels == sorted(channels)
    modules = dict(model.model.named_modules())
    assert all(module in modules for module in model.feature_info.module_name())


@pytest.mark.parametrize("name", first_of_each(NAMES))
def test_entry_point_is_pretrained_configured(name):
    cfg = timm.get_pretrained_cfg(name)
    model = on_meta(name)
    assert model.get_submodule(cfg.first_conv).weight.shape[1] == 3
    assert model.get_submodule(cfg.classifier) is model.get_classifier()
    has_weights = cfg.tag != "untrained"
    assert cfg.paper_ids and cfg.url.startswith("https://") == has_weights
    assert cfg.license in ("mit", "apache-2.0", "")  # some authors name none


# --- every micro model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("key", MICROS)
def test_any_image_size_gives_features_at_its_strides(key, size):
    model = micro(key, features_only=True)
    x = images(size)
    features = model(x)
    assert len(features) == len(model.feature_info.channels())
    for feature, info in zip(features, model.feature_info.get_dicts(), strict=True):
        assert feature.shape == (2, info["num_chs"], *expected_sizes(model.model, info, size))
        assert feature.is_contiguous() and torch.isfinite(feature).all()


@pytest.mark.parametrize("key", MICROS)
def test_features_only_takes_the_levels_asked_for(key):
    model = micro(key)
    x = images()
    every = model.forward_intermediates(x, intermediates_only=True)
    name, args = MICROS[key]
    for indices in [(0, 2), (1,), (-1,), 2]:
        part = timm.create_model(name, features_only=True, out_indices=indices, num_classes=7, **args).eval()
        part.model.load_state_dict(model.state_dict(), strict=False)
        chosen = range(len(every))[-indices:] if isinstance(indices, int) else indices
        assert [torch.equal(a, every[i]) for a, i in zip(part(x), chosen, strict=True)] == [True] * len(chosen)
        assert key not in HOSTED or idle(part, x) == []


def idle(model, x):
    """Parameters that no output depends on."""
    sum((f * torch.randn_like(f)).sum() for f in model(x)).backward()
    return [name for name, p in model.named_parameters() if p.grad is None]


def as_map(last, like):
    """Last output as a map like a feature: without the class token that leads tokens."""
    return last if last.ndim == 4 else last[:, 1:].reshape(len(last), *like.shape[1:3], -1)


@pytest.mark.parametrize("key", HOSTED)
def test_intermediates_agree_with_the_forward_pass(key):
    model = micro(key)
    x = images()
    last, nchw = model.forward_intermediates(x)
    assert torch.equal(last, model.forward_features(x))
    assert torch.equal(model.forward_head(last), model(x))
    nhwc = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
    assert all(torch.equal(a, b.permute(0, 3, 1, 2)) for a, b in zip(nchw, nhwc, strict=True))
    normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]
    # Unless the last feature has another norm, or the head reads what several maps are joined to.
    if str(len(model.levels) - 1) not in model.output_norms and not hasattr(model, "joint"):
        assert torch.equal(normed, as_map(last, nhwc[-1]).permute(0, 3, 1, 2))
    early, (first,) = model.forward_intermediates(x, indices=[0], stop_early=True, output_fmt="NHWC")
    assert torch.equal(first, nhwc[0]) and as_map(early, first).shape == first.shape
    with pytest.raises(ValueError, match="output_fmt='NCWH'"):
        model.forward_intermediates(x, output_fmt="NCWH")


@pytest.mark.parametrize("key", HOSTED)
def test_pruning_drops_what_the_features_do_not_need(key):
    model = micro(key)
    x = images()
    expected = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    before = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    assert sum(p.numel() for p in model.parameters()) < before
    pruned = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(pruned, expected, strict=True))
    model.reset_classifier(5, "avg")
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize("key", HOSTED)
def test_the_classifier_goes_and_comes_back(key):
    model = micro(key, num_classes=1000)
    x = images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert model(x).shape == (2, 1000)
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled) and model.num_classes == 0
    model.reset_classifier(10)
    assert model(x).shape == (2, 10) and model.get_classifier().out_features == 10
    assert model.head_hidden_size == pooled.shape[1] and model.num_features == model.feature_info[-1]["num_chs"]
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))
    model.reset_classifier(3, "max")
    assert model(x).shape == (2, 3)
    with pytest.raises(ValueError, match="num_classes=-1"):
        model.reset_classifier(-1)
    assert micro(key, num_classes=0)(x).shape == pooled.shape


@pytest.mark.parametrize("key", MICROS)
def test_gradient_checkpointing_changes_no_value_and_no_gradient(key):
    plain = micro(key, drop_path_rate=0.3).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x = images()
    results = []
    for model in (plain, saving):
        torch.manual_seed(11)  # the same paths are dropped, in the recomputation too
        logits = model(x)
        logits.square().sum().backward()
        results.append((logits, [p.grad for p in model.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    # Same arithmetic, but sums over threads may be ordered differently.
    for (name, _), a, b in zip(plain.named_parameters(), results[0][1], results[1][1], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.allclose(a, b, rtol=1e-4, atol=1e-5)), name


@pytest.mark.parametrize("key", PLAIN)
def test_training_reaches_every_parameter(key):
    model = micro(key, drop_path_rate=0.3).train()
    torch.nn.functional.cross_entropy(model(images(batch=16)), torch.arange(16) % 7).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("key", PLAIN)
def test_drop_path_rises_to_its_rate_and_acts_in_training_only(key):
    model = micro(key, drop_path_rate=0.4)
    rates = [getattr(m.drop_path, "drop_prob", 0.0) for m in model.modules() if hasattr(m, "drop_path")]
    assert rates[0] == 0.0 and rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.4, rel=1e-6 if key in HOSTED else 0.1)  # timm's last block is short of it
    x = images(batch=8)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


# Relative and absolute positions, the networks that compute them, and rates of state space models.
UNDECAYED = re.compile(r"\.rpb$|^pos_embed\.|\.cpb_mlp\.|\.position\.|\.A_log$|^tokens\.")


@pytest.mark.parametrize("key", HOSTED)
def test_layer_decay_groups_rise_from_stem_to_head(key):
    model = micro(key)
    groups = param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5
    )
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    named = dict(model.named_parameters())
    assert len(scale) == len(named)
    levels = [scale[id(next(level.parameters()))] for level in model.levels]
    stem = scale[id(model.get_submodule(model.default_cfg["first_conv"]).weight)]
    last = scale[id(next(model.head.fc.parameters()))]
    assert stem < levels[0] and levels == sorted(set(levels)) and levels[-1] < last == 1.0
    undecayed = {name for name, p in named.items() if decay[id(p)] == 0.0}
    assert undecayed == {n for n, p in named.items() if p.ndim == 1 or UNDECAYED.search(n)}
    coarse = model.group_matcher(coarse=True)
    assert set(coarse) == {"stem", "blocks"}


@pytest.mark.parametrize("key", MICROS)
def test_state_goes_out_and_comes_in(key, tmp_path):
    model, other = micro(key), micro(key)
    x = images()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert not torch.equal(other(x), model(x))
    visionattn.load_checkpoint(other, tmp_path / "w.pth")
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("key", PLAIN)
def test_bfloat16_autocast_stays_finite_and_close(key):
    model = micro(key).train()
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    logits.float().sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()  # small batches make batch norms multiply the rounding
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    exact = model(x)
    # Rounding moves pixels that are nearly as like to another cluster; unrelated logits would differ by 1.4.
    bound = 0.6 if any(isinstance(m, ContentAttention) for m in model.modules()) else 0.1
    assert (logits - exact).norm() <= bound * exact.norm()


@pytest.mark.parametrize("key", PLAIN_HOSTED)
def test_wrong_input_is_named(key):
    model = micro(key)
    with pytest.raises(ValueError, match=r"\(2, 4, 32, 32\) must be \(B, 3, H, W\)"):
        model(torch.randn(2, 4, 32, 32))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\)"):
        model(torch.randn(3, 32, 32))
    with pytest.raises(TypeError, match="kernel_sise"):
        micro(key, kernel_sise=5)
    with pytest.raises(ValueError, match="drop_path_rate=1.0"):
        micro(key, drop_path_rate=1.0)


@pytest.mark.parametrize("key", COSTLY)
def test_compiles_to_one_graph_without_recompiling(key):
    torch._dynamo.reset()
    # In float64, since batch norms over maps of one pixel amplify rounding.
    model = micro(key).double().train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images((40, 56), dtype=torch.float64)
    expected = model(x)
    expected.square().sum().backward()  # before the next pass changes running statistics
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    got = compiled(x)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    got.square().sum().backward()
    assert all(torch.allclose(a, p.grad, rtol=1e-3, atol=1e-3) for a, p in zip(grads, model.parameters(), strict=True))
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(images((40, 56), dtype=torch.float64))


FREE = ({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
# Larger, smaller and of another shape than the example; maps that one Swin window covers and maps that need several.
# Tracing tells sizes of 1 from larger ones, so the last map has at least 2x2 pixels.
OTHER_SIZES = [((40, 56), 3), ((75, 61), 1), ((34, 50), 2), ((129, 40), 1)]


@pytest.mark.slow
@pytest.mark.parametrize("key", COSTLY)
def test_exports_with_any_batch_and_size(key):
    # Two stages have all there is to trace; tracing takes seconds a block.
    args = MICROS[key][1]
    stages = len(args.get("depths", ()))
    lists = {name: values for name, values in args.items() if isinstance(values, tuple) and len(values) == stages}
    model = micro(key, **{name: values[:2] for name, values in lists.items()})
    # Masks pool to stride 32 and round down; resizing a map of one pixel is another graph.
    factor = 2 if hasattr(model.stem, "sides") or hasattr(model, "joint") else 1
    exported = torch.export.export(model, (images((factor * 64, factor * 48)),), dynamic_shapes=FREE).module()
    for size, batch in OTHER_SIZES:
        x = images((factor * size[0], factor * size[1]), batch=batch)
        assert torch.allclose(exported(x), model(x), rtol=1e-4, atol=1e-5), size


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_full_size_models_run(name):
    info = visionattn.info(name)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, *info.input_size))).all()
