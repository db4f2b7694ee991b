# SPDX-License-Identifier: Apache-2.0
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

cv2 = pytest.importorskip("cv2")
pytest.importorskip("albumentations")
pytest.importorskip("sklearn")

from image_sets import jpeg, photograph  # noqa: E402
from timm.data.auto_augment import NAME_TO_OP  # noqa: E402

from visionattn.data import ImageNetEval, ImageNetTrain, build_pipeline  # noqa: E402
from visionattn.data.augment import OPERATIONS, build_policy  # noqa: E402
from visionattn.data.images import decode_image  # noqa: E402
from visionattn.data.randomness import own_randomness  # noqa: E402

STD = torch.tensor(ImageNetEval().std)[:, None, None]


@pytest.fixture
def rng():
    return np.random.default_rng()


def levels(one, other):
    """Mean and largest difference of two normalised tensors, in grey levels of 0 to 255."""
    difference = (255 * STD * (one - other).abs()).round()  # of whole levels, but for float32's rounding
    return difference.mean().item(), difference.max().item()


def both(kind, content, seed=0, **settings):
    results = []
    for backend in ("albumentations", "timm"):
        pipeline = kind(**settings, backend=backend).build()
        with own_randomness(seed):
            results.append(pipeline.finish(pipeline.decode(content, "a file")))
    return results


EVALUATIONS = {
    "published": {},
    "crop 0.9": {"crop_pct": 0.9},
    "large": {"size": 384, "crop_pct": 1.0},
    "squash": {"crop_mode": "squash", "crop_pct": 1.0},
    "border": {"crop_mode": "border", "crop_pct": 1.0},
    "not square": {"size": (96, 160)},
    "bilinear": {"interpolation": "bilinear"},
    "box": {"interpolation": "box"},
}


@pytest.mark.parametrize("settings", EVALUATIONS.values(), ids=EVALUATIONS)
def test_evaluation_crops_of_both_backends_agree(rng, settings):
    # Both decode with libjpeg-turbo and resize with antialiased kernels; what is left is rounding: Pillow rounds the
    # kernel's weights otherwise than PyTorch. OpenCV's own bicubic resizing would differ by several levels on average,
    # a crop that is a pixel off by dozens at edges. At the sharpest edges of random images, rounding came to 7.
    for size in ((375, 500), (427, 313), (120, 150)):
        ours, timms = both(ImageNetEval, jpeg(photograph(rng, *size)), **settings)
        assert ours.shape == timms.shape
        mean, largest = levels(ours, timms)
        assert mean < 0.25
        assert largest <= 9


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA"])
def test_every_colour_mode_is_read_as_timm_reads_it(rng, mode):
    image = Image.fromarray(photograph(rng, 260, 300)).convert(mode)
    file = io.BytesIO()
    image.save(file, format="JPEG" if mode in ("L", "CMYK") else "PNG")
    mean, largest = levels(*both(ImageNetEval, file.getvalue()))
    assert mean < 0.25
    assert largest <= 6


def test_images_are_read_as_they_are_stored(rng):
    image = photograph(rng, 200, 300)
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", exif=exif)
    assert decode_image(file.getvalue(), "it", upright=False).shape == (200, 300, 3)
    assert decode_image(file.getvalue(), "it").shape == (300, 200, 3)
    assert levels(*both(ImageNetEval, file.getvalue()))[0] < 0.25


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_training_crops_and_flips_of_both_backends_agree(rng, interpolation):
    content = jpeg(photograph(rng, 375, 500))
    crops = []
    for seed in rng.integers(2**32, size=6):
        settings = {"color_jitter": None, "interpolation": interpolation, "vflip": 0.3}
        ours, timms = both(ImageNetTrain, content, int(seed), **settings)
        assert levels(ours, timms)[0] < 0.5
        crops.append(ours)
    assert len({crop.sum().item() for crop in crops}) > 1


