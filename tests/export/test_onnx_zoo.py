# SPDX-License-Identifier: Apache-2.0
"""Micro models of every family, every mixer of the pyramid and every gate export, and agree.

By default one of each family, as small as it goes and with the batch alone free; the slow run frees height and width in
all but those of `FIXED`, which say what stands against it.
"""

import pytest
import timm
import torch
from torch import nn

import visionattn.layers as layers
from visionattn.layers.gates import GATES
from visionattn.models import FAMILIES
from visionattn.models.pyramid import NAMES as MIXERS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from visionattn.export import FeatureMaps, export_onnx  # noqa: E402

MICROS = {f"{family.name}-{name}": (name, args) for family in FAMILIES.values() for name, args in family.micros.items()}
SWIN = {"embed_dim": 16, "depths": (1,), "num_heads": (2,), "linear_blocks": (1,), "img_size": 64}
PVT = {"depths": (1,), "dims": (16,), "num_heads": (1,), "reductions": (4,), "linear_reductions": (1,),
       "linear_blocks": (1,), "mlp_ratio": (2,), "img_size": 64}  # fmt: skip
# One stage of the families that have no micro, as another host of their attention has one.
FIRST_STAGES = {
    "agent_swin": ("va_agent_swin_tiny", SWIN),
    "flatten_swin": ("va_flatten_swin_tiny", SWIN),
    "flatten_pvtv2": ("va_flatten_pvtv2_b0", PVT),
    "flatten_cswin": ("va_flatten_cswin_tiny", {**SWIN, "stripe_widths": (1,)}),
    "inline_swin": ("va_inline_swin_tiny", SWIN),
    "inline_pvt": ("va_inline_pvt_tiny", PVT),
}
# Free sides cost tracing a multiple of its time: of these gates by default, of the others if asked for.
QUICK_GATES = ("se", "ulsam")
# All of MobileNetV2 stands around the gates of these; by default the gates are exported alone, or on a ResNet.
WHOLE_CARRIERS = ("triplet_mobilenetv2", "das_mobilenetv2", "ulsam")
# Graphs of one size, by mixer, gate or family, and what of PyTorch or ONNX stands against free ones.
FIXED: dict[str, str] = {}
# The domains of standard operators.
STANDARD = {"", "ai.onnx"}


def chosen(names, quick):
    return [pytest.param(name, marks=[] if name in quick else [pytest.mark.slow]) for name in names]


def all_but(names, slow):
    return chosen(names, [name for name in names if name not in slow])


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn_afresh(model):
    """Every parameter random, so that none is idle at its initial 0 or 1."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def check(model, path, key, size=(3, 64, 48), outputs=("logits",)):
    report = export_onnx(model, path, size, outputs=outputs)
    assert report.dynamic_batch and report.max_relative_difference <= 1e-4
    assert report.dynamic_size or key in FIXED, report.fixed_because
    written = onnx.load(path)
    assert {opset.domain for opset in written.opset_import} <= STANDARD
    assert not written.functions and {node.domain for node in written.graph.node} <= STANDARD
    return report


def shortened(args, stages):
    """Arguments of a micro with so many of its stages, or of its blocks where it is no pyramid."""
    given = len(args.get("depths", ()))
    cut = {k: v[:stages] if isinstance(v, tuple) and len(v) == given else v for k, v in args.items()}
    return cut | {k: min(stages, args[k]) for k in ("depth", "linear_blocks") if isinstance(args.get(k), int)}


@pytest.mark.parametrize("family", all_but(FAMILIES, WHOLE_CARRIERS))
def test_one_of_every_family_exports(family, tmp_path):
    name, args = next(iter(FAMILIES[family].micros.items()), None) or FIRST_STAGES[family]
    stages = 3 if family in ("lit", "litv2") else 1  # whose first two have no attention
    model = drawn_afresh(timm.create_model(name, num_classes=7, **shortened(args, stages)))
    report = export_onnx(model, tmp_path / "m.onnx", (3, 64, 64), dynamic_size=False)
    assert report.dynamic_batch and report.max_relative_difference <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("key", MICROS)
def test_every_family_exports_with_free_sides(key, tmp_path):
    # Two stages have all there is to trace, where a family takes two.
    name, args = MICROS[key]
    model = drawn_afresh(timm.create_model(name, num_classes=7, **shortened(args, 2)))
    # Tracers tell sides of 1 from larger ones: no map of any stage may have one.
    check(model, tmp_path / "m.onnx", key.split("-")[0], (3, 128, 96))


@pytest.mark.slow
@pytest.mark.parametrize("key", ["nat", "pvt", "vim", "botnet"])
def test_feature_maps_export(key, tmp_path):
    name, args = next(value for label, value in MICROS.items() if label.startswith(f"{key}-"))
    maps = FeatureMaps(drawn_afresh(timm.create_model(name, **args)))
    check(maps, tmp_path / "m.onnx", key, outputs=maps.names)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_exports(name, tmp_path):
    model = timm.create_model(
        "va_pyramid_tiny", mixers=name, depths=(1, 1), embed_dim=16, num_heads=(2, 4), num_classes=5
    )
    # The last map has two cells of aggregated attention on each side: tracers tell sides of 1 from larger ones.
    check(drawn_afresh(model), tmp_path / "m.onnx", name, (3, 96, 64))


@pytest.mark.parametrize("name", chosen(GATES, QUICK_GATES))
def test_every_gate_exports(name, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), layers.create_gate(name, 32), nn.AdaptiveAvgPool2d(1))
    check(drawn_afresh(model), tmp_path / "m.onnx", name, (3, 32, 48))


@pytest.mark.slow
def test_attached_gates_export(tmp_path):
    model = layers.attach(timm.create_model("test_resnet", num_classes=5), "triplet")
    check(drawn_afresh(model), tmp_path / "m.onnx", "attach")
