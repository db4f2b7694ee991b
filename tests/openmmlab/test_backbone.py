# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")

from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402

import visionattn  # noqa: E402
from visionattn.models import FAMILIES, Pyramid, dense_args  # noqa: E402
from visionattn.openmmlab import TimmBackbone, TimmParamGroups, fill_channels, packages  # noqa: E402
from visionattn.openmmlab.channels import channels_of  # noqa: E402

SMALL = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "kernel_size": 3}
SWIN = {"embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
# A micro of every family that has one, by the name of its model.
MICROS = {name: dict(args) for family in FAMILIES.values() for name, args in family.micros.items()}
# Of timm's own, each a kind: windows, patches, convolutions.
TIMM = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "resnet18": {"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)},
    "efficientnet_b0": {},
    "vit_tiny_patch16_224": {"depth": 3, "embed_dim": 24, "num_heads": 2, "out_indices": (0, 2)},
}
ODD = (61, 75)  # height, width


def image(*size, batch=2):
    return torch.randn(batch, 3, *(size or ODD))


@pytest.mark.parametrize("name", [*MICROS, *TIMM])
def test_maps_of_odd_images_have_the_channels_and_strides_it_tells(name):
    if "deit" in name:
        pytest.skip("DeiT's hosts take images of one size")
    backbone = TimmBackbone(name, **(MICROS | TIMM)[name])
    maps = backbone(image(*ODD) if "halo" not in name and "bot" not in name else image(64, 96))
    assert isinstance(maps, tuple)
    assert [m.shape[1] for m in maps] == backbone.channels
    assert len(maps) == len(backbone.strides) == len(backbone.out_indices)
    assert backbone.strides == sorted(backbone.strides)
    for feature, stride in zip(maps, backbone.strides, strict=True):
        assert feature.is_contiguous()
        if "halo" not in name and "bot" not in name:
            sides = [(side // stride, -(-side // stride)) for side in ODD]
            assert all(low <= n <= high for n, (low, high) in zip(feature.shape[2:], sides, strict=True))
    sum(m.sum() for m in maps).backward()
    assert not [n for n, p in backbone.named_parameters() if p.grad is None]


def test_levels_are_chosen_in_order_and_the_rest_is_dropped():
    torch.manual_seed(0)
    whole = TimmBackbone("va_nat_tiny", **SMALL).eval()
    assert whole.out_indices == (0, 1, 2, 3) and whole.strides == [4, 8, 16, 32]
    part = TimmBackbone("va_nat_tiny", out_indices=(1, -2), **SMALL).eval()
    assert part.out_indices == (1, 2) and part.channels == [16, 32]
    assert len(part.model.stages) == 3
    part.model.load_state_dict(whole.model.state_dict(), strict=False)
    x = image()
    for ours, theirs in zip(part(x), whole(x)[1:3], strict=True):
        assert torch.equal(ours, theirs)
    # The first feature of timm's ResNets is at stride 2, which detectors do not read.
    assert TimmBackbone("resnet18", **TIMM["resnet18"]).out_indices == (1, 2, 3, 4)


def test_the_authors_dense_backbone_is_the_default_and_output_norms_can_be_chosen():
    def norms(**kwargs):
        backbone = TimmBackbone("va_nat_tiny", **SMALL, **kwargs)
        own = backbone.model.norm.normalized_shape if isinstance(backbone.model.norm, nn.LayerNorm) else ()
        return sorted(backbone.model.output_norms), own

    assert norms() == norms(output_norms=True) == (["0", "1", "2"], (64,))
    assert norms(output_norms=False) == ([], ())
    assert norms(output_norms=(0, 2)) == (["0", "2"], ())
    assert norms(out_indices=(1, 2)) == (["1", "2"], ())
    swin = TimmBackbone("va_swin_tiny", **SWIN)
    assert all(b.attn.shift_small_maps for stage in swin.model.stages for b in stage.blocks)
    assert dense_args("va_twins_svt_small") == {"stage_norms": True} and dense_args("va_twins_pcpvt_small") == {}
    assert dense_args("resnet50") == {}


def test_models_of_timm_get_norms_after_them():
    plain = TimmBackbone("resnet18", **TIMM["resnet18"]).eval()
    normed = TimmBackbone("resnet18", output_norms=True, **TIMM["resnet18"]).eval()
    normed.model.load_state_dict(plain.model.state_dict())
    x = image()
    for feature, raw in zip(normed(x), plain(x), strict=True):
        expected = nn.functional.layer_norm(raw.movedim(1, -1), raw.shape[1:2], eps=1e-6).movedim(-1, 1)
        assert torch.allclose(feature, expected, atol=1e-5)
    some = TimmBackbone("resnet18", output_norms=(4,), **TIMM["resnet18"])
    assert list(some.norms) == ["4"]


@pytest.mark.parametrize("name", ["va_nat_tiny", "resnet18"])
def test_frozen_parts_do_not_learn_and_stay_in_evaluation(name):
    args = SMALL if name == "va_nat_tiny" else TIMM[name]
    for stages in (-1, 0, 1, 2):
        backbone = TimmBackbone(name, frozen_stages=stages, **args)
        backbone.eval()
        backbone.train()
        frozen = {n for n, p in backbone.model.named_parameters() if not p.requires_grad}
        heads = {".".join(n.split(".")[:2]) if n.startswith("stages") else n.split(".")[0] for n in frozen}
        stem = {"stem"} if name == "va_nat_tiny" else {"conv1", "bn1"}
        levels = {f"stages.{i}" if name == "va_nat_tiny" else f"layer{i + 1}" for i in range(stages)}
        assert heads == (set() if stages < 0 else stem | levels)
        for level in levels:
            assert not any(m.training for m in backbone.model.get_submodule(level).modules())
        assert backbone.training and backbone.model.training
        last = "stages.3" if name == "va_nat_tiny" else "layer4"
        assert backbone.model.get_submodule(last).training
    # Norms of outputs are no part of a pretrained stem or stage.
    assert name == "resnet18" or backbone.model.output_norms["0"].weight.requires_grad


def test_norms_that_are_exchanged_for_synchronised_ones_stay_frozen():
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(TimmBackbone("resnet18", frozen_stages=1, **TIMM["resnet18"]))
    backbone.train()
    assert isinstance(backbone.model.bn1, nn.SyncBatchNorm) and not backbone.model.bn1.training
    assert not backbone.model.layer1[0].bn1.training and backbone.model.layer2[0].bn1.training


def test_batch_norms_keep_their_statistics_where_asked():
    backbone = TimmBackbone("resnet18", norm_eval=True, **TIMM["resnet18"]).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items() if "running" in k}
    backbone(image())
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in before.items())
    assert backbone.model.bn1.weight.requires_grad and backbone.model.layer1.training


def test_dropped_paths_checkpointing_and_acceleration_do_what_they_say():
    rates = [m.drop_prob for m in TimmBackbone("va_nat_tiny", drop_path_rate=0.4, **SMALL).modules()
             if type(m).__name__ == "DropPath"]  # fmt: skip
    assert max(rates) == pytest.approx(0.4)
    torch.manual_seed(1)
    plain = TimmBackbone("va_nat_tiny", **SMALL)
    saved = TimmBackbone("va_nat_tiny", grad_checkpointing=True, **SMALL)
    saved.load_state_dict(plain.state_dict())
    assert saved.model.grad_checkpointing
    x, gradients = image(), []
    for backbone in (plain.eval(), saved.eval()):
        sum(m.square().sum() for m in backbone(x)).backward()
        gradients.append(backbone.model.stem.proj[0].weight.grad)
    assert torch.allclose(*gradients, rtol=1e-5)
    theirs = TimmBackbone("swin_tiny_patch4_window7_224", **TIMM["swin_tiny_patch4_window7_224"]).eval()
    ours = TimmBackbone("swin_tiny_patch4_window7_224", accelerate=True, **TIMM["swin_tiny_patch4_window7_224"]).eval()
    ours.load_state_dict(theirs.state_dict())
    for one, other in zip(ours(x), theirs(x), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def randomised(model):
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return model


@pytest.mark.parametrize("name", ["va_nat_tiny", "va_biformer_tiny", "resnet18"])
def test_weights_come_from_a_classifier_or_a_detector_when_initialised(name, tmp_path):
    args = {"va_nat_tiny": SMALL, "resnet18": TIMM["resnet18"]}.get(name) or MICROS[name]
    classifier = randomised(visionattn.create_model(name, num_classes=7, **args))
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "classifier.pth")
    backbone = TimmBackbone(name, checkpoint=tmp_path / "classifier.pth", **args)
    before = backbone.model.state_dict()
    before = {key: value.clone() for key, value in before.items()}
    backbone.init_weights()
    source = classifier.state_dict()
    shared = [key for key in before if key in source and "num_batches" not in key]
    assert len(shared) > 10
    assert all(torch.equal(backbone.model.state_dict()[key], source[key]) for key in shared)
    detector = {f"backbone.model.{key}": value for key, value in backbone.model.state_dict().items()}
    detector["bbox_head.weight"] = torch.randn(3)
    torch.save({"state_dict": detector}, tmp_path / "detector.pth")
    again = TimmBackbone(name, checkpoint=tmp_path / "detector.pth", **args)
    again.init_weights()
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value), key