def test_jittered_colors_of_both_backends_agree(rng):
    content = jpeg(photograph(rng, 300, 300))
    for seed in rng.integers(2**32, size=6):
        plain, jittered = ({"color_jitter": change} for change in (None, (0.4, 0.4, 0.4, 0.1)))
        ours, timms = both(ImageNetTrain, content, int(seed), **jittered)
        assert levels(ours, timms)[0] < 2.5  # OpenCV's hues are whole numbers, as Pillow's are, and round otherwise
        assert levels(ours, both(ImageNetTrain, content, int(seed), **plain)[0])[0] > 2.5


def test_erased_rectangles_of_both_backends_agree(rng):
    content = jpeg(photograph(rng, 300, 300))
    settings = {"color_jitter": None, "erase_prob": 1.0, "erase_mode": "pixel", "erase_count": 3}
    ours, timms = both(ImageNetTrain, content, int(rng.integers(2**32)), **settings)
    assert levels(ours, timms)[0] < 0.5
    assert ours.std() > 0


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m15-n3-mstd101-inc1", "v0", "originalr", "original-mstd0.5", "3a"]
)
def test_policies_of_both_backends_draw_the_same_operations(rng, policy):
    content = jpeg(photograph(rng, 300, 400))
    differences = []
    for seed in rng.integers(2**32, size=8):
        settings = {"color_jitter": None, "auto_augment": policy}
        ours, timms = both(ImageNetTrain, content, int(seed), **settings)
        differences.append(levels(ours, timms)[0])
    # Another operation, or another strength of it, would differ by tens of levels; so may, of a few images, what
    # stretches the contrast of a dull crop or cuts at a threshold, by which roundings grow.
    assert np.median(differences) < 1.5
    assert np.quantile(differences, 0.75) < 8


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_do_what_timms_do(rng, name):
    image = photograph(rng, 113, 171)
    levels_of = {"Rotate": -23.0, "Shear": 0.2, "Translate": -31.0, "TranslateXRel": 0.3, "TranslateYRel": 0.3}
    levels_of |= {"Posterize": 3, "SolarizeAdd": 60, "Solarize": 120, "Gaussian": 1.5}
    found = [value for start, value in levels_of.items() if name.startswith(start)]
    level = () if name in ("AutoContrast", "Equalize", "Invert") else (found[-1] if found else 0.6,)
    if name == "Solarize":
        level = (120,)
    if name.startswith("Solarize") and name != "SolarizeAdd":
        level = (120,)
    elif name == "SolarizeAdd":
        level = (60,)
    how = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BILINEAR}
    with own_randomness(5):
        expected = np.asarray(NAME_TO_OP[name](Image.fromarray(image), *level, **how)).astype(int)
    with own_randomness(5):
        got = OPERATIONS[name](image, *level, **how).astype(int)
    difference = np.abs(got - expected)
    if name.startswith(("Auto", "Equalize", "Invert", "Poster", "Solar", "Bright")):
        assert difference.max() <= 1
    else:  # rounding; bilinear places in steps of 1/32 pixel; Pillow's Gaussian is made of boxes
        assert difference.mean() < (1.5 if name.startswith("Gaussian") else 1.0)


def test_large_parts_are_decoded_smaller_and_look_the_same(rng):
    image = cv2.resize(photograph(rng, 400, 600), (1800, 1200), interpolation=cv2.INTER_CUBIC)
    content = jpeg(image)
    settings = {"size": 224, "scale": (0.9, 1.0), "color_jitter": None}
    ours, timms = both(ImageNetTrain, content, int(rng.integers(2**32)), **settings)
    assert levels(ours, timms)[0] < 3  # half a pixel more or less


def test_color_jitter_and_further_transforms_run_and_follow_the_seed(rng):
    content = jpeg(photograph(rng, 200, 240))
    extra = [{"type": "GaussNoise", "p": 1.0}]
    pipeline = ImageNetTrain(size=64, color_jitter=(0.4, 0.4, 0.4, 0.1), extra=extra).build()

    def draw(seed):
        with own_randomness(seed):
            return pipeline.finish(pipeline.decode(content, "it"))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    plain = ImageNetTrain(size=64, color_jitter=None).build()
    with own_randomness(3):
        assert not torch.equal(plain.finish(plain.decode(content, "it")), draw(3))


