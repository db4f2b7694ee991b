# SPDX-License-Identifier: Apache-2.0
"""The registry: names, what is known of them, and what a user with a wrong name is told."""

import json
from pathlib import Path

import pytest
import timm
import torch

import visionattn
from visionattn._index import read_index, read_mixers
from visionattn.layers import GlobalAttention, NeighborhoodAttention, WindowAttention
from visionattn.models import FAMILIES, Pyramid
from visionattn.models._card import card, index, mixers, render
from visionattn.models._registry import Dense, register

PAGES = sorted((Path(__file__).parents[2] / "docs" / "models").glob("*.md"))


def test_patterns_list_names_with_and_without_prefix():
    names = visionattn.list_models("va_nat_*")
    assert names[:2] == ["va_nat_mini", "va_nat_tiny"]
    assert visionattn.list_models("nat_*") == names
    assert visionattn.list_models("nothing*") == []
    assert visionattn.list_models("va_swin_large", tags=True) == []
    assert visionattn.list_models("va_swin_large.*", tags=True) == [
        "va_swin_large.in22k_ft_in1k",
        "va_swin_large.in22k",
    ]


def test_info_gives_the_published_facts_of_the_tag():
    info = visionattn.info("va_dinat_large.in22k")
    assert (info.reference, info.top1, info.params_m, info.gflops) == ("dinat_large_21k", None, 200, 30.6)
    assert info.args["drop_path_rate"] == 0.2 and info.arxiv == "2209.15001" and info.license == "mit"
    default = visionattn.info("va_dinat_large")
    assert default.tag == "in22k_ft_in1k" and default.top1 == 86.6 and default.args["drop_path_rate"] == 0.35
    assert visionattn.info("va_swin_tiny_c24").input_size == (3, 256, 256)


@pytest.mark.parametrize("ask", [visionattn.info, visionattn.create_model])
def test_unknown_names_and_tags_offer_the_nearest(ask):
    with pytest.raises(ValueError, match=r"unknown model 'va_nat_tinny'; did you mean va_nat_tiny"):
        ask("va_nat_tinny")
    with pytest.raises(ValueError, match=r"unknown tag of va_nat_tiny 'in2k'; did you mean in1k\?"):
        ask("va_nat_tiny.in2k")


def test_create_model_serves_timms_names_too():
    assert visionattn.create_model("test_vit", num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match="resnet50"):
        visionattn.create_model("resnet500")


def test_a_tag_brings_its_own_arguments():
    args = dict(embed_dim=16, depths=(2, 2, 1, 1), num_heads=(1, 2, 2, 4))
    rates = {}
    for tag in ("in1k", "in22k"):
        model = timm.create_model(f"va_swin_tiny.{tag}", **args)
        rates[tag] = (model.stages[-1].blocks[-1].drop_path.drop_prob, model.num_classes)
    assert rates == {"in1k": (0.2, 1000), "in22k": (0.1, 21841)}


def test_unknown_parts_offer_the_nearest():
    with pytest.raises(ValueError, match="unknown mixer 'neighbourhood'; did you mean neighborhood"):
        timm.create_model("va_nat_tiny", mixers="neighbourhood")
    with pytest.raises(ValueError, match="unknown stem 'cnv'; did you mean conv"):
        timm.create_model("va_nat_tiny", stem="cnv")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_heads=(3, 4, 8, 16)), "num_heads=3 must be a positive divisor of dim=64"),
        (dict(num_heads=(2, 4)), r"num_heads=\(2, 4\) must have one entry for each of the 4 stages"),
        (dict(dilations=((1, 1),)), "dilations=.* must give every block one"),
        (dict(depths=(0, 1, 1, 1)), r"depths=\(0, 1, 1, 1\)"),
        (dict(output_norms=(0, 4)), r"output_norms=\(0, 4\) must name stages 0..3"),
        (dict(num_classes=-1), "num_classes=-1"),
        (dict(in_chans=0), "in_chans=0"),
        (dict(kernel_size=0), "must be positive"),
        (dict(mlp_ratio=(3, 3)), r"mlp_ratio=\(3, 3\) must have one entry for each of the 4 stages"),
        (dict(mixers=("window", ["global"], "window", "window")), "mixers=.* must give every block one"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("va_nat_tiny", **kwargs)


def test_any_mixer_fits_the_host():
    args = dict(depths=(1, 1, 1, 1), dims=(16, 32, 32, 64), num_heads=(1, 2, 2, 4), num_classes=5)
    kinds = ("window", "neighborhood", "global", "global")
    options = ({"window_size": 4, "shift": 2}, {"kernel_size": 3}, {"map_size": 4}, {"map_size": 2})
    model = Pyramid(mixers=kinds, mixer_args=lambda stage, block: options[stage], **args)
    assert model(torch.randn(2, 3, 61, 75)).shape == (2, 5)


@pytest.mark.parametrize("host", ["va_pvtv2_b0", "va_cswin_tiny"])
def test_a_host_takes_other_mixers_in_place_of_its_own(host):
    args = dict(depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), num_classes=5)
    model = timm.create_model(host, mixers="neighborhood", mixer_args={"kernel_size": 3}, **args)
    mixers = [stage.blocks[0].attn for stage in model.stages]
    assert all(isinstance(mixer, NeighborhoodAttention) and mixer.kernel_size == 3 for mixer in mixers)
    assert model(torch.randn(1, 3, 70, 52)).shape == (1, 5)


