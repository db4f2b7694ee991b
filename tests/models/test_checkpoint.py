# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: the authors' files, timm's, ours, wrapped or damaged; what loads, and what the user is told."""

import os
import pickle
import re

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import visionattn
from visionattn.models import FAMILIES, convert, convert_checkpoint

MICRO = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8))
NAT = dict(**MICRO, kernel_size=3, layer_scale=0.5)
SWIN = dict(**MICRO) | {"depths": (2, 2, 2, 2), "window_size": 4, "img_size": 64}


def nat(**kwargs):
    return timm.create_model("va_nat_tiny", **NAT, **kwargs).eval()


def swin(**kwargs):
    return timm.create_model("va_swin_tiny", **{**SWIN, **kwargs}).eval()


def randomise(model):
    for tensor in model.state_dict().values():
        torch.nn.init.normal_(tensor, std=0.3)
    return model


def in_authors_names(state_dict):
    """Our NAT names as SHI-Labs writes them."""
    rules = [
        (r"^stem\.", "patch_embed."),
        (r"^stages\.", "levels."),
        (r"\.down\.", ".downsample."),
        (r"\.scale(\d)\.gamma$", r".gamma\1"),
        (r"^head\.fc\.", "head."),
        (r"^output_norms\.(\d)\.", r"norm\1."),
    ]
    renamed = {}
    for name, tensor in state_dict.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def trained():
    return randomise(nat())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("names", ["authors", "ours"])
def test_a_local_file_loads_through_timm(trained, tmp_path, suffix, names):
    entries = trained.state_dict() if names == "ours" else in_authors_names(trained.state_dict())
    path = tmp_path / f"weights{suffix}"
    save_file(entries, path) if suffix == ".safetensors" else torch.save(entries, path)
    assert same(nat(pretrained=True, pretrained_cfg_overlay=dict(file=str(path))), trained)


def test_the_published_address_is_fetched_and_converted(trained, tmp_path, monkeypatch):
    asked = []

    def fetch(url, **kwargs):
        asked.append((url, kwargs["weights_only"]))
        return in_authors_names(trained.state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", fetch)
    assert same(nat(pretrained=True), trained)
    assert asked == [(visionattn.info("va_nat_tiny").urls[0], True)]


def test_a_file_address_is_fetched_and_converted(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    path = tmp_path / "weights.pth"
    torch.save(in_authors_names(trained.state_dict()), path)
    assert same(nat(pretrained=True, pretrained_cfg_overlay=dict(url=path.as_uri())), trained)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: {"model": d},
        lambda d: {"state_dict": d, "epoch": 3},
        lambda d: {"state_dict": {f"module.{k}": v for k, v in d.items()}},
        lambda d: {"state_dict": {f"backbone.{k}": v for k, v in d.items()} | {"neck.conv.weight": torch.ones(2)}},
        lambda d: {"meta": {}, "state_dict": {f"backbone.model.{k}": v for k, v in d.items()}},
        lambda d: {f"_orig_mod.{k}": v for k, v in d.items()},
    ],
    ids=["model", "state_dict", "ddp", "detector", "mmengine", "compiled"],
)
@pytest.mark.parametrize("names", ["authors", "ours"])
def test_wrappers_and_prefixes_are_taken_off(trained, tmp_path, wrap, names):
    entries = trained.state_dict() if names == "ours" else in_authors_names(trained.state_dict())
    torch.save(wrap(entries), tmp_path / "wrapped.pth")
    model = nat()
    visionattn.load_checkpoint(model, tmp_path / "wrapped.pth")
    assert same(model, trained)


def test_another_class_count_keeps_the_body_and_renews_the_head(trained, tmp_path):
    torch.save(in_authors_names(trained.state_dict()), tmp_path / "w.pth")
    overlay = dict(file=str(tmp_path / "w.pth"))
    for classes in (10, 0):
        model = nat(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
        assert torch.equal(model.stages[2].blocks[1].attn.rpb, trained.stages[2].blocks[1].attn.rpb)
        assert torch.equal(model.norm.weight, trained.norm.weight)
        assert model.num_classes == classes


def test_a_file_with_more_classes_loads_where_their_number_is_given(tmp_path):
    many = randomise(nat(num_classes=37))
    torch.save(in_authors_names(many.state_dict()), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"mis-shaped: head.weight \(37, 128\) where \(1000, 128\) is needed"):
        nat(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "w.pth")))
    overlay = dict(file=str(tmp_path / "w.pth"), num_classes=37)
    assert same(nat(pretrained=True, pretrained_cfg_overlay=overlay), many)
    features = nat(pretrained=True, features_only=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "w.pth")))
    assert torch.equal(features.model.stages[3].blocks[0].attn.rpb, many.stages[3].blocks[0].attn.rpb)


