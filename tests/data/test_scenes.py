# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import multiprocessing

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")
pytest.importorskip("albumentations")

from visionattn.data import scenes  # noqa: E402
from visionattn.data.datasets import digit_scans  # noqa: E402
from visionattn.data.scenes import BACKGROUNDS, CLASSES, SPLITS, SceneSettings, draw_scene, make_scenes  # noqa: E402

SMALL = SceneSettings(training=5, validation=4, height=72, width=100, digits=3, seed=int(np.random.randint(1000)))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", SMALL)


@pytest.fixture
def rng():
    return np.random.default_rng()


def content(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def coco(root, split):
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def decoded(segmentation):
    """Mask of an uncompressed run-length encoding, by COCO's definition."""
    height, width = segmentation["size"]
    flat = []
    for i, count in enumerate(segmentation["counts"]):
        flat += [i % 2 == 1] * count
    assert len(flat) == height * width
    return np.array([[flat[x * height + y] for x in range(width)] for y in range(height)])


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_same_settings_give_the_same_bytes_and_another_seed_other_scenes(root, tmp_path):
    again = content(make_scenes(tmp_path / "again", SMALL))
    assert again == content(root)
    other = content(make_scenes(tmp_path / "other", dataclasses.replace(SMALL, seed=SMALL.seed + 1)))
    assert other.keys() == again.keys()
    assert all(other[name] != again[name] for name in again if name.endswith(".jpg"))


def test_more_scenes_leave_the_first_ones_as_they_are(root, tmp_path):
    more = content(make_scenes(tmp_path / "more", dataclasses.replace(SMALL, training=7)))
    images = {name: value for name, value in content(root).items() if name.endswith((".jpg", ".png"))}
    assert len(images) == 2 * (SMALL.training + SMALL.validation)
    assert all(more[name] == value for name, value in images.items())


def test_the_folder_has_the_files_of_ade20k_and_coco(root):
    for split in SPLITS:
        count = getattr(SMALL, split)
        images = sorted((root / "images" / split).iterdir())
        masks = sorted((root / "annotations" / split).iterdir())
        assert [p.stem for p in images] == [p.stem for p in masks]
        assert len(images) == count
        assert {p.suffix for p in images} == {".jpg"}
        assert {p.suffix for p in masks} == {".png"}
        assert {read(p).shape for p in images} == {(SMALL.height, SMALL.width, 3)}
        assert {read(p).shape for p in masks} == {(SMALL.height, SMALL.width)}
        annotations = coco(root, split)
        assert [image["file_name"] for image in annotations["images"]] == [p.name for p in images]
        assert [category["name"] for category in annotations["categories"]] == [str(d) for d in range(10)]
        ids = [a["id"] for a in annotations["annotations"]]
        assert len(set(ids)) == len(ids)
    assert [p.name for p in root.parent.glob(".scenes*")] == []


def test_boxes_areas_and_class_masks_agree_with_the_digits_masks(root):
    found = 0
    for split in SPLITS:
        annotations = coco(root, split)
        files = {image["id"]: image["file_name"] for image in annotations["images"]}
        taken = {}
        for entry in annotations["annotations"]:
            mask = decoded(entry["segmentation"])
            y, x = np.nonzero(mask)
            assert entry["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert entry["area"] == mask.sum() > 0
            assert entry["iscrowd"] == 0
            labels = read(root / "annotations" / split / files[entry["image_id"]].replace(".jpg", ".png"))
            own = 1 + CLASSES.index("digit")
            # All that is decided inside the mask is the digit's.
            assert set(np.unique(labels[mask])) <= {0, own}
            assert (labels[mask] == own).mean() > 0.6
            before = taken.setdefault(entry["image_id"], np.zeros_like(mask))
            assert not (before & mask).any()
            before |= mask
            found += 1
        for image_id, file in files.items():
            labels = read(root / "annotations" / split / file.replace(".jpg", ".png"))
            ink = taken.get(image_id, np.zeros(labels.shape, bool))
            assert labels.max() <= len(CLASSES)
            assert not (labels[~ink] > len(BACKGROUNDS)).any()
    assert found >= 5


def test_run_lengths_and_boxes_are_cocos_own(rng):
    mask_tools = pytest.importorskip("pycocotools.mask")
    for density in (0.02, 0.5, 1.0):
        mask = rng.random((7, 11)) < density
        mask[rng.integers(7), rng.integers(11)] = True
        encoded = scenes.run_lengths(mask)
        assert np.array_equal(decoded(encoded), mask)
        theirs = mask_tools.frPyObjects(encoded, 7, 11)
        assert np.array_equal(mask_tools.decode(theirs), mask)
        assert mask_tools.toBbox(theirs).tolist() == scenes.tight_box(mask)


def test_splits_share_neither_scans_nor_parts_of_photographs():
    (train, _), (test, _) = digit_scans("train"), digit_scans("test")
    assert len(train) + len(test) == 1797
    training, validation = (scenes.SceneMaker(split, SMALL) for split in SPLITS)
    pictures = [(maker.photographs | maker.textures) for maker in (training, validation)]
    assert set(pictures[0]) == set(pictures[1]) == {*scenes.PHOTOGRAPHS, *scenes.TEXTURES}
    for name, left in pictures[0].items():
        assert np.array_equal(np.concatenate([left, pictures[1][name]], 1), scenes._photograph(name))


@pytest.mark.parametrize("name", scenes.PHOTOGRAPHS)
def test_photographs_come_with_their_packages(name):
    image = scenes._photograph(name)
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert image.dtype == np.uint8
    assert image.std() > 10


def test_digits_stand_out_and_hide_little_of_each_other(rng):
    settings = SceneSettings(digits=6, seed=int(rng.integers(1000)))
    maker = scenes.SceneMaker("validation", settings)
    drawn = [maker.draw(i) for i in range(40)]
    assert np.array_equal(maker.labels, digit_scans("test")[1])
    for scene in drawn:
        assert scene.image.shape == (128, 160, 3)
        for digit in scene.digits:
            assert digit.mask.sum() >= 100
            assert digit.label == maker.labels[digit.scan]
    assert len({digit.label for scene in drawn for digit in scene.digits}) >= 7
    assert max(len(scene.digits) for scene in drawn) >= 4
    assert len({scene.photograph for scene in drawn}) >= 9
    present = {int(value) for scene in drawn for value in np.unique(scene.labels)}
    assert present >= {0, 1, 2, 3, 4}


def test_an_enlarged_scan_is_as_tall_as_asked_turns_and_stretches():
    scan = np.zeros((8, 8), np.uint8)
    scan[:, 3:5] = 255  # a bar over the whole height
    plain, wide = scenes.enlarge(scan, 40), scenes.enlarge(scan, 40, stretch=2.0)
    assert abs(plain.shape[0] - 40) <= 4
    assert abs(plain.shape[1] - 10) <= 4
    assert abs(wide.shape[1] - 20) <= 5
    assert 0 <= plain.min() <= plain.max() <= 1
    turned = scenes.enlarge(scan, 40, angle=90)
    assert abs(turned.shape[0] - plain.shape[1]) <= 2
    assert abs(turned.shape[1] - plain.shape[0]) <= 2
    # Counter-clockwise: the bar's upper end leans to the left.
    leaning = scenes.enlarge(scan, 40, angle=20)
    assert np.flatnonzero(leaning[2]).mean() < np.flatnonzero(leaning[-3]).mean()


def test_a_scene_does_not_depend_on_those_drawn_before(rng):
    maker, index = scenes.SceneMaker("training", SMALL), int(rng.integers(100))
    maker.draw(index + 1)
    one, other = maker.draw(index), draw_scene("training", index, SMALL)
    assert np.array_equal(one.image, other.image)
    assert np.array_equal(one.labels, other.labels)
    assert not np.array_equal(one.image, draw_scene("validation", index, SMALL).image)


def test_scenes_that_are_there_are_kept_and_others_are_not_overwritten(root, tmp_path):
    before = (root / "scenes.json").stat().st_mtime_ns
    assert make_scenes(root, SMALL) == root
    assert (root / "scenes.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds other scenes: .*'training': 5.*not .*'training': 6"):
        make_scenes(root, dataclasses.replace(SMALL, training=6))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds no scenes\.json"):
        make_scenes(tmp_path, SMALL)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_fails_midway_leaves_nothing(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError("disk full")

    monkeypatch.setattr(scenes, "_write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        make_scenes(tmp_path / "deep" / "scenes", SMALL)
    assert list((tmp_path / "deep").iterdir()) == []


def test_processes_that_start_at_once_make_one_folder(root, tmp_path):
    target = tmp_path / "scenes"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=make_scenes, args=(target, SMALL)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert content(target) == content(root)
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("training", 0),
        ("validation", 1.5),
        ("height", 63),
        ("width", "160"),
        ("digits", -1),
        ("seed", -1),
        ("digits", True),
    ],
)
def test_wrong_settings_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value!r} must be a whole number of at least"):
        SceneSettings(**{argument: value})


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="split='train' must be one of 'training', 'validation'"):
        draw_scene("train", 0)
