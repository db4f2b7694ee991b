# SPDX-License-Identifier: Apache-2.0
"""Odd and damaged data of detection and segmentation: a right result or an error that says what is wrong."""

import copy
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

import dense_sets  # noqa: E402
from mmengine.registry import DATASETS, DefaultScope  # noqa: E402

from visionattn.openmmlab import load_config, tasks  # noqa: E402
from visionattn.openmmlab.config import SCOPES  # noqa: E402
from visionattn.openmmlab.loading import guard, is_cut_off  # noqa: E402
from visionattn.openmmlab.structure import set_classes  # noqa: E402

HERE = Path(__file__).parent
DETECTION, SEGMENTATION = (HERE / f"tiny_{task}.py" for task in ("detection", "segmentation"))
ONE_STEP = {
    DETECTION: ("train_cfg.max_epochs=1", "train_dataloader.num_batch_per_epoch=1"),
    SEGMENTATION: ("train_cfg.max_iters=1",),
}


@pytest.fixture
def coco(tmp_path, rng):
    root = tmp_path / "coco"
    return root, dense_sets.write_coco(root, rng, train=2, val=2)


@pytest.fixture
def ade(tmp_path, rng):
    root = tmp_path / "ade"
    dense_sets.write_ade(root, rng, train=2, val=2)
    return root


@pytest.fixture
def rng():
    return np.random.default_rng()


def train(config, root, *overrides):
    """One step on two images, then a validation on two."""
    cfg = load_config(config, (*ONE_STEP[config], *overrides), root)
    return tasks.train(cfg, root.parent / "run")


def samples(config, root, split="train"):
    """The training data set as a run builds it."""
    cfg = load_config(config, (), root)
    with DefaultScope.overwrite_default_scope(SCOPES["detection" if config == DETECTION else "segmentation"]):
        dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
    guard(dataset)
    return dataset


def change(coco, edit, splits=("train", "val")):
    root, contents = coco
    for split in splits:
        content = copy.deepcopy(contents[split])
        edit(content)
        dense_sets.write_annotations(root, split, content)
    return root


def replace_images(folder, image):
    for path in folder.iterdir():
        assert cv2.imwrite(str(path), image)


def test_images_without_objects_train_and_are_measured(coco):
    root = change(coco, lambda content: content["annotations"].clear())
    summary = train(DETECTION, root)
    assert summary["last"]["epoch"] == 1
    result = tasks.evaluate(
        load_config(DETECTION, (), root), root.parent / "run" / "last.pth", root.parent / "metrics.json"
    )
    assert all(value <= 0 for value in result["metrics"].values())


def test_data_of_which_nothing_is_left_is_an_error_and_no_hang(coco):
    root = change(coco, lambda content: content["annotations"].clear())
    cfg = load_config(DETECTION, ONE_STEP[DETECTION], root)
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=4)
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler")
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1)
    with pytest.raises(ValueError, match="no samples left.*instances_train2017.*filter_empty_gt"):
        tasks.train(cfg, root.parent / "run")


@pytest.mark.parametrize("size", [(50, 4000), pytest.param((4000, 50), marks=pytest.mark.slow)], ids=["wide", "high"])
def test_long_images_are_trained_on_and_predicted(size, ade, rng):
    labels = rng.integers(1, 4, size, dtype=np.uint8)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    for split in ("training", "validation"):
        replace_images(ade / "images" / split, image)
        replace_images(ade / "annotations" / split, labels)
    summary = train(SEGMENTATION, ade)
    assert math.isfinite(summary["last"]["mIoU"])
    cfg, checkpoint = load_config(SEGMENTATION, (), ade), ade.parent / "run" / "last.pth"
    (found, _) = tasks.predict(cfg, checkpoint, samples=2)
    assert found.predicted.shape == found.truth.shape == size


def test_a_class_map_of_one_pixel_is_an_error_and_such_an_image_is_predicted(ade, rng):
    train(SEGMENTATION, ade)
    pixel = rng.integers(0, 256, (1, 1, 3), dtype=np.uint8)
    cfg, checkpoint = load_config(SEGMENTATION, (), ade), ade.parent / "run" / "last.pth"
    photo = ade.parent / "pixel.png"
    cv2.imwrite(str(photo), pixel)
    (found,) = tasks.predict(cfg, checkpoint, [photo])
    assert found.predicted.shape == (1, 1)
    for split in ("training", "validation"):
        replace_images(ade / "images" / split, pixel)
        replace_images(ade / "annotations" / split, pixel[..., 0])
    with pytest.raises(ValueError, match=r"class map \S+png has 1x1 pixels"):
        train(SEGMENTATION, ade)


