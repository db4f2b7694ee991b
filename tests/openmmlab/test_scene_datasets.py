# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
pytest.importorskip("cv2")
pytest.importorskip("skimage")

from mmengine.registry import DATASETS, MODELS, DefaultScope  # noqa: E402

from visionattn.data.scenes import BACKGROUNDS, CLASSES, DIGITS, SceneSettings, make_scenes  # noqa: E402
from visionattn.openmmlab import fill_channels, load_config  # noqa: E402

ROOT = Path(__file__).parents[2]
SMALL = dict(training=6, validation=4, height=128, width=160, digits=3, seed=int(np.random.randint(1000)))
DETECTORS = ["builtin/scenes_mask-rcnn_nat-micro", "builtin/scenes_atss_nat-micro"]
SEGMENTOR = "builtin/scenes_upernet_nat-micro"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", SceneSettings(**SMALL))


def config(name, root):
    """A built-in config on a few scenes."""
    cfg = load_config(name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.update(data_root=str(root), scenes=SMALL)
    return fill_channels(cfg)


def dataset(cfg, split):
    return DATASETS.build(cfg[f"{split}_dataloader"].dataset)


@pytest.fixture
def scope():
    """Sets mmengine's default scope to a config's, as the Runner does."""
    with ExitStack() as stack:

        def use(cfg):
            pytest.importorskip(cfg.default_scope)
            stack.enter_context(DefaultScope.overwrite_default_scope(cfg.default_scope))

        yield use


def few_steps(model, batch, steps):
    """Sums of the losses before each of some steps on one batch."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    totals = []
    for _ in range(steps):
        data = model.data_preprocessor(batch, True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    return totals


def batch_of(data, count):
    samples = [data[i] for i in range(count)]
    return {key: [sample[key] for sample in samples] for key in samples[0]}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_reads_the_scenes_learns_and_predicts(name, root, scope):
    cfg = config(name, root)
    scope(cfg)
    train, val = dataset(cfg, "train"), dataset(cfg, "val")
    assert train.metainfo["classes"] == val.metainfo["classes"] == DIGITS
    assert len(val) == SMALL["validation"]
    annotations = json.loads((root / "annotations" / "instances_validation.json").read_text())
    assert sum(len(val.get_data_info(i)["instances"]) for i in range(len(val))) == len(annotations["annotations"])
    test_cfg = cfg.model.test_cfg.get("rcnn", cfg.model.test_cfg)
    test_cfg.score_thr = 0.0  # so few steps leave scores anywhere
    model = MODELS.build(cfg.model).train()
    losses = few_steps(model, batch_of(train, 4), 6)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.85 * losses[0]
    with torch.no_grad():
        predictions = model.eval().test_step(batch_of(val, 2))
    boxes = predictions[0].pred_instances.bboxes
    assert boxes.shape[1:] == (4,)
    assert len(boxes) > 0
    assert boxes.min() >= 0
    assert boxes.max() <= 160


def test_mmdet_gets_the_masks_that_were_drawn(root, scope):
    cfg = config(DETECTORS[0], root)
    scope(cfg)
    data = dataset(cfg, "val")
    annotations = json.loads((root / "annotations" / "instances_validation.json").read_text())["annotations"]
    for sample in (data[i]["data_samples"] for i in range(len(data))):
        truth = [a for a in annotations if a["image_id"] == sample.img_id]
        instances = sample.gt_instances
        assert (instances.labels + 1).tolist() == [a["category_id"] for a in truth]
        masks = instances.masks.masks
        assert masks.sum((1, 2)).tolist() == [a["area"] for a in truth]
        for box, mask in zip(instances.bboxes.tensor.tolist(), masks, strict=True):
            y, x = np.nonzero(mask)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_mmseg_gets_the_masks_with_undecided_pixels_ignored_and_learns(root, scope):
    cfg = config(SEGMENTOR, root)
    scope(cfg)
    train, val = dataset(cfg, "train"), dataset(cfg, "val")
    assert train.metainfo["classes"] == CLASSES
    assert (len(train), len(val)) == (SMALL["training"], SMALL["validation"])
    values = set()
    for i in range(len(val)):
        values |= set(val[i]["data_samples"].gt_sem_seg.data.unique().tolist())
    assert values <= {*range(len(CLASSES)), 255}
    assert values & set(range(len(BACKGROUNDS)))
    assert 255 in values
    model = MODELS.build(cfg.model).train()
    losses = few_steps(model, batch_of(train, 4), 8)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.85 * losses[0]
    with torch.no_grad():
        predictions = model.eval().test_step(batch_of(val, 2))
    assert predictions[0].pred_sem_seg.data.shape == (1, 128, 160)


@pytest.mark.parametrize("kind", ["ScenesDetection", "ScenesSegmentation"])
def test_wrong_arguments_are_named_before_anything_is_made(kind, tmp_path):
    target = tmp_path / "scenes"
    with pytest.raises(ValueError, match="split='val' must be one of 'training', 'validation'"):
        DATASETS.build(dict(type=kind, data_root=target, split="val"))
    with pytest.raises(ValueError, match=r"unknown keys \['hight'\]; known: training, "):
        DATASETS.build(dict(type=kind, data_root=target, scenes=dict(hight=128)))
    with pytest.raises(ValueError, match="height=12 must be a whole number"):
        DATASETS.build(dict(type=kind, data_root=target, scenes=dict(height=12)))
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "one-stage", "segmentation"])
def test_the_demo_keeps_its_promises(task, tmp_path):
    pytest.importorskip("mmseg" if task == "segmentation" else "mmdet")
    command = [sys.executable, ROOT / "tools" / "demo_dense.py", task, "--work-dir", tmp_path / "run"]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "predictions.png").stat().st_size > 10_000
