# SPDX-License-Identifier: Apache-2.0
import logging

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")
pytest.importorskip("albumentations")

from visionattn.data import DigitsDataset, ImageFolderDataset, build_pipeline, drop_bad, read_image  # noqa: E402

PIPELINE = [{"type": "Affine", "rotate": (-20, 20), "p": 1.0}, {"type": "Normalize"}, {"type": "ToTensorV2"}]
PLAIN = PIPELINE[1:]


@pytest.fixture
def rng():
    return np.random.default_rng()


def write_images(folder, rng, count, size=(19, 27)):
    folder.mkdir(parents=True)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def test_digits_are_real_scans_in_a_fixed_stratified_split():
    train, test = DigitsDataset(PLAIN, "train"), DigitsDataset(PLAIN, "test")
    assert (len(train), len(test)) == (1437, 360)
    counts = np.bincount(test.labels)
    assert counts.min() >= 34
    assert counts.max() <= 38
    seen = {scan.tobytes() for scan in train.scans}
    assert sum(scan.tobytes() in seen for scan in test.scans) < 4  # the set holds next to no repeated scan
    images = np.stack([test.image(i) for i in range(40)])
    assert images.shape == (40, 32, 32, 3)
    assert images.std(axis=(1, 2, 3)).min() > 20
    assert DigitsDataset(PLAIN, "test").labels == test.labels


def test_augmentation_follows_from_seed_epoch_and_index_alone():
    one, other = DigitsDataset(PIPELINE, seed=5), DigitsDataset(PIPELINE, seed=5)
    other[7], other[8]  # what was drawn before does not matter
    assert torch.equal(one[3]["inputs"], other[3]["inputs"])
    first = one[3]["inputs"]
    one.set_random_state(5, 1)
    assert not torch.equal(one[3]["inputs"], first)
    one.set_random_state(6, 0)
    assert not torch.equal(one[3]["inputs"], first)
    one.set_random_state(5, 0)
    assert torch.equal(one[3]["inputs"], first)


def test_samples_are_channels_first_tensors_with_the_label_of_the_image(rng):
    dataset = DigitsDataset([{"type": "Resize", "height": 21, "width": 13}, *PLAIN], "test", size=40)
    index = int(rng.integers(len(dataset)))
    sample = dataset[index]
    assert sample["inputs"].shape == (3, 21, 13)
    assert sample["inputs"].dtype == torch.float32
    assert sample["label"] == dataset.labels[index]
    assert dataset.image(index).shape == (40, 40, 3)


def test_a_folder_is_split_class_by_class_and_always_alike(tmp_path, rng):
    write_images(tmp_path / "ant", rng, 10)
    write_images(tmp_path / "bee", rng, 5)
    train, test = (ImageFolderDataset(tmp_path, PLAIN, split) for split in ("train", "test"))
    assert train.classes == test.classes == ("ant", "bee")
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == ([8, 4], [2, 1])
    assert not set(train.paths) & set(test.paths)
    assert ImageFolderDataset(tmp_path, PLAIN, "test").paths == test.paths
    assert torch.equal(train[0]["inputs"], torch.as_tensor(train[0]["inputs"]))
    assert np.array_equal(train.image(0), cv2.imread(str(train.paths[0]))[..., ::-1])


def test_a_folder_with_train_and_val_keeps_its_split(tmp_path, rng):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("ant", "bee"):
            write_images(tmp_path / split / name, rng, count)
    assert len(ImageFolderDataset(tmp_path, PLAIN, "train")) == 6
    assert len(ImageFolderDataset(tmp_path, PLAIN, "test")) == 4
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "bees")
    with pytest.raises(ValueError, match="differ in their classes: bee, bees"):
        ImageFolderDataset(tmp_path, PLAIN, "test")


def test_wrong_folders_are_named(tmp_path, rng):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        ImageFolderDataset(tmp_path / "nowhere", PLAIN)
    with pytest.raises(ValueError, match="at least two class folders, but has 0"):
        ImageFolderDataset(tmp_path, PLAIN)
    (tmp_path / "ant").mkdir()
    (tmp_path / "bee").mkdir()
    with pytest.raises(ValueError, match="has no images in its train split"):
        ImageFolderDataset(tmp_path, PLAIN)
    write_images(tmp_path / "train" / "ant", rng, 1)
    with pytest.raises(FileNotFoundError, match="no val/ or test/"):
        ImageFolderDataset(tmp_path, PLAIN, "test")


def test_a_file_that_is_no_image_is_skipped_once_named_or_raised(tmp_path, rng, caplog):
    for name in ("ant", "bee"):
        write_images(tmp_path / name, rng, 3)
    dataset = ImageFolderDataset(tmp_path, PLAIN)
    bad = dataset.paths[1]
    bad.write_text("no image")
    with caplog.at_level(logging.WARNING):
        assert dataset[1] is None
        assert dataset[1] is None
    assert [record.getMessage().count(str(bad)) for record in caplog.records] == [1]
    assert dataset.bad_files() == [str(bad)]
    assert drop_bad([dataset[0], dataset[1], dataset[2]])["inputs"].shape == (2, 3, 19, 27)
    with pytest.raises(ValueError, match="none of the 2 images"):
        drop_bad([dataset[1], dataset[1]])
    with pytest.raises(ValueError, match=f"{bad.name} is not an image"):
        ImageFolderDataset(tmp_path, PLAIN, on_bad_image="raise")[1]


def test_reading_names_the_file_it_could_not_read(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ValueError, match=r"empty\.jpg is not an image that can be decoded \(0 bytes\)"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg does not exist"):
        read_image(tmp_path / "none.jpg")


def test_images_in_folders_with_odd_names_are_read(tmp_path, rng):
    image = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    path = tmp_path / "größe 漢.png"
    path.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    assert np.array_equal(read_image(path), image)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"type": "HorizontalFlipp"}, "'HorizontalFlipp'.*nearest: HorizontalFlip"),
        ({"type": "Resize", "height": 8, "width": 8, "widht": 8}, "Resize.*'widht'"),
        ({"type": "Resize", "height": -3, "width": 8}, "Resize.*-3"),
        ({"type": "OneOf", "transforms": [{"type": "Blurr"}]}, "'Blurr'.*nearest: Blur"),
    ],
)
def test_a_pipeline_names_what_is_wrong_in_it(entry, message):
    with pytest.raises(ValueError, match=message):
        build_pipeline([entry])


def test_a_pipeline_entry_without_a_type_is_named():
    with pytest.raises(TypeError, match="'height': 3"):
        build_pipeline([{"height": 3}])


def test_groups_of_transforms_are_built(rng):
    flips = [{"type": "HorizontalFlip", "p": 1.0}, {"type": "VerticalFlip", "p": 1.0}]
    image = rng.integers(0, 256, (7, 11, 3), dtype=np.uint8)
    got = build_pipeline([{"type": "OneOf", "transforms": flips, "p": 1.0}])(image=image)["image"]
    assert any(np.array_equal(got, flipped) for flipped in (image[:, ::-1], image[::-1]))


@pytest.mark.parametrize(("argument", "value"), [("split", "tset"), ("on_bad_image", "ignore"), ("size", 7)])
def test_wrong_dataset_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument}={value!r}"):
        DigitsDataset(PLAIN, **{argument: value})