def test_mmengine_does_not_initialise_a_loaded_backbone_again(tmp_path):
    args = TIMM["vit_tiny_patch16_224"]  # whose model has an init_weights of its own
    source = randomised(
        visionattn.create_model("vit_tiny_patch16_224", **{k: v for k, v in args.items() if k[0] != "o"})
    )
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    from mmengine.model import BaseModule

    class Detector(BaseModule):
        def __init__(self):
            super().__init__()
            self.backbone = TimmBackbone("vit_tiny_patch16_224", checkpoint=tmp_path / "vit.pth", **args)

    detector = Detector()
    detector.init_weights()
    detector.init_weights()
    key = "blocks.0.attn.qkv.weight"
    assert torch.equal(detector.backbone.model.state_dict()[key], source.state_dict()[key])


def test_a_checkpoint_that_does_not_fit_lists_why(tmp_path):
    state = visionattn.create_model("va_nat_tiny", **SMALL).state_dict()
    state["stranger"] = torch.randn(2)
    del state["stages.0.blocks.0.norm1.weight"]
    torch.save(state, tmp_path / "odd.pth")
    backbone = TimmBackbone("va_nat_tiny", checkpoint=tmp_path / "odd.pth", **SMALL)
    with pytest.raises(ValueError, match=r"(?s)1 missing: stages.0.blocks.0.norm1.weight.*1 unexpected: stranger"):
        backbone.init_weights()
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        TimmBackbone("va_nat_tiny", checkpoint=tmp_path / "none.pth", **SMALL).init_weights()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (dict(name="va_nat_tinny"), ValueError, "va_nat_tiny"),
        (dict(name="va_nat_tiny", depth=50), TypeError, "depth.*_delete_=True"),
        (dict(name="va_nat_tiny", out_indices=(0, 4)), ValueError, r"out_indices=\(0, 4\).*4 levels.*strides are 4, 8"),
        (dict(name="va_nat_tiny", out_indices=(2, 1)), ValueError, "increasing"),
        (dict(name="va_nat_tiny", out_indices=()), ValueError, r"out_indices=\(\)"),
        (dict(name="va_nat_tiny", frozen_stages=5, **SMALL), ValueError, "frozen_stages=5 must be at most 4"),
        (dict(name="resnet18", frozen_stages=9), ValueError, "frozen_stages=9 must be at most"),
        (dict(name="va_nat_tiny", output_norms=(7,)), ValueError, r"output_norms=\(7,\)"),
        (dict(name="resnet18", output_norms=(0,)), ValueError, r"output_norms=\(0,\).*\(1, 2, 3, 4\)"),
        (dict(name="va_nat_tiny", drop_path_rate=1.5), ValueError, "drop_path_rate=1.5"),
        (dict(name="va_nat_tiny", pretrained=True, checkpoint="a.pth"), ValueError, "exclude each other"),
        (dict(name="va_nat_tiny", init_cfg=dict(type="Pretrained")), ValueError, "`checkpoint` names a file"),
        (dict(name="va_nat_tiny", pretrained="in21k"), ValueError, "in21k"),
        (dict(name=nn.Linear(2, 2)), ValueError, "lacks forward_intermediates"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        TimmBackbone(**arguments)


# --- channels ---------------------------------------------------------------------------------------------------------


def nat(**kwargs):
    return dict(type="TimmBackbone", name="va_nat_tiny", **kwargs)


def test_channels_cost_no_weights_and_are_the_backbones():
    assert channels_of(nat(pretrained=True, drop_path_rate=0.3, output_norms=False, **SMALL)) == [8, 16, 32, 64]
    assert channels_of(dict(name="resnet18")) == [64, 128, 256, 512]
    assert channels_of(nat(out_indices=(1, 3))) == [128, 512]


@pytest.mark.parametrize("unset", [{}, {"in_channels": None}, {"in_channels": "auto"}])
def test_what_follows_the_backbone_gets_its_channels(unset):
    cfg = Config(dict(model=dict(backbone=nat(), neck=dict(type="FPN", **unset))))
    assert fill_channels(cfg) is cfg and cfg.model.neck.in_channels == [64, 128, 256, 512]
    neck = [dict(type="FPN", **unset), dict(type="DyHead", in_channels=256)]
    assert fill_channels(ConfigDict(backbone=nat(out_indices=(1, 2, 3)), neck=neck)).neck[0].in_channels == [
        128,
        256,
        512,
    ]
    heads = ConfigDict(
        backbone=nat(),
        decode_head=dict(in_index=[0, 1, 2, 3], **unset),
        auxiliary_head=[dict(in_index=2, **unset), dict(in_index=-1, **unset)],
    )
    fill_channels(heads)
    assert heads.decode_head.in_channels == [64, 128, 256, 512]
    assert [head.in_channels for head in heads.auxiliary_head] == [256, 512]
    assert fill_channels(ConfigDict(backbone=nat(), panoptic_head=dict(**unset))).panoptic_head.in_channels[-1] == 512
    single = ConfigDict(backbone=nat(out_indices=(3,)), neck=dict(type="DilatedEncoder", **unset))
    assert fill_channels(single).neck.in_channels == 512


def test_channels_that_are_given_and_other_backbones_stay():
    cfg = ConfigDict(
        backbone=nat(), neck=dict(type="FPN", in_channels=[1, 2]), bbox_head=dict(type="Head"), roi_head=dict(a=[1])
    )
    expected = cfg.to_dict()
    assert fill_channels(cfg).to_dict() == expected
    other = ConfigDict(detector=dict(backbone=dict(type="ResNet"), neck=dict(type="FPN")))
    assert "in_channels" not in fill_channels(other).detector.neck
    nested = ConfigDict(detector=dict(backbone=nat(), neck=dict(type="FPN")))
    assert fill_channels(nested).detector.neck.in_channels == [64, 128, 256, 512]


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_both_packages_find_it_and_fill_in_channels_themselves(scope):
    pytest.importorskip(scope)
    import importlib

    models = importlib.import_module(f"{scope}.registry").MODELS
    assert isinstance(models.build(nat(**SMALL)), TimmBackbone)
    importlib.import_module(f"{scope}.models")
    if scope == "mmdet":
        cfg = dict(
            type="mmdet.RetinaNet",
            backbone=nat(**SMALL),
            neck=dict(type="mmdet.FPN", in_channels="auto", out_channels=8, num_outs=4),
            bbox_head=dict(
                type="mmdet.RetinaHead",
                num_classes=2,
                in_channels=8,
                feat_channels=8,
                anchor_generator=dict(type="mmdet.AnchorGenerator", scales=[4], ratios=[1.0], strides=[4, 8, 16, 32]),
                bbox_coder=dict(type="mmdet.DeltaXYWHBBoxCoder"),
                loss_cls=dict(type="mmdet.FocalLoss"),
                loss_bbox=dict(type="mmdet.L1Loss"),
            ),
        )
    else:
        head = dict(type="mmseg.FCNHead", in_channels="auto", in_index=3, channels=4, num_classes=3)
        cfg = dict(type="mmseg.EncoderDecoder", backbone=nat(**SMALL), decode_head=head)
    before = str(cfg)
    model = MODELS.build(cfg)
    assert str(cfg) == before
    assert scope == "mmseg" or [c.conv.in_channels for c in model.neck.lateral_convs] == [8, 16, 32, 64]
    assert scope == "mmdet" or model.decode_head.in_channels == 64


# --- parameter groups -------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = TimmBackbone("va_nat_tiny", **SMALL, **kwargs)
        self.query_embed = nn.Embedding(3, 4)
        self.head = nn.Conv2d(8, 2, 3)


def groups_of(model, **paramwise):
    wrapper = dict(optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1))
    optimizer = TimmParamGroups(wrapper, paramwise)(model)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer.optimizer.param_groups
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_layers_of_the_backbone_learn_slower_towards_the_stem():
    model = Detector()
    groups = groups_of(model, layer_decay=0.5)
    assert groups.keys() == dict(model.named_parameters()).keys()
    assert groups["head.weight"] == (1.0, 0.1) and groups["head.bias"] == (1.0, 0.0)
    blocks = ("stages.0.blocks.0", "stages.1.blocks.0", "stages.1.blocks.1", "stages.2.blocks.0", "stages.3.blocks.0")
    rates = [groups[f"backbone.model.{b}.mlp.fc1.weight"][0] for b in blocks]
    assert all(later == pytest.approx(2 * earlier) for earlier, later in zip(rates, rates[1:], strict=False))
    assert groups["backbone.model.stem.proj.0.weight"][0] == pytest.approx(rates[0] / 2)
    assert groups["backbone.model.stages.0.blocks.0.attn.rpb"][1] == 0.0
    assert groups["backbone.model.stages.0.blocks.0.norm1.weight"][1] == 0.0


