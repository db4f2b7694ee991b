# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.image import imread  # noqa: E402

from visionattn._files import replacing  # noqa: E402
from visionattn.viz import Prediction, draw_curves, draw_predictions  # noqa: E402


def picture(path):
    return imread(path)[..., :3]


def colored(image, rgb, tolerance=0.03):
    return int((np.abs(image - np.array(rgb) / 255) < tolerance).all(-1).sum())


def test_wrong_predictions_stand_out_and_right_ones_do_not(tmp_path):
    rng = np.random.default_rng()
    gray = [np.repeat(rng.integers(0, 256, (13, 9, 1), dtype=np.uint8), 3, -1) for _ in range(5)]
    right = [Prediction(image, "bee", 0.9, "bee") for image in gray]
    draw_predictions(right, tmp_path / "right.png")
    draw_predictions([*right[:4], Prediction(gray[4], "bee", 0.6, "ant")], tmp_path / "wrong.png")
    red = (192, 57, 43)
    assert colored(picture(tmp_path / "right.png"), red) == 0
    assert colored(picture(tmp_path / "wrong.png"), red) > 200


@pytest.mark.parametrize("count", [1, 2, 7, 24])
def test_every_image_is_drawn(tmp_path, count):
    shades = [(30 * (i % 8) + 20, 255 - 8 * i, 255) for i in range(count)]
    images = [Prediction(np.full((5, 8, 3), shade, dtype=np.uint8), "a", 0.5) for shade in shades]
    draw_predictions(images, tmp_path / "grid.png", title="all")
    drawn = picture(tmp_path / "grid.png")
    assert all(colored(drawn, shade, 0.005) > 100 for shade in shades)


def test_curves_show_training_and_validation(tmp_path):
    rng = np.random.default_rng()
    records = [
        {"mode": "train", "step": s, "loss": rng.random(), "top1": 50 + s, "lr": 0.1 / (s + 1)} for s in range(9)
    ]
    draw_curves(records, tmp_path / "train.png")
    records += [{"mode": "val", "step": s, "nll": rng.random(), "top1": 40 + s} for s in (3, 6)]
    draw_curves(records, tmp_path / "both.png")
    red = (209, 73, 91)
    assert colored(picture(tmp_path / "train.png"), red) == 0
    assert colored(picture(tmp_path / "both.png"), red) > 50


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="records is empty"):
        draw_curves([], tmp_path / "x.png")
    with pytest.raises(ValueError, match="predictions is empty"):
        draw_predictions([], tmp_path / "x.png")
    one = Prediction(np.full((2, 2, 3), 7, dtype=np.uint8), "a", 1.0)
    with pytest.raises(ValueError, match="columns=0"):
        draw_predictions([one], tmp_path / "x.png", columns=0)
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_when_its_writing_ends_well(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
