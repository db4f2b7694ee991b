# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip("matplotlib")
cv2 = pytest.importorskip("cv2")

from visionattn.viz import DensePrediction, Objects, draw_dense  # noqa: E402
from visionattn.viz.dense import class_colors, overlay_class_map, overlay_masks  # noqa: E402

CLASSES = ("cat", "dog", "emu")


@pytest.fixture
def rng():
    return np.random.default_rng()


def objects(rng, size, scores=True, masks=True):
    height, width = size
    corners = np.sort(rng.uniform(0, 1, (4, 2, 2)), axis=1) * [width, height]
    return Objects(
        corners.reshape(4, 4),
        rng.integers(0, 3, 4),
        rng.uniform(0, 1, 4) if scores else None,
        rng.random((4, *size)) < 0.3 if masks else None,
    )


def prediction(rng, size, kind, truth=True):
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    if kind == "objects":
        found, true = objects(rng, size), objects(rng, size, scores=False)
    else:
        found, true = rng.integers(0, 3, size), np.where(rng.random(size) < 0.1, 255, rng.integers(0, 3, size))
    return DensePrediction(image, found, CLASSES, true if truth else None, "folder/photo.jpg")


@pytest.mark.parametrize("kind", ["objects", "map"])
@pytest.mark.parametrize("truth", [True, False])
def test_pictures_are_written_for_images_of_any_size(kind, truth, rng, tmp_path):
    several = [prediction(rng, size, kind, truth) for size in ((24, 31), (1, 1), (90, 20), (20, 600))]
    draw_dense(several, tmp_path / "several.png", title="title")
    draw_dense(several[:1], tmp_path / "one.png")
    assert cv2.imread(str(tmp_path / "several.png")).std() > 1
    assert cv2.imread(str(tmp_path / "one.png")).std() > 1
    assert not list(tmp_path.glob(".*"))


def test_class_maps_are_drawn_in_the_colours_of_their_classes(rng):
    one = prediction(rng, (17, 23), "map")
    drawn = overlay_class_map(one, one.truth)
    colors = class_colors(3)
    for label in range(3):
        where = one.truth == label
        expected = np.round(0.5 * one.image[where] + 0.5 * colors[label])
        assert np.array_equal(drawn[where], expected)
    grey = one.truth == 255
    assert np.array_equal(drawn[grey], np.round(0.5 * one.image[grey] + 0.5 * 128))


def test_masks_leave_other_pixels_alone_and_palettes_are_used(rng):
    one = prediction(rng, (17, 23), "objects")
    drawn = overlay_masks(one, one.predicted)
    outside = ~one.predicted.masks.any(0)
    assert np.array_equal(drawn[outside], one.image[outside])
    assert not np.array_equal(drawn, one.image)
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert class_colors(3, palette).tolist() == [list(color) for color in palette]
    assert len(np.unique(class_colors(150), axis=0)) == 150


def test_a_line_says_what_was_found(rng):
    boxes = rng.uniform(0, 9, (3, 4))
    found = Objects(boxes, np.array([0, 2, 2]), np.array([0.91, 0.5, 0.2]))
    image = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert DensePrediction(image, found, CLASSES).summary() == "cat 0.91, emu 0.50, emu 0.20"
    assert DensePrediction(image, found.above(0.95), CLASSES).summary() == "nothing"
    assert len(found.above(0.5).labels) == 2
    labels = np.zeros((10, 10), dtype=np.int64)
    labels[:3] = 2
    assert DensePrediction(image, labels, CLASSES).summary() == "cat 70 %, emu 30 %"


def test_wrong_arguments_are_named(rng, tmp_path):
    with pytest.raises(ValueError, match="predictions is empty"):
        draw_dense([], tmp_path / "none.png")
    with pytest.raises(ValueError, match="columns=0"):
        draw_dense([prediction(rng, (9, 9), "map")], tmp_path / "none.png", columns=0)
    with pytest.raises(ValueError, match="scores has 2 entries, labels 3"):
        Objects(rng.random((3, 4)), np.arange(3), rng.random(2))
    one = prediction(rng, (9, 9), "map")
    with pytest.raises(ValueError, match=r"shape \(4, 9\) does not fit"):
        overlay_class_map(one, np.zeros((4, 9), dtype=np.int64))
    assert not list(tmp_path.iterdir())