def test_random_numbers_of_others_go_on_as_before(rng):
    dataset_like = ImageNetTrain(size=32, auto_augment="rand-m9").build()
    content = jpeg(photograph(rng, 80, 80))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with own_randomness(9):
        dataset_like.finish(dataset_like.decode(content, "it"))
    assert torch.equal(torch.rand(3), expected)


def test_a_description_is_a_pipeline_of_arrays_too(rng):
    image = photograph(rng, 100, 130)
    for entry in ({"type": "ImageNetEval", "size": (40, 56)}, [{"type": "ImageNetTrain", "size": (40, 56)}]):
        result = build_pipeline(entry)(image=image)["image"]
        assert result.shape == (3, 40, 56)
        assert result.dtype == torch.float32
        assert result.is_contiguous()


def test_a_models_own_preprocessing_becomes_a_description():
    import timm

    config = timm.data.resolve_data_config({}, model=timm.create_model("test_vit", pretrained=False))
    description = ImageNetEval.from_data_config(config)
    assert (*description.size,) == config["input_size"][1:]
    assert description.crop_pct == config["crop_pct"]
    assert math.isclose(description.mean[0], config["mean"][0])


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ImageNetEval, {"crop_pct": 1.2}, r"crop_pct=1\.2"),
        (ImageNetEval, {"crop_mode": "centre"}, "crop_mode='centre' must be one of 'center'"),
        (ImageNetEval, {"interpolation": "random"}, "interpolation='random'"),
        (ImageNetEval, {"size": (1, 2, 3)}, r"size=\(1, 2, 3\)"),
        (ImageNetEval, {"backend": "pil"}, "backend='pil' must be one of 'albumentations', 'timm'"),
        (ImageNetEval, {"std": (0.2, 0.0, 0.2)}, "std="),
        (ImageNetTrain, {"scale": (1.0, 0.1)}, "scale="),
        (ImageNetTrain, {"hflip": 1.5}, "hflip=1.5"),
        (ImageNetTrain, {"erase_mode": "noise"}, "erase_mode='noise'"),
        (ImageNetTrain, {"color_jitter": (0.1, 0.1)}, "color_jitter="),
        (ImageNetTrain, {"extra": [{"type": "Blur"}], "backend": "timm"}, "extra"),
        (ImageNetTrain, {"auto_augment": "rand-x9"}, "auto_augment='rand-x9' is no policy"),
        (ImageNetTrain, {"auto_augment": "v7", "backend": "timm"}, "auto_augment='v7' is no policy"),
    ],
)
def test_wrong_settings_are_named(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings).build()


def test_unknown_arguments_and_mixed_pipelines_are_named():
    with pytest.raises(ValueError, match="argument='crop' must be one of"):
        build_pipeline({"type": "ImageNetEval", "crop": 0.9})
    with pytest.raises(ValueError, match="stands alone"):
        build_pipeline([{"type": "ImageNetEval"}, {"type": "Normalize"}])


@pytest.mark.parametrize("backend", ["albumentations", "timm"])
@pytest.mark.parametrize("kind", [ImageNetEval, ImageNetTrain])
@pytest.mark.parametrize("damage", ["no image", "empty", "cut JPEG", "cut PNG"])
def test_files_that_cannot_be_decoded_are_named(rng, backend, kind, damage):
    image = photograph(rng, 90, 120)
    png = cv2.imencode(".png", image)[1].tobytes()
    whole = jpeg(image)
    content = {"no image": b"hello", "empty": b"", "cut JPEG": whole[: len(whole) // 2], "cut PNG": png[:60]}[damage]
    with pytest.raises(ValueError, match=r"the\.file (is cut off|is not an image)"):
        kind(backend=backend).build().decode(content, "the.file")


def test_a_policy_keeps_size_and_kind(rng):
    image = photograph(rng, 60, 90)
    policy = build_policy("rand-m9-mstd0.5-inc1", (60, 90), (0.5, 0.5, 0.5))
    for _ in range(20):
        result = policy(image)
        assert result.shape == image.shape
        assert result.dtype == np.uint8