def test_blocks_of_a_stage_take_turns_between_mixers():
    model = Pyramid((3, 1), (16, 32), (2, 2), mixers=(["window", "global", "window"], "spatial_reduction"))
    assert [type(b.attn) for b in model.stages[0].blocks] == [WindowAttention, GlobalAttention, WindowAttention]


def test_weights_on_a_page_are_asked_for(tmp_path):
    args = dict(depths=(1, 1, 1, 1), dims=(16, 16, 16, 16), num_heads=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"download them from https://drive.google.com/.* and give the file as"):
        timm.create_model("va_twins_pcpvt_small", pretrained=True, pretrained_cfg_overlay=dict(hf_hub_id=None), **args)
    trained = timm.create_model("va_twins_pcpvt_small", **args)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    overlay = dict(file=str(tmp_path / "w.pth"))
    model = timm.create_model("va_twins_pcpvt_small", pretrained=True, pretrained_cfg_overlay=overlay, **args)
    assert torch.equal(model.stages[0].position.conv.weight, trained.stages[0].position.conv.weight)
    assert timm.get_pretrained_cfg("va_twins_pcpvt_small").hf_hub_id == "timm/twins_pcpvt_small.in1k"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_cards_are_current(page):
    assert render(page.read_text()) == page.read_text()


def test_the_index_is_current():
    assert read_index() == json.loads(json.dumps(index(), default=dict))
    assert read_mixers() == mixers()


def test_every_family_has_a_card():
    text = "".join(page.read_text() for page in PAGES)
    assert all(card(name) in text for name in FAMILIES)


def test_published_dense_results_are_sane_and_stand_on_the_cards():
    text = "".join(page.read_text() for page in PAGES)
    rows = [visionattn.info(name) for name in visionattn.list_models(tags=True)]
    results = [(row, result) for row in rows for result in row.dense]
    families = {row.family for row, _ in results}
    assert families >= {"swin", "nat", "dinat", "dinat_s", "twins", "biformer", "triplet", "agent_pvt"}
    for row, result in results:
        figures = (result.box_ap, result.mask_ap, result.miou, result.miou_multi)
        assert any(figure is not None for figure in figures), row.name
        assert all(20 < figure < 70 for figure in figures if figure is not None), row.name
        if result.box_ap is not None and result.mask_ap is not None:
            assert result.box_ap > result.mask_ap, row.name
        if result.miou is not None and result.miou_multi is not None:
            assert result.miou_multi >= result.miou - 1, row.name
        cells = " | ".join("–" if figure is None else f"{figure:g}" for figure in figures)
        assert any(
            line.startswith(f"| `{row.name}` | {result.method}") and line.endswith(f"| {cells} |")
            for line in text.splitlines()
        ), (row.name, result)
    assert Dense("Cascade Mask R-CNN 3x", 51.4, 44.5) in visionattn.info("va_nat_tiny").dense
    assert Dense("UPerNet 160k", miou=48.8, miou_multi=50.2) in visionattn.info("va_twins_svt_large").dense


def test_dense_results_must_be_of_registered_weights():
    results = {"va_nat_tiny.in1k": (Dense("UPerNet 160k", miou=47.1),)}
    with pytest.raises(ValueError, match=r"dense names \['va_nat_tiny.in1k'\], which are not among the weights of nat"):
        register(__name__, FAMILIES["nat"], {}, {}, results)
