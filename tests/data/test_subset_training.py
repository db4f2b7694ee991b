# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("mmengine")
pytest.importorskip("skimage")
pytest.importorskip("webdataset")

from image_sets import CLASSES, write_subset  # noqa: E402

from visionattn.data import ImageFolderDataset, write_shards  # noqa: E402
from visionattn.openmmlab import load_config, read_checkpoint, tasks  # noqa: E402

RECIPE = Path(__file__).parents[2] / "configs" / "imagenet" / "_base_" / "deit.py"
SMALL = """
_base_ = {recipe!r}
model = dict(num_classes=6, {model})
small = dict(
    batch_size=16, num_workers=0, persistent_workers=False, pin_memory=False,
    dataset=dict(pipeline=dict(size=32)),
)
train_dataloader = small
val_dataloader = small
test_dataloader = small
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = dict(warmup_epochs=1)
"""
TRANSFORMER = 'name="test_vit", kwargs=dict(img_size=32, patch_size=8, depth=1, drop_path_rate=0.1)'
CONVOLUTIONAL = 'name="test_resnet", kwargs=dict(drop_path_rate=0.1)'  # learns from few images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_subset(tmp_path_factory.mktemp("subset") / "images", train=12, val=4, side=40)


def write_forms(folder, root):
    """The same images as shards."""
    for split, prefix in (("train", "train"), ("test", "val")):
        write_shards(ImageFolderDataset(folder, (), split), root, prefix, samples_per_shard=20)
    return root


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    return write_forms(folder, tmp_path_factory.mktemp("shards"))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.py"

    def load(data, *overrides, epochs=2, model=TRANSFORMER):
        path.write_text(SMALL.format(recipe=str(RECIPE), epochs=epochs, model=model))
        return load_config(path, overrides, data)

    return load


def run(cfg, work_dir, **kwargs):
    summary = tasks.train(cfg, work_dir, **kwargs)
    lines = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return summary, read_checkpoint(work_dir / "last.pth")["state_dict"], lines


def losses(lines):
    return [line["loss"] for line in lines if line["mode"] == "train"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_folder_and_shards_train_the_same_weights(folder, shards, config, tmp_path):
    # The sampler of folders deals out the shards' samples too; ShardSampler's order is one that folders don't have.
    cfg = config(folder)
    one = run(cfg, tmp_path / "folder")
    cfg = config(shards)
    assert cfg.train_dataloader.sampler.type == "ShardSampler"
    cfg.train_dataloader.sampler.type = "DefaultSampler"
    two = run(cfg, tmp_path / "shards")
    assert_same_weights(one[1], two[1])
    assert losses(one[2]) == losses(two[2])
    assert one[0]["last"] == two[0]["last"]
    assert cfg.model.num_classes == len(CLASSES)


@pytest.mark.slow
def test_without_shuffling_shards_read_in_runs_train_the_same_weights_too(folder, shards, config, tmp_path):
    results = []
    for data in (folder, shards):
        cfg = config(data, "train_dataloader.sampler.shuffle=False", epochs=1)
        results.append(run(cfg, tmp_path / Path(data).name))
    assert cfg.train_dataloader.sampler.type == "ShardSampler"
    assert_same_weights(results[0][1], results[1][1])


@pytest.mark.slow
def test_loader_workers_do_not_change_a_run_on_shards(shards, config, tmp_path):
    results = []
    for workers in (0, 2):
        cfg = config(shards, f"train_dataloader.num_workers={workers}", epochs=1)
        results.append(run(cfg, tmp_path / str(workers)))
    assert_same_weights(results[0][1], results[1][1])


def test_a_run_on_shards_is_resumed_within_an_epoch(shards, config, tmp_path, monkeypatch):
    from visionattn.openmmlab.hooks import MetricsHook

    class Stopped(Exception):
        pass

    overrides = ("default_hooks.checkpoint.interval=3",)
    _, whole, _ = run(config(shards, *overrides), tmp_path / "whole")
    with monkeypatch.context() as patch:
        original = MetricsHook.after_train_iter

        def stopping(self, runner, *args, **kwargs):
            original(self, runner, *args, **kwargs)
            if runner.iter == 6:
                raise Stopped

        patch.setattr(MetricsHook, "after_train_iter", stopping)
        with pytest.raises(Stopped):
            run(config(shards, *overrides), tmp_path / "parts")
    meta = read_checkpoint(tmp_path / "parts" / "last.pth")["meta"]
    assert meta["iter"] == 6
    _, parts, _ = run(config(shards, *overrides), tmp_path / "parts", resume=True)
    assert_same_weights(whole, parts)


def test_labels_beyond_the_models_classes_stop_before_the_first_step(folder, config, tmp_path):
    cfg = config(folder)
    cfg.model.num_classes = 4
    with pytest.raises(ValueError, match=r"data have 6 classes .* model\.num_classes=4 allows 0 to 3"):
        tasks.train(cfg, tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.pth"))


def test_shards_without_class_names_have_as_many_as_the_model(shards, config, tmp_path):
    for path in shards.glob("*.tar"):
        (tmp_path / path.name).symlink_to(path)
    cfg = config(tmp_path)
    assert cfg.model.num_classes == 6
    assert cfg.train_dataloader.dataset.classes == 6


@pytest.mark.slow
def test_the_recipe_learns_a_subset_from_folder_and_shards_alike(config, tmp_path):
    folder = write_subset(tmp_path / "images", train=40, val=15, side=40)
    shards = write_forms(folder, tmp_path / "shards")
    overrides = ("train_dataloader.dataset.pipeline.scale=[0.5,1.0]",)
    results = []
    for name, data, sampler in (
        ("folder", folder, "DefaultSampler"),
        ("shards", shards, "DefaultSampler"),
        ("runs", shards, "ShardSampler"),
    ):
        cfg = config(data, *overrides, model=CONVOLUTIONAL, epochs=12)
        cfg.train_dataloader.sampler.type = sampler
        results.append(run(cfg, tmp_path / name))
        assert results[-1][0]["last"]["top1"] >= 85  # chance: 17
    assert_same_weights(results[0][1], results[1][1])
    assert losses(results[0][2]) == losses(results[1][2])
    assert losses(results[0][2]) != losses(results[2][2])