def test_features_only_gets_the_weights(trained, tmp_path):
    torch.save(in_authors_names(trained.state_dict()), tmp_path / "w.pth")
    overlay = dict(file=str(tmp_path / "w.pth"))
    features = nat(pretrained=True, features_only=True, pretrained_cfg_overlay=overlay)
    x = torch.randn(1, 3, 45, 61)
    expected = trained.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(features(x), expected, strict=True))


def test_one_channel_images_get_the_summed_first_convolution(trained, tmp_path):
    torch.save(in_authors_names(trained.state_dict()), tmp_path / "w.pth")
    model = nat(pretrained=True, in_chans=1, pretrained_cfg_overlay=dict(file=str(tmp_path / "w.pth")))
    expected = trained.stem.proj[0].weight.sum(1, keepdim=True)
    assert torch.allclose(model.stem.proj[0].weight, expected, atol=1e-6)


def test_a_classification_file_loads_into_a_dense_backbone_and_back(trained, tmp_path):
    torch.save(in_authors_names(trained.state_dict()), tmp_path / "w.pth")
    dense = randomise(nat(output_norms=True, num_classes=0))
    before = dense.output_norms["1"].weight.clone()
    visionattn.load_checkpoint(dense, tmp_path / "w.pth")
    assert torch.equal(dense.norm.weight, trained.norm.weight)
    assert torch.equal(dense.output_norms["1"].weight, before)
    torch.save({f"backbone.{k}": v for k, v in in_authors_names(dense.state_dict()).items()}, tmp_path / "d.pth")
    entries = torch.load(tmp_path / "d.pth", weights_only=True)
    entries["backbone.norm3.weight"] = entries.pop("backbone.norm.weight")
    entries["backbone.norm3.bias"] = entries.pop("backbone.norm.bias")
    torch.save({"state_dict": entries}, tmp_path / "d.pth")
    other = nat(output_norms=True, num_classes=0)
    visionattn.load_checkpoint(other, tmp_path / "d.pth")
    assert same(other, dense)


SIZES = dict(num_heads=(1, 2, 4, 8), depths=(2, 1, 2, 1))
WIDTHS, REDUCTIONS, WINDOWS = (16, 32, 32, 64), (4, 2, 2, 1), (3, 3, 2, 2)
PVTV2 = (
    dict(**SIZES, dims=WIDTHS, reductions=REDUCTIONS, mlp_ratio=(2, 3, 2, 2)),
    dict(**SIZES, embed_dims=WIDTHS, sr_ratios=REDUCTIONS, mlp_ratios=(2, 3, 2, 2)),
)
TIMM_MODELS = {
    "va_pvtv2_b0": ("pvt_v2_b0", *PVTV2),
    "va_pvtv2_b2_linear": ("pvt_v2_b2_li", *PVTV2),
    "va_swin_tiny": ("swin_tiny_patch4_window7_224", SWIN, SWIN),
    "va_swinv2_tiny_window8": ("swinv2_tiny_window8_256", SWIN, SWIN),
    "va_twins_svt_small": (
        "twins_svt_small",
        dict(**SIZES, dims=WIDTHS, reductions=REDUCTIONS, window_sizes=WINDOWS, mlp_ratio=4),
        dict(**SIZES, embed_dims=WIDTHS, sr_ratios=REDUCTIONS, wss=WINDOWS, mlp_ratios=(4,) * 4, img_size=64),
    ),
}


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_timms_own_weights_give_timms_own_logits(name, tmp_path):
    theirs_name, args, theirs_args = TIMM_MODELS[name]
    theirs = randomise(timm.create_model(theirs_name, **theirs_args).double()).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = timm.create_model(name, **args).double().eval()
    visionattn.load_checkpoint(model, tmp_path / "timm.pth")
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.allclose(model(x), theirs(x), rtol=1e-9, atol=1e-9)


def layers_of(prefix, *names):
    return [f"{prefix}{name}.{kind}" for name in names for kind in ("weight", "bias")]