@pytest.mark.parametrize("size", [(1, 1), pytest.param((50, 4000), marks=pytest.mark.slow)], ids=["1x1", "4000x50"])
def test_a_detector_takes_images_of_one_pixel_and_long_ones(size, coco, rng):
    def resize(content):
        for image in content["images"]:
            image["height"], image["width"] = size
        content["annotations"].clear()

    root = change(coco, resize)
    for split in ("train2017", "val2017"):
        replace_images(root / split, rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    assert train(DETECTION, root)["last"]["epoch"] == 1
    found = tasks.predict(load_config(DETECTION, (), root), root.parent / "run" / "last.pth", samples=1, score=0.0)
    height, width = size
    assert (found[0].predicted.boxes <= [width, height, width, height]).all()


def test_grey_transparent_and_16_bit_images_are_read_as_colours(coco, rng):
    root, _ = coco
    dataset = samples(DETECTION, root)
    colours = rng.integers(0, 256, (*dense_sets.SIZE, 3), dtype=np.uint8)
    kinds = {
        "grey": (colours[..., 0], np.repeat(colours[..., :1], 3, -1)),
        "transparent": (np.dstack([colours, colours[..., 0]]), colours),
        "16 bit": (colours.astype(np.uint16) * 257, colours),
        "16 bit grey": (colours[..., 1].astype(np.uint16) * 257, np.repeat(colours[..., 1:2], 3, -1)),
    }
    steps = dataset.pipeline.transforms
    steps[:] = [step for step in steps if type(step).__name__ not in ("RandomFlip", "PhotoMetricDistortion")]
    for name, (written, expected) in kinds.items():
        replace_images(root / "train2017", written)
        image = dataset[0]["inputs"].permute(1, 2, 0).numpy()
        assert np.array_equal(image, expected), name


@pytest.mark.parametrize("damage", ["cut off", "empty", "text"])
def test_a_damaged_image_is_an_error_with_its_name(damage, ade):
    path = sorted((ade / "images" / "training").iterdir())[0]
    whole = path.read_bytes()
    assert not is_cut_off(str(path))
    path.write_bytes({"cut off": whole[: len(whole) // 2], "empty": b"", "text": b"no picture"}[damage])
    assert is_cut_off(str(path)) == (damage == "cut off")
    dataset = samples(SEGMENTATION, ade)
    with pytest.raises(ValueError, match=path.name):
        _ = [dataset[i] for i in range(2)]


@pytest.mark.slow
def test_a_damaged_image_ends_a_run_with_loader_workers(ade):
    path = sorted((ade / "images" / "training").iterdir())[0]
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=path.name):
        train(SEGMENTATION, ade, "train_dataloader.num_workers=1")


def test_labels_out_of_range_and_maps_of_another_size_are_named(ade, rng):
    path = sorted((ade / "annotations" / "training").iterdir())[0]
    labels = rng.integers(1, 4, dense_sets.SIZE, dtype=np.uint8)
    wrong = labels.copy()
    wrong[3, 5] = 77
    cv2.imwrite(str(path), wrong)
    with pytest.raises(ValueError, match=rf"{path.name} has the labels \[76\]; allowed are 0 to 2, and 255"):
        samples(SEGMENTATION, ade)[0]
    cv2.imwrite(str(path), labels[:-1])
    with pytest.raises(ValueError, match=rf"{path.name} has shape \(47, 64\), its image \(48, 64\)"):
        samples(SEGMENTATION, ade)[0]
    cv2.imwrite(str(path), np.where(labels == 2, 0, labels))  # 0 is ignored
    assert set(samples(SEGMENTATION, ade)[0]["data_samples"].gt_sem_seg.data.unique().tolist()) == {0, 2, 255}


def test_categories_that_the_file_does_not_declare_are_left_out(coco):
    def edit(content):
        content["annotations"][0]["category_id"] = 9000

    root = change(coco, edit)
    instances = samples(DETECTION, root).get_data_info(0)["instances"]
    assert len(instances) == 1
    assert instances[0]["bbox_label"] < 2


def test_a_file_without_the_configs_classes_is_an_error(coco):
    root, contents = coco
    cfg = load_config(DETECTION, ONE_STEP[DETECTION], root)
    content = copy.deepcopy(contents["train"])
    content["categories"] = [{"id": 1, "name": "rectangle"}]
    dense_sets.write_annotations(root, "train", content)
    with pytest.raises(ValueError, match=r"instances_train2017\.json.* lacks the classes disc"):
        tasks.train(cfg, root.parent / "run")


def test_classes_in_another_order_keep_their_names(coco):
    root, contents = coco
    cfg = load_config(DETECTION, ONE_STEP[DETECTION], root)
    for split in ("train", "val"):
        content = copy.deepcopy(contents[split])
        content["categories"].reverse()
        dense_sets.write_annotations(root, split, content)
    with pytest.raises(ValueError, match="order disc, rectangle.*the config rectangle, disc"):
        tasks.train(cfg, root.parent / "run")


def test_boxes_without_area_and_outside_the_image_are_left_out(coco):
    def edit(content):
        first, second, third, *_ = content["annotations"]
        first["bbox"][2:] = [0, 0]
        second["bbox"][:2] = [500, 500]
        third["area"] = 0

    root = change(coco, edit)
    assert [len(samples(DETECTION, root).get_data_info(i)["instances"]) for i in range(2)] == [0, 1]


def test_a_mask_that_leaves_the_image_is_cut_at_its_border(coco):
    height, width = dense_sets.SIZE

    def edit(content):
        for item in content["annotations"]:
            item["segmentation"] = [[width - 9.0, height - 7.0, width + 50.0, height - 7.0, width + 50.0, height + 40.0,
                                     width - 9.0, height + 40.0]]  # fmt: skip
            item["bbox"] = [width - 9, height - 7, 59, 47]

    root = change(coco, edit)
    sample = samples(DETECTION, root)[0]
    masks = sample["data_samples"].gt_instances.masks.masks
    assert masks.shape[1:] == (height, width)
    assert masks.sum((1, 2)).tolist() == [63] * len(masks)


def test_run_lengths_of_another_size_name_the_image(coco):
    def edit(content):
        for item in content["annotations"]:
            item["segmentation"] = {"size": [30, 30], "counts": [400, 500]}

    root = change(coco, edit, ["train"])
    with pytest.raises(ValueError, match=r"train2017/000\d\.png"):
        train(DETECTION, root)


@pytest.mark.parametrize(
    "config",
    [pytest.param(DETECTION, marks=pytest.mark.slow), SEGMENTATION],
    ids=["detection", "segmentation"],
)
def test_a_loss_that_is_no_number_names_the_step_and_the_images(config, coco, ade):
    root = coco[0] if config == DETECTION else ade
    cfg = load_config(config, ["optim_wrapper.optimizer.lr=1e30", "optim_wrapper.clip_grad=None"], root)
    cfg.param_scheduler = []
    with pytest.raises(
        FloatingPointError, match=r"loss is (nan|inf) at step \d.*the batch's images: .*000\d\.(png|jpg)"
    ):
        tasks.train(cfg, root.parent / "run")


def test_a_missing_root_and_missing_parts_are_listed_with_a_tree(coco, ade, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist[\s\S]*instances_val2017\.json"):
        load_config(DETECTION, (), tmp_path / "nowhere")
    root, _ = coco
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"not found: \S*instances_val2017\.json\. [\s\S]*train2017/"):
        load_config(DETECTION, (), root)
    (root / "annotations" / "instances_val2017.json").write_text("[]")
    with pytest.raises(ValueError, match="instances_val2017.json is no COCO annotation file"):
        load_config(DETECTION, (), root)
    lone = sorted((ade / "annotations" / "validation").iterdir())[1]
    lone.unlink()
    with pytest.raises(ValueError, match=f"1 images of .*validation have no class map, e.g. {lone}"):
        load_config(SEGMENTATION, (), ade)
    for path in (ade / "images" / "validation").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"images/validation holds no \*\.jpg"):
        load_config(SEGMENTATION, (), ade)
    with pytest.raises(FileNotFoundError, match="nowhere.*--data DIR"):
        tasks.train(load_config(SEGMENTATION), tmp_path / "run")


def test_wrong_arguments_are_named(tmp_path):
    cfg = load_config(DETECTION)
    with pytest.raises(ValueError, match="score=1.5"):
        tasks.predict(cfg, tmp_path / "none.pth", score=1.5)
    with pytest.raises(FileNotFoundError, match="photo.png"):
        tasks.predict(cfg, tmp_path / "none.pth", [tmp_path / "photo.png"])
    with pytest.raises(FileNotFoundError, match="none.pth does not exist"):
        tasks.evaluate(cfg, tmp_path / "none.pth", tmp_path / "m.json")


def test_class_weights_follow_the_number_of_classes():
    model = {"head": {"num_classes": 80, "loss": {"class_weight": [1.0] * 80 + [0.1]}}, "parts": [{"num_classes": 80}]}
    set_classes(model, 80, 3)
    assert model["head"]["num_classes"] == model["parts"][0]["num_classes"] == 3
    assert model["head"]["loss"]["class_weight"] == [1.0, 1.0, 1.0, 0.1]
