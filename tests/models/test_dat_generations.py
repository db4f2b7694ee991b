# SPDX-License-Identifier: Apache-2.0
"""DAT's weights stay out of DAT++ models, and the reverse, also where names and shapes agree."""

import gzip
import json
from pathlib import Path

import pytest
import timm
import torch

import visionattn
from visionattn.models import FAMILIES
from visionattn.models.dat import dat, datpp

RECORDS = Path(__file__).parents[1] / "golden" / "records" / "dat"
SIZES = {"depths": (1, 1), "dims": (8, 16), "num_heads": (1, 2), "num_groups": (1, 2), "strides": 1, "img_size": 32,
         "offset_kernels": 3, "window_size": 4, "num_classes": 3}  # fmt: skip
PLAIN = {"conv_patches": False, "mlp": "mlp", "block_positions": False}
BUILDERS = {"DAT": lambda **args: dat(**SIZES, **args), "DAT++": lambda **args: datpp(**SIZES, **PLAIN, **args)}


def entries_of(variant):
    """Names and fresh tensors of a published state dict."""
    with gzip.open(RECORDS / f"{variant}.json.gz", "rt") as file:
        state = json.load(file)["state"]
    return {name: torch.randn(shape) for name, shape, _ in state}


def layout_of(variant):
    """Our arguments for the record's layout, without those that belong to a generation."""
    with gzip.open(RECORDS / f"{variant}.json.gz", "rt") as file:
        config = json.load(file)["config"]
    return {"depths": config["depths"], "dims": config["dims"], "num_heads": config["heads"], "num_classes": 10,
            "num_groups": [max(n, 1) for n in config["groups"]],
            "stage_spec": ["".join(spec) for spec in config["stage_spec"]], "window_size": config["window_sizes"],
            "strides": [max(n, 1) for n in config["strides"]],
            "img_size": config["img_size"], "offset_kernels": (9, 7, 5, 3)}  # fmt: skip


@pytest.mark.parametrize(
    ("variant", "build", "message"),
    [
        (
            "micro_v1",
            lambda a: datpp(**a, **PLAIN),
            r"weights of DAT and the model is DAT\+\+; shapes may agree",
        ),
        ("micro_dat_p", lambda a: dat(**a), r"weights of DAT\+\+ and the model is DAT; shapes may agree"),
    ],
    ids=["DAT into DAT++", "DAT++ into DAT"],
)
def test_published_files_of_the_other_generation_are_refused(variant, build, message, tmp_path):
    torch.save({"model": entries_of(variant)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        visionattn.load_checkpoint(build(layout_of(variant)), tmp_path / "w.pth")
    same = (dat(**layout_of(variant)) if variant == "micro_v1" else datpp(**layout_of(variant), **PLAIN)).eval()
    visionattn.load_checkpoint(same, tmp_path / "w.pth")  # names and shapes are the same
    assert same(torch.randn(1, 3, 96, 96)).isfinite().all()


@pytest.mark.parametrize(("theirs", "ours"), [("DAT", "DAT++"), ("DAT++", "DAT")])
def test_our_files_of_the_other_generation_are_refused(theirs, ours, tmp_path):
    saved, model = (BUILDERS[name](stage_spec=("L", "D")) for name in (theirs, ours))
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (saved, model)]
    assert shapes[0] == shapes[1]
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"has weights of DAT.* shapes may agree, but sampling points lie elsewhere"):
        visionattn.load_checkpoint(model, tmp_path / "w.pth")
    with pytest.raises(RuntimeError, match="on_c"):
        model.load_state_dict(saved.state_dict())


def test_a_file_that_does_not_tell_its_generation_is_refused(tmp_path):
    entries = {n: t for n, t in entries_of("micro_v1").items() if "relative_position" not in n}
    torch.save(entries, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"may be of DAT or of DAT\+\+, whose shapes agree; nothing in it tells"):
        visionattn.load_checkpoint(BUILDERS["DAT"](stage_spec=("D", "D")), tmp_path / "w.pth")


def test_pretrained_loading_refuses_too(tmp_path):
    torch.save(entries_of("micro_v1"), tmp_path / "w.pth")
    args = FAMILIES["datpp"].micros["va_datpp_tiny"]
    overlay = dict(file=tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"the model is DAT\+\+"):
        timm.create_model("va_datpp_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **args)


def test_tables_of_another_size_are_resized(tmp_path):
    small, large = (dat(**{**SIZES, "img_size": size}, stage_spec=("L", "D")) for size in (32, 64))
    torch.save(small.state_dict(), tmp_path / "w.pth")
    visionattn.load_checkpoint(large, tmp_path / "w.pth")
    assert large.stages[1].blocks[0].attn.rpb.shape == (2, 15, 15)
    assert torch.equal(large.stages[1].blocks[0].attn.q.weight, small.stages[1].blocks[0].attn.q.weight)


def test_initial_values_are_the_references():
    model = datpp(**SIZES, stage_spec=("N", "D"))
    attn = model.stages[1].blocks[0].attn
    assert attn.q.weight.abs().max() <= attn.dim**-0.5 and attn.q.bias.abs().sum() > 0  # PyTorch's own
    assert 0.007 < attn.rpb.std() < 0.013


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage_spec": ("L", "Z")}, r"stage_spec=\('L', 'Z'\) must have letters of LSDNPEX for each of 2 stages"),
        ({"stage_spec": ("L",)}, "for each of 2 stages"),
        ({"stage_spec": ("L", "D"), "conv_patches": True, "patch_size": 2}, "patch_size=2 must be 4"),
    ],
    ids=["letter", "stages", "patches"],
)
def test_wrong_layouts_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        dat(**SIZES, **arguments)