def pvtv2_names(depths, reductions):
    """Entries of the authors' PVT v2."""
    names = layers_of("", "head")
    for stage, (depth, reduction) in enumerate(zip(depths, reductions, strict=True), 1):
        names += layers_of("", f"patch_embed{stage}.proj", f"patch_embed{stage}.norm", f"norm{stage}")
        parts = ["norm1", "norm2", "attn.q", "attn.kv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.dwconv.dwconv"]
        parts += ["attn.sr", "attn.norm"] if reduction > 1 else []
        for block in range(depth):
            names += layers_of(f"block{stage}.{block}.", *parts)
    return names


def cswin_names(depths, branches):
    """Entries of the authors' CSWin."""
    names = layers_of("", "stage1_conv_embed.0", "stage1_conv_embed.2", "norm", "head")
    for stage, (depth, count) in enumerate(zip(depths, branches, strict=True), 1):
        names += layers_of(f"merge{stage}.", "conv", "norm") if stage < len(depths) else []
        convs = [f"attns.{branch}.get_v" for branch in range(count)]
        for block in range(depth):
            names += layers_of(f"stage{stage}.{block}.", "qkv", "norm1", "proj", *convs, "mlp.fc1", "mlp.fc2", "norm2")
    return names


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("va_pvtv2_b0", pvtv2_names((2, 2, 2, 2), (8, 4, 2, 1))),
        ("va_cswin_tiny", cswin_names((1, 2, 21, 1), (2, 2, 2, 1))),
    ],
)
def test_the_authors_names_account_for_every_entry(model, names):
    with torch.device("meta"):
        ours = set(timm.create_model(model).state_dict())
    keys = FAMILIES[visionattn.info(model).family].key_maps[0]
    assert {keys.rename(name)[0] for name in names} == ours and len(names) == len(ours)


def test_bias_and_position_tables_of_another_size_are_resized(tmp_path):
    source = randomise(swin(ape=True, img_size=64))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = swin(ape=True, img_size=96, window_size=6)
    visionattn.load_checkpoint(model, tmp_path / "w.pth")
    expected = torch.nn.functional.interpolate(
        source.stages[0].blocks[0].attn.rpb[None], size=(11, 11), mode="bicubic", align_corners=False
    )[0]
    assert torch.allclose(model.stages[0].blocks[0].attn.rpb, expected)
    assert model.pos_embed.table.shape == (16, 24, 24)
    assert torch.equal(model.stages[0].blocks[0].mlp.fc1.weight, source.stages[0].blocks[0].mlp.fc1.weight)


def test_a_foreign_file_is_told_by_its_entries_and_changes_nothing(trained, tmp_path):
    entries = in_authors_names(trained.state_dict())
    del entries["levels.0.blocks.0.mlp.fc1.weight"]
    entries["levels.9.extra"] = torch.ones(3)
    entries["levels.1.blocks.0.mlp.fc2.bias"] = torch.ones(5)
    torch.save(entries, tmp_path / "foreign.pth")
    model = nat()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        visionattn.load_checkpoint(model, tmp_path / "foreign.pth")
    message = str(error.value)
    assert "foreign.pth" in message
    assert "1 missing: stages.0.blocks.0.mlp.fc1.weight" in message
    assert "1 unexpected: levels.9.extra (3,)" in message
    assert "1 mis-shaped: levels.1.blocks.0.mlp.fc2.bias (5,) where (32,) is needed" in message
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="1 missing"):
        nat(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / "foreign.pth")))


def test_another_architecture_is_refused_with_counts(tmp_path):
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"\d+ missing: .*and \d+ more"):
        visionattn.load_checkpoint(nat(), tmp_path / "vit.pth")


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


