# SPDX-License-Identifier: Apache-2.0
"""`visionattn explain` and its picture."""

import numpy as np
import pytest
import timm
import torch

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
cv2 = pytest.importorskip("cv2")

from typer.testing import CliRunner  # noqa: E402

import visionattn  # noqa: E402
from visionattn.cli import app  # noqa: E402
from visionattn.viz import draw_explanation  # noqa: E402


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    cv2.imwrite(str(path), np.random.default_rng().integers(0, 256, (100, 150, 3), dtype=np.uint8))
    return path


def run(*arguments):
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_command_writes_picture_and_arrays(photo, tmp_path):
    pytest.importorskip("mmengine")
    output = tmp_path / "out" / "seen.png"
    result = run("builtin/digits_nat-micro", photo, "--pixel", "99,75", "--size", "32x48", "--no-flow", "-o", output)
    assert result.exit_code == 0, result.output
    assert output.read_bytes().startswith(b"\x89PNG")
    with np.load(output.with_suffix(".npz")) as arrays:
        assert arrays["pixel"].tolist() == [31, 24] and arrays["image_size"].tolist() == [32, 48]
        assert arrays["receptive_field"].shape == (32, 48) and arrays["grad_cam"].shape == (2, 3)
        names = arrays["layers"].tolist()
        assert names == [f"stages.{i}.blocks.{j}.attn" for i, j in ((0, 0), (1, 0), (1, 1), (2, 0))]
        assert arrays[f"{names[0]}/maps"].shape == (2, 8, 12)
        assert str(arrays[f"{names[0]}/method"]) == "weights" and "flow" not in arrays
    assert sorted(path.name for path in output.parent.iterdir()) == ["seen.npz", "seen.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("va_nat_tny", "PHOTO"), "va_nat_tiny"),
        (("va_nat_mini", "PHOTO", "--pixel", "100,3"), "--pixel 100,3 lies outside"),
        (("va_nat_mini", "PHOTO", "--pixel", "3"), "must look like 100,150"),
        (("va_nat_mini", "missing.png"), "missing.png"),
        (("builtin/digits_nat-micro", "PHOTO", "--pretrained"), "--pretrained goes with a model's name"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(arguments, message, photo, tmp_path):
    output = tmp_path / "seen.png"
    result = run(*[photo if part == "PHOTO" else part for part in arguments], "-o", output)
    assert result.exit_code == 1 and message in result.output
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_is_named(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    result = run("va_nat_mini", broken)
    assert result.exit_code == 1 and "broken.jpg" in result.output


def test_picture_of_signed_weights_and_class_tokens(tmp_path):
    kwargs = {"mixers": ("identity", "aggregated"), "depths": (1, 1), "embed_dim": 16, "num_heads": (2, 4)}
    model, image = timm.create_model("va_pyramid_tiny", **kwargs), torch.rand(3, 64, 64)
    found = visionattn.explain(model, image, side=2)
    shown = 255 * image.permute(1, 2, 0).numpy()
    draw_explanation(found, shown, tmp_path / "seen.png", layers=[0])
    assert (tmp_path / "seen.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="must have the explained one's"):
        draw_explanation(found, shown[:32], tmp_path / "other.png")
