# SPDX-License-Identifier: Apache-2.0
"""Every config for COCO, ADE20K and Cityscapes builds, trains a step and predicts: shallow, on small random images."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from mmengine.config import Config  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from mmengine.structures import InstanceData, PixelData  # noqa: E402

import visionattn  # noqa: E402
from visionattn.openmmlab import TimmBackbone, load_config  # noqa: E402
from visionattn.openmmlab._page import published, render  # noqa: E402
from visionattn.openmmlab.config import builtin_configs  # noqa: E402

CONFIGS = [name for name in builtin_configs() if name.startswith(("coco/", "ade20k/", "cityscapes/"))]
# In the default run: four kinds of heads on as many kinds of backbones.
SAMPLE = (
    "coco/mask-rcnn_nat-tiny_3x",
    "coco/retinanet_agent-pvt-tiny_1x",
    "coco/dino_swin-tiny_12e",
    "ade20k/upernet_twins-svt-small_160k",
)
SIZE = (72, 88)  # height, width


def pytest_generate_tests(metafunc):
    if "config" in metafunc.fixturenames:
        marks = {name: () if name in SAMPLE else pytest.mark.slow for name in CONFIGS}
        metafunc.parametrize("config", [pytest.param(name, marks=marks[name]) for name in CONFIGS])


def shallow(backbone):
    """One block a stage and two in the second, and whatever is given for each block cut accordingly."""
    args = dict(visionattn.info(backbone.name).args)
    args.update({key: value for key, value in backbone.items() if key in args or key == "dilations"})
    depths = args.get("depths") or args.get("layers")
    if depths is None:
        return {}
    kept = [min(depth, most) for depth, most in zip(depths, (1, 2, 1, 1), strict=True)]

    def cut(value):
        if not isinstance(value, (list, tuple)) or len(value) != len(depths):
            return value
        pairs = list(zip(value, depths, kept, strict=True))
        is_by_block = all(isinstance(v, (list, tuple, str)) and len(v) == depth for v, depth, _ in pairs)
        return [v[:n] for v, _, n in pairs] if is_by_block else value

    shrunk = {key: cut(value) for key, value in args.items()}
    if "linear_blocks" in args:
        shrunk["linear_blocks"] = [min(n, d) for n, d in zip(args["linear_blocks"], kept, strict=True)]
    shrunk["depths" if "depths" in args else "layers"] = kept
    return {key: value for key, value in shrunk.items() if value != args[key]}


def shrink_heads(model):
    """Fewer queries, regions and channels where they are not what a config is about."""
    if model.type in ("DINO", "DeformableDETR"):
        model.num_queries = 20
        model.encoder.num_layers = model.decoder.num_layers = 2
    if "roi_head" in model:
        model.train_cfg.rpn_proposal.max_per_img = 40
        stages = model.train_cfg.rcnn
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 16
        model.test_cfg.rpn.max_per_img = 20
        model.test_cfg.rcnn.max_per_img = 5
    if model.get("decode_head", {}).get("type") == "UPerHead":
        model.decode_head.channels = model.auxiliary_head.channels = 32


def built(name):
    cfg = load_config(name)
    backbone = cfg.model.backbone
    assert backbone.pop("pretrained") in (True, False, "in22k")
    backbone.update(shallow(backbone))
    shrink_heads(cfg.model)
    cfg.model.data_preprocessor.batch_augments = None
    groups = cfg.optim_wrapper.get("paramwise_cfg") or {}
    if "stage_layers" in groups:
        depths = visionattn.info(backbone.name).args["depths"]
        assert all(count <= depth for count, depth in zip(groups.stage_layers, depths, strict=True))
        groups.stage_layers = (1,) * len(depths)
    if "size" in cfg.model.data_preprocessor:
        cfg.model.data_preprocessor.size = SIZE
    init_default_scope(cfg.default_scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    # Statistics of the few pixels of a stride-32 map are no use, and of one pixel an error.
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0
    return cfg, model


def detection_batch(images, has_masks):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    samples = []
    for _ in range(images):
        corner = torch.rand(3, 2) * 30
        boxes = torch.cat([corner, corner + 15 + 25 * torch.rand(3, 2)], 1)
        masks = torch.zeros(3, *SIZE, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        truth = InstanceData(bboxes=boxes, labels=torch.randint(80, (3,)))
        if has_masks:
            truth.masks = BitmapMasks(masks.numpy(), *SIZE)
        meta = {"img_shape": SIZE, "ori_shape": SIZE, "pad_shape": SIZE, "batch_input_shape": SIZE,
                "scale_factor": (1.0, 1.0), "img_id": 0, "flip": False}  # fmt: skip
        samples.append(DetDataSample(metainfo=meta, gt_instances=truth))
    return samples


def segmentation_batch(images, classes):
    from mmseg.structures import SegDataSample

    meta = {"img_shape": SIZE, "ori_shape": SIZE, "pad_shape": SIZE}
    return [
        SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.randint(classes, (1, *SIZE))))
        for _ in range(images)
    ]


def batch(cfg, images=2):
    if cfg.default_scope == "mmdet":
        samples = detection_batch(images, "'with_mask': True" in str(cfg.train_dataloader.to_dict()))
    else:
        samples = segmentation_batch(images, cfg.model.decode_head.num_classes)
    return {"inputs": [torch.randint(256, (3, *SIZE), dtype=torch.uint8) for _ in samples], "data_samples": samples}


def test_the_sample_exists():
    assert set(SAMPLE) <= set(CONFIGS)


def test_a_config_builds_trains_a_step_and_predicts(config):
    torch.manual_seed(len(config))
    cfg, model = built(config)
    optimizer = build_optimizer(model, cfg)
    model.train()
    data = model.data_preprocessor(batch(cfg), True)
    loss, _ = model.parse_losses(model(**data, mode="loss"))
    assert torch.isfinite(loss)
    loss.backward()
    assert isinstance(model.backbone, TimmBackbone)
    trained = {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None]
    assert sum(p.grad.abs().sum() for p in trained.values()) > 0
    optimizer.step()
    model.eval()
    with torch.no_grad():
        (sample,) = model.test_step(batch(cfg, 1))
    if cfg.default_scope == "mmseg":
        assert sample.pred_sem_seg.data.shape == (1, *SIZE)
        assert sample.seg_logits.data.isfinite().all()
    else:
        assert sample.pred_instances.bboxes.isfinite().all()
        assert sample.pred_instances.scores.isfinite().all()


def build_optimizer(model, cfg):
    """Optim wrapper of a config, all parameters of the model in it but for frozen ones."""
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held >= {id(p) for p in model.parameters() if p.requires_grad}
    return optimizer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coco/mask-rcnn_swin-tiny_1x", "ade20k/upernet_nat-mini_160k"])
def test_mmengines_own_runner_takes_a_config_as_it_is(name, tmp_path):
    cfg = Config.fromfile(builtin_configs()[name])
    cfg.work_dir = str(tmp_path)
    cfg.visualizer.vis_backends = []
    cfg.pop("default_hooks")
    cfg.experiment_name = name.replace("/", "_")
    runner = Runner.from_cfg(cfg)
    assert isinstance(runner.model.backbone, TimmBackbone)


def test_docstrings_name_the_command_and_the_figure(config):
    text = builtin_configs()[config].read_text()
    assert f"visionattn train {config}\n" in text
    assert re.search(r"Published: |No figure is known|model zoo", " ".join(text.split()))


def test_the_page_of_configs_is_current():
    page = Path(__file__).parents[2] / "docs" / "dense.md"
    assert render(page.read_text()) == page.read_text(), "run python -m visionattn.openmmlab._page docs/dense.md"
    assert published(builtin_configs()["coco/mask-rcnn_nat-tiny_3x"]) == "box AP 47.7, mask AP 42.6"