def test_layers_may_be_groups_of_blocks():
    # Blocks of the stages: 1, 2, 1, 1.
    expected = {
        "stage_layers": (
            (1, 1, 1, 1),
            {"0.blocks.0": 1, "1.blocks.0": 2, "1.blocks.1": 2, "2.down": 4, "3.blocks.0": 4},
        ),
        "layer_blocks": (2, {"0.blocks.0": 1, "1.blocks.0": 1, "1.blocks.1": 2, "2.down": 3, "3.blocks.0": 3}),
    }
    for key, (value, layers) in expected.items():
        groups = groups_of(Detector(), layer_decay=0.5, **{key: value})
        rates = {name: rate for name, (rate, _) in groups.items()}
        last = max(layers.values()) + 1
        for part, layer in layers.items():
            found = {rate for name, rate in rates.items() if name.startswith(f"backbone.model.stages.{part}.")}
            assert found == {0.5 ** (last - layer)}, (key, part)
        assert rates["backbone.model.stem.proj.0.weight"] == 0.5**last
        assert rates["head.weight"] == 1.0


def test_a_rate_for_the_backbone_names_without_decay_and_frozen_parts():
    groups = groups_of(Detector(frozen_stages=1), backbone_lr_mult=0.1, spared=("query_embed",))
    assert groups["query_embed.weight"] == (1.0, 0.0)
    assert {rate for name, (rate, _) in groups.items() if "backbone" in name} == {0.1}
    assert not [name for name in groups if "stem" in name or "stages.0" in name]
    assert groups_of(Detector())["query_embed.weight"] == (1.0, 0.1)


