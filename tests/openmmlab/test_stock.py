# SPDX-License-Identifier: Apache-2.0
"""mmdet's and mmsegmentation's own entry points run their stock configs, with random weights and no compiled mmcv."""

import subprocess
import sys

import numpy as np
import pytest

import visionattn.openmmlab  # noqa: F401

pytestmark = pytest.mark.slow

DETECTORS = (
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco",
    "dyhead/atss_r50_fpn_dyhead_1x_coco",
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco",
)
SEGMENTORS = ("pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512", "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512")


@pytest.fixture
def photo():
    return np.random.default_rng().integers(0, 256, (90, 130, 3), dtype=np.uint8)


def at_small_size(pipeline):
    """The pipeline of a config with images of its own, resized to less."""
    for step in pipeline:
        if step["type"] == "Resize":
            step["scale"] = (192, 128)
    return pipeline


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors(name, photo):
    pytest.importorskip("mmdet")
    from mmdet.apis import inference_detector, init_detector
    from mmengine.config import Config

    from visionattn.openmmlab import find_config

    cfg = Config.fromfile(find_config(f"mmdet::{name}"))
    at_small_size(cfg.test_dataloader.dataset.pipeline)
    detector = init_detector(cfg, device="cpu")
    results = inference_detector(detector, [photo, photo[:40]])
    assert [r.ori_shape for r in results] == [(90, 130), (40, 130)]
    for result in results:
        found = result.pred_instances
        assert found.scores.isfinite().all() and len(found.scores) <= 300
        assert found.bboxes.isfinite().all() and found.bboxes.shape[1] == 4


@pytest.mark.parametrize("name", SEGMENTORS)
def test_segmentors(name, photo):
    pytest.importorskip("mmseg")
    pytest.importorskip("mmdet")  # whose heads mmseg's Mask2Former uses
    from mmengine.config import Config
    from mmseg.apis import inference_model, init_model

    from visionattn.openmmlab import find_config

    cfg = Config.fromfile(find_config(f"mmseg::{name}"))
    at_small_size(cfg.test_pipeline)
    at_small_size(cfg.test_dataloader.dataset.pipeline)
    segmentor = init_model(cfg, device="cpu")
    result = inference_model(segmentor, photo)
    assert result.pred_sem_seg.data.shape == (1, 90, 130)
    assert result.pred_sem_seg.data.min() >= 0 and result.pred_sem_seg.data.max() < 150
    assert result.seg_logits.data.isfinite().all()


def test_another_provider_of_mmcvs_ops_is_the_one_that_runs():
    pytest.importorskip("mmcv")
    code = """
import importlib.machinery, sys, types, torch
theirs = types.ModuleType("mmcv._ext")
theirs.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
def op(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *args, **kwargs: torch.tensor([len(args) + len(kwargs)])
theirs.__getattr__ = op
sys.modules["mmcv._ext"] = theirs
import visionattn.openmmlab
from visionattn.openmmlab import mmcv_ext
assert sys.modules["mmcv._ext"] is theirs and not mmcv_ext.install()
from mmcv.ops.nms import NMSop, ext_module
print(ext_module.nms(1, 2, 3))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("tensor([3])"), done.stderr
