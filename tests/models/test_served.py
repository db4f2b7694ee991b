# SPDX-License-Identifier: Apache-2.0
"""Models that timm keeps: their authors' files load and convert, and what is known of them is listed as timm's."""

import json
from pathlib import Path

import pytest
import timm
import torch
from typer.testing import CliRunner

import visionattn
from visionattn.cli import app
from visionattn.models import SERVED, convert, convert_checkpoint
from visionattn.models._card import card
from visionattn.models.levit import levit_names

PAGE = Path(__file__).parents[2] / "docs" / "models" / "timm.md"
SHVIT = dict(embed_dim=(16, 24, 32), partial_dim=(4, 6, 8), depth=(1, 1, 1), types=("i", "s", "s"))
LEVIT = dict(embed_dim=(16, 24, 32), key_dim=8, depth=(1, 2, 1), num_heads=(2, 3, 4), img_size=64)


def published_shvit(model):
    """State dict in the authors' names, made of timm's by what their modules are."""
    entries = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stages":
            stage, kind, index = int(parts[1]), parts[2], int(parts[3])
            if kind == "blocks":
                head = [f"blocks{stage + 1}", str(index + (3 if stage else 0))]
            else:  # two modules, the merging, two modules
                head = [f"blocks{stage + 1}", *{0: "00", 1: "01", 2: "1", 3: "20", 4: "21"}[index]]
            parts = [*head, *parts[4:]]
        entries[".".join(parts)] = tensor
    return entries


def drawn(name, **kwargs):
    model = timm.create_model(name, **kwargs)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) if name.endswith("running_var") else 0.1 * torch.randn_like(tensor))
    return model.eval()


@pytest.mark.parametrize("classes", [5, 0])
def test_an_authors_file_loads(tmp_path, classes):
    source, x = drawn("shvit_s1", num_classes=5, **SHVIT), torch.randn(2, 3, 75, 66)
    torch.save({"model": published_shvit(source)}, tmp_path / "w.pth")
    model = timm.create_model("shvit_s1", num_classes=classes, **SHVIT).eval()
    visionattn.load_checkpoint(model, tmp_path / "w.pth")
    assert torch.equal(model.forward_features(x), source.forward_features(x))
    assert classes == 0 or torch.equal(model(x), source(x))
    torch.save(source.state_dict(), tmp_path / "timm.pth")  # timm's own names
    visionattn.load_checkpoint(model, tmp_path / "timm.pth")


def test_a_file_is_refused_whole(tmp_path):
    entries = published_shvit(drawn("shvit_s1", num_classes=5, **SHVIT))
    entries.pop("blocks2.1.se.fc1.bias")
    torch.save({**entries, "blocks2.9.conv.m.c.weight": torch.ones(2)}, tmp_path / "w.pth")
    model = drawn("shvit_s1", num_classes=5, **SHVIT)
    before = model.state_dict()["head.l.weight"].clone()
    with pytest.raises(ValueError, match=r"(?s)SHViT names.*1 missing: stages.1.downsample.2.*1 unexpected: blocks2.9"):
        visionattn.load_checkpoint(model, tmp_path / "w.pth")
    assert torch.equal(model.state_dict()["head.l.weight"], before)
    with pytest.raises(TypeError, match="not a model of the zoo"):
        visionattn.load_checkpoint(timm.create_model("test_resnet"), tmp_path / "w.pth")


def test_levits_blocks_are_counted_by_the_models_depths():
    model = timm.create_model("levit_128s", **LEVIT)
    rename = levit_names(model).rename
    assert rename("blocks.1.m.2.bn.bias")[0] == "stages.0.blocks.0.mlp.ln2.bn.bias"
    assert rename("blocks.2.q.1.c.weight")[0] == "stages.1.downsample.attn_downsample.q.ln.linear.weight"
    assert rename("blocks.3.m.0.bn.weight")[0] == "stages.1.downsample.mlp.ln1.bn.weight"
    assert rename("blocks.10.m.attention_biases")[0] == "stages.2.blocks.0.attn.attention_biases"
    assert rename("blocks.12.m.0.c.weight")[0].startswith("blocks.12.")  # of a deeper model


def test_linear_layers_become_convolutions_where_timm_has_them():
    tokens, maps = (drawn(name, **LEVIT) for name in ("levit_128s", "levit_conv_128s"))
    state = tokens.state_dict()
    authors = {name if "head" in name else name.replace(".linear.", ".c."): tensor for name, tensor in state.items()}
    maps.load_state_dict(convert(authors, maps, SERVED["levit"].key_maps))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(maps(x), tokens(x), rtol=1e-3, atol=1e-4)


def test_convert_writes_what_timm_loads(tmp_path):
    source = drawn("shvit_s1")
    torch.save({"model": published_shvit(source)}, tmp_path / "w.pth")
    convert_checkpoint(tmp_path / "w.pth", "shvit_s1", tmp_path / "w.safetensors")
    overlay = dict(file=str(tmp_path / "w.safetensors"))
    model = timm.create_model("shvit_s1", pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(t, source.state_dict()[name]) for name, t in model.state_dict().items())


def test_backbones_of_detectors_take_an_authors_file(tmp_path):
    pytest.importorskip("mmengine")
    from visionattn.openmmlab import TimmBackbone

    source, x = drawn("shvit_s1", **SHVIT), torch.randn(1, 3, 75, 66)
    torch.save({"model": published_shvit(source)}, tmp_path / "w.pth")
    backbone = TimmBackbone("shvit_s1", (0, 1, 2), checkpoint=tmp_path / "w.pth", **SHVIT).eval()
    backbone.init_weights()
    expected = source.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(backbone(x), expected, strict=True))


def test_they_are_known_and_listed_as_timms():
    names = visionattn.list_models("shvit*", tags=True, served=True)
    assert names == [f"shvit_s{i}.in1k" for i in range(1, 5)] and visionattn.list_models("shvit*") == []
    info = visionattn.info("shvit_s4")
    assert (info.library, info.top1, info.input_size) == ("timm", 79.4, (3, 256, 256)) and info.dense[1].mask_ap == 35.9
    assert visionattn.info("va_nat_mini").library == "visionattn"
    assert all(timm.is_model(name) for name in visionattn.list_models(served=True))
    call = CliRunner().invoke
    assert "| shvit_s4.in1k (timm) | 16.5 M |" in call(app, ["zoo", "shvit*", "--markdown"]).stdout
    assert {row["library"] for row in json.loads(call(app, ["zoo", "levit*", "--json"]).stdout)} == {"timm"}
    with pytest.raises(ValueError, match="did you mean shvit_s1"):
        visionattn.info("shvit_s11")


def test_every_one_has_a_card():
    assert all(card(name) in PAGE.read_text() for name in SERVED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "free"),
    [("shvit_s1", SHVIT, True), ("levit_128s", LEVIT, False), ("levit_conv_128s", LEVIT, False),
     ("tnt_s_patch16_224", dict(embed_dim=24, inner_dim=8, depth=2, num_heads_outer=3, img_size=64), False),
     ("convit_tiny", dict(embed_dim=8, num_heads=4, depth=3, local_up_to_layer=2, img_size=64), False)],
)  # fmt: skip
def test_they_export(name, args, free, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from visionattn.export import export_onnx

    size = (3, 128, 128) if free else (3, 64, 64)  # a map of one pixel would fix the graph
    report = export_onnx(timm.create_model(name, num_classes=5, **args).eval(), tmp_path / "m.onnx", size)
    assert report.dynamic_batch and report.dynamic_size == free and report.max_relative_difference <= 1e-4