def damaged(kind, path, state_dict):
    if kind == "code":
        torch.save({"model": Code()}, path)
    elif kind == "legacy code":
        path.write_bytes(pickle.dumps(Code()))
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "no tensors":
        torch.save([1, 2, 3], path)
    elif kind == "no state dict":
        torch.save({"epoch": 3, "lr": 0.1}, path)
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        torch.save(state_dict, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


KINDS = ["code", "legacy code", "text", "no tensors", "no state dict", "empty", "truncated"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_or_dangerous_files_are_refused_by_name(kind, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    damaged(kind, path, trained.state_dict())
    with pytest.raises(ValueError, match="bad.pth"):
        visionattn.load_checkpoint(nat(), path)
    with pytest.raises(ValueError, match="bad.pth"):
        nat(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(ValueError, match="bad.pth"):
        nat(pretrained=True, pretrained_cfg_overlay=dict(url=path.as_uri()))
    assert not (tmp_path / "executed").exists()


def test_a_truncated_safetensors_file_is_refused_by_name(trained, tmp_path):
    path = tmp_path / "bad.safetensors"
    save_file(trained.state_dict(), path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="bad.safetensors"):
        visionattn.load_checkpoint(nat(), path)


def test_a_missing_file_and_a_foreign_model_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        visionattn.load_checkpoint(nat(), tmp_path / "nowhere.pth")
    with pytest.raises(TypeError, match="FeatureGetterNet"):
        visionattn.load_checkpoint(nat(features_only=True), tmp_path / "nowhere.pth")


def test_a_file_in_the_authors_names_is_converted_as_a_whole_or_not_at_all(tmp_path):
    model = visionattn.create_model("va_nat_mini")
    entries = in_authors_names(randomise(model).state_dict())
    torch.save({"model": entries}, tmp_path / "nat_mini.pth")
    output = tmp_path / "new" / "mini.safetensors"
    convert_checkpoint(tmp_path / "nat_mini.pth", "va_nat_mini", output)
    loaded = timm.create_model("va_nat_mini", pretrained=True, pretrained_cfg_overlay=dict(file=str(output)))
    assert same(loaded, model) and load_file(output).keys() == model.state_dict().keys()

    name = "levels.0.blocks.0.attn.rpb"
    for wrong, message in (
        ({**entries, name: entries[name][:, 1:, 1:]}, r"1 mis-shaped: levels.0.blocks.0.attn.rpb \(2, 12, 12\)"),
        ({k: v for k, v in entries.items() if k != name}, "1 missing: stages.0.blocks.0.attn.rpb"),
    ):
        torch.save(wrong, tmp_path / "wrong.pth")
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(tmp_path / "wrong.pth", "va_nat_mini", tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"output='w.pth' must end in .safetensors"):
        convert_checkpoint(tmp_path / "nat_mini.pth", "va_nat_mini", "w.pth")
    with pytest.raises(ValueError, match="does not fit the model"):
        convert_checkpoint(tmp_path / "nat_mini.pth", "va_nat_tiny", tmp_path / "wrong.safetensors")
    assert [path.name for path in tmp_path.iterdir() if "wrong.s" in path.name] == []


def test_filters_of_another_size_are_resized_over_the_grid_they_stand_on():
    small = {"depths": (1,), "embed_dim": 8, "orders": (2,), "num_classes": 3}
    source, target = (FAMILIES["hornet"].build(**small, filter_sizes=((h, w),)) for h, w in ((4, 3), (7, 5)))
    entries = {k: torch.randn_like(v) for k, v in source.state_dict().items()}
    name = "stages.0.blocks.0.attn.filter.filter"
    loaded = convert(entries, target)[name]
    assert loaded.shape == target.state_dict()[name].shape
    corners = [loaded[:, i, j] for i in (0, -1) for j in (0, -1)]  # aligned: they stay
    expected = [entries[name][:, i, j] for i in (0, -1) for j in (0, -1)]
    torch.testing.assert_close(corners, expected)
    torch.testing.assert_close(loaded[:, 3, 2], entries[name][:, 1:3, 1].mean(1))  # halfway between rows
    with pytest.raises(ValueError, match=r"filter\.filter"):
        convert(entries, target, resize=False)


def test_a_classifiers_file_fits_the_backbone_without_a_class_token(tmp_path):
    micro = FAMILIES["lit_ti"].micros["va_lit_ti"]
    classifier = visionattn.create_model("va_lit_ti", num_classes=5, **micro)
    dense = visionattn.create_model("va_lit_ti", num_classes=0, **micro, **visionattn.models.dense_args("va_lit_ti"))
    loaded = convert(classifier.state_dict(), dense, FAMILIES["lit_ti"].key_maps, free=("head.",))
    assert loaded.keys() == dense.state_dict().keys()
    assert not [name for name in loaded if "class_token" in name or name.startswith("norm.")]
    assert torch.equal(loaded["tokens.table"], classifier.tokens.table)
    with pytest.raises(ValueError, match="class_token"):
        convert(dense.state_dict(), classifier, FAMILIES["lit_ti"].key_maps, free=("head.",))