def test_wrong_parameter_groups_are_named():
    with pytest.raises(ValueError, match=r"unknown keys \['lr_decay'\]"):
        TimmParamGroups({}, {"lr_decay": 0.5})
    with pytest.raises(ValueError, match="layer_decay=0 must be above 0"):
        TimmParamGroups({}, {"layer_decay": 0})
    with pytest.raises(ValueError, match="stage_layers and layer_blocks must come alone"):
        TimmParamGroups({}, {"layer_decay": 0.5, "stage_layers": (1,), "layer_blocks": 2})
    with pytest.raises(ValueError, match="layer_blocks must come alone and with a layer_decay"):
        TimmParamGroups({}, {"layer_blocks": 2})
    with pytest.raises(ValueError, match=r"stage_layers=\(1, 3, 1, 1\) must divide stages of \(1, 2, 1, 1\) blocks"):
        groups_of(Detector(), layer_decay=0.5, stage_layers=(1, 3, 1, 1))
    with pytest.raises(TypeError, match="Linear has no TimmBackbone"):
        groups_of(nn.Linear(2, 2))


# --- packages ---------------------------------------------------------------------------------------------------------


def test_packages_are_found_by_either_of_their_names():
    pytest.importorskip("mmseg")
    assert packages.is_installed("mmseg") and packages.is_installed("mmsegmentation")
    assert packages.get_installed_path("mmsegmentation") == packages.get_installed_path("mmseg")
    assert not packages.is_installed("mmnothing")
    with pytest.raises(ModuleNotFoundError, match="mmnothing"):
        packages.get_installed_path("mmnothing")


@pytest.mark.slow
def test_it_needs_mmengine_alone():
    code = (
        "import sys\n"
        "for name in ('mmcv', 'mmdet', 'mmseg'): sys.modules[name] = None\n"
        "from visionattn.openmmlab import TimmBackbone, fill_channels\n"
        "print(fill_channels(dict(backbone=dict(type='TimmBackbone', name='va_nat_tiny'), neck=dict()))['neck'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("{'in_channels': [64, 128, 256, 512]}"), done.stderr


@pytest.mark.slow
def test_every_dense_version_of_the_zoo_builds():
    with torch.device("meta"):
        for name in visionattn.list_models():
            if dense_args(name):
                assert isinstance(visionattn.create_model(name, num_classes=0, **dense_args(name)), Pyramid)
