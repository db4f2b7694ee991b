# SPDX-License-Identifier: Apache-2.0
"""Scenes for detection and segmentation: real digits set into real photographs, as COCO and ADE20K have their files."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visionattn.data.datasets import digit_scans

logger = logging.getLogger(__name__)

VERSION = 1  # of what is drawn; a change of the pictures or files raises it
SETTINGS_FILE = "scenes.json"
SPLITS = ("training", "validation")

DIGITS = tuple(str(digit) for digit in range(10))
BACKGROUNDS = ("photograph", "brick", "grass", "gravel")
CLASSES = (*BACKGROUNDS, "digit")  # of the masks: class i has the value i + 1, as in ADE20K
UNDECIDED = 0  # value of a digit's outline, neither ink nor background; readers with reduce_zero_label ignore it

# All of them lie in the wheels of scikit-image and scikit-learn (.jpg); none is downloaded. Training has the left half
# of each, validation the right half.
PHOTOGRAPHS = (
    "astronaut",
    "camera",
    "chelsea",
    "china.jpg",
    "coffee",
    "coins",
    "flower.jpg",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
    "stereo_motorcycle",
)
# The pictures of textures are grey; these are about their colours.
TEXTURES = {"brick": (1.0, 0.6, 0.5), "grass": (0.65, 1.0, 0.4), "gravel": (1.0, 0.92, 0.8)}

EMPTY = 0.04  # share of scenes without a digit
TEXTURED = 0.75  # share of scenes a part of which is brick, grass or gravel
DIGIT_SIZE = (0.25, 0.5)  # height of a scan in shorter sides of the scene
MAX_ANGLE = 15.0  # degrees to either side
MIN_VISIBLE = 0.9  # of a digit's ink, under later digits
MAX_OVERLAP = 0.2  # of a digit's box with an earlier one's: intersection over union
MIN_CONTRAST = 70.0  # of luminance, between ink and what is under it


@dataclass(frozen=True)
class SceneSettings:
    """What scenes are made.

    Args:
        training: Number of scenes to learn from.
        validation: Number of scenes that are held back.
        height: Height of a scene in pixels, at least 64.
        width: Width of a scene in pixels, at least 64.
        digits: Most digits in a scene.
        seed: Seed of all that is random. A scene depends on the seed, its split, size and number alone, so that more
            scenes leave the first ones as they are.

    Raises:
        ValueError: A value is out of its range.
    """

    training: int = 800
    validation: int = 160
    height: int = 128
    width: int = 160
    digits: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"training": 1, "validation": 1, "height": 64, "width": 64, "digits": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {low}")


@dataclass(frozen=True)
class Digit:
    """One digit of a scene.

    Args:
        label: The digit.
        scan: Its scan's position in the split.
        mask: The pixels of its ink that no later digit covers, `(H, W)` bool.
    """

    label: int
    scan: int
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """One picture with what is in it.

    Args:
        image: RGB, `(H, W, 3)` uint8.
        labels: 0 where undecided, else the class in `CLASSES` + 1, `(H, W)` uint8.
        digits: Its digits, in the order in which they were set.
        photograph: Name of the photograph.
    """

    image: np.ndarray
    labels: np.ndarray
    digits: tuple[Digit, ...]
    photograph: str


def make_scenes(root: str | os.PathLike[str], settings: SceneSettings | None = None) -> Path:
    """Folder of scenes, made on first use: real scans of digits set into real photographs.

    Both splits have photographs and scans of their own. The folder holds `images/{training,validation}/*.jpg`,
    COCO's `annotations/instances_{training,validation}.json` (boxes, areas and run-length masks of the digits) and
    ADE20K's `annotations/{training,validation}/*.png`. It appears whole or not at all, also where several processes
    make it at once, and has the same bytes for the same settings.

    Args:
        root: The folder; missing ones above it are made.
        settings: What to make.

    Returns:
        `root`.

    Raises:
        ValueError: `root` holds scenes of other settings or of another version, or something else.
    """
    root, settings = Path(root), settings or SceneSettings()
    if _is_made(root, settings):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    logger.info("making %d scenes in %s", settings.training + settings.validation, root)
    temporary = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".tmp", dir=root.parent))
    try:
        for split in SPLITS:
            _write_split(temporary, split, settings)
        _write_json(temporary / SETTINGS_FILE, _facts(settings))
        temporary.chmod(0o755)  # mkdtemp's folders are closed to others
        try:
            temporary.rename(root)
        except OSError:
            if not _is_made(root, settings):  # else another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root


def draw_scene(split: str, index: int, settings: SceneSettings | None = None) -> Scene:
    """One scene, by its number.

    Args:
        split: "training" or "validation".
        index: Number of the scene, from 0.
        settings: What to make.

    Raises:
        ValueError: `split` is neither.
    """
    return SceneMaker(split, settings or SceneSettings()).draw(index)


class SceneMaker:
    """Draws the scenes of one split.

    Args:
        split: "training" or "validation".
        settings: What to make.

    Raises:
        ValueError: `split` is neither.
    """

    def __init__(self, split: str, settings: SceneSettings) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r} must be one of {', '.join(map(repr, SPLITS))}")
        self.split, self.settings = split, settings
        self.scans, self.labels = digit_scans("train" if split == "training" else "test")
        self.photographs = {name: _half(_photograph(name), split) for name in PHOTOGRAPHS}
        self.textures = {name: _half(_photograph(name), split) for name in TEXTURES}

    def draw(self, index: int) -> Scene:
        """Scene number `index`."""
        rng = np.random.default_rng((self.settings.seed, SPLITS.index(self.split), index))
        size = self.settings.height, self.settings.width
        name = str(rng.choice(list(self.photographs)))
        image = _lit(_crop(self.photographs[name], size, rng), rng)
        labels = np.full(size, 1 + BACKGROUNDS.index("photograph"), np.uint8)
        if rng.random() < TEXTURED:
            self._lay_texture(image, labels, rng)
        digits: list[Digit] = []
        if rng.random() >= EMPTY:
            for _ in range(int(rng.integers(1, self.settings.digits + 1))):
                self._set_digit(image, labels, digits, rng)
        return Scene(np.round(image).clip(0, 255).astype(np.uint8), labels, tuple(digits), name)

    def _lay_texture(self, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> None:
        """Cover one side of a random line by brick, grass or gravel."""
        name = str(rng.choice(list(TEXTURES)))
        texture = _lit(_crop(self.textures[name], labels.shape, rng), rng)
        texture *= np.array(TEXTURES[name]) * rng.uniform(0.85, 1.0, 3)
        y, x = np.indices(labels.shape, dtype=np.float32)
        height, width = labels.shape
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3) * min(height, width)
        distance = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle) - offset
        covered = (distance + 0.5).clip(0, 1)[..., None]
        image[:] = image + covered * (texture - image)
        labels[distance >= 0] = 1 + BACKGROUNDS.index(name)

    def _set_digit(
        self, image: np.ndarray, labels: np.ndarray, digits: list[Digit], rng: np.random.Generator, tries: int = 20
    ) -> None:
        """Draw a random scan at a random place where it hides little of the digits before it, if there is one."""
        scan = int(rng.integers(len(self.scans)))
        size = rng.uniform(*DIGIT_SIZE) * min(labels.shape)
        ink = enlarge(self.scans[scan], size, rng.uniform(-MAX_ANGLE, MAX_ANGLE), rng.uniform(0.8, 1.25))
        room = np.subtract(labels.shape, ink.shape)
        for _ in range(tries if room.min() >= 0 else 0):
            top, left = rng.integers(0, room + 1)
            window = np.s_[top : top + ink.shape[0], left : left + ink.shape[1]]
            covered = np.zeros(labels.shape, bool)
            covered[window] = ink >= 0.5
            if not any(_hides(covered, digit.mask) for digit in digits):
                _paint(image[window], ink, rng)
                digits[:] = [dataclasses.replace(digit, mask=digit.mask & ~covered) for digit in digits]
                digits.append(Digit(int(self.labels[scan]), scan, covered))
                labels[window][(ink > 0.25) & (ink < 0.75)] = UNDECIDED
                labels[window][ink >= 0.75] = 1 + CLASSES.index("digit")
                return


def enlarge(scan: np.ndarray, size: float, angle: float = 0.0, stretch: float = 1.0) -> np.ndarray:
    """Coverage of pixels by the ink of a scan, 0 to 1, without empty margins: `(H, W)` float32.

    The strokes' edges are drawn finer than pixels.

    Args:
        scan: `(8, 8)` uint8, ink bright.
        size: Height of the whole scan in pixels.
        angle: Rotation in degrees, counter-clockwise.
        stretch: Width of the scan by its height.
    """
    fine, border = 2, 2  # parts of a pixel; empty pixels around the scan, for interpolation
    padded = np.pad(scan, border)
    side = int(np.ceil(1.4 * size * max(1.0, stretch)))
    turn = np.deg2rad(angle)
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) * fine * size / len(scan)
    axes[:, 0] *= stretch
    shift = (fine * side - 1) / 2 - axes @ np.full(2, (len(padded) - 1) / 2)
    drawn = cv2.warpAffine(padded, np.c_[axes, shift], (fine * side, fine * side), flags=cv2.INTER_CUBIC)
    sharp = ((drawn.astype(np.float32) / 255 - 0.4) / 0.2).clip(0, 1)
    ink = cv2.resize(sharp, (side, side), interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(ink.max(1) >= 0.25), np.flatnonzero(ink.max(0) >= 0.25)
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def run_lengths(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed run-length encoding of a mask `(H, W)` bool: down the columns, zeros first."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.r_[0, changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def tight_box(mask: np.ndarray) -> list[int]:
    """`[x, y, width, height]` of the smallest box around a mask `(H, W)` bool that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def _hides(later: np.ndarray, earlier: np.ndarray) -> bool:
    """Whether a later digit would hide too much of an earlier one, or crowd it, by their masks."""
    if (earlier & ~later).sum() < MIN_VISIBLE * earlier.sum():
        return True
    x, y, width, height = np.array([tight_box(later), tight_box(earlier)]).T
    across = max(min(x + width) - max(x), 0) * max(min(y + height) - max(y), 0)
    return across > MAX_OVERLAP * ((width * height).sum() - across)


def _photograph(name: str) -> np.ndarray:
    """A bundled photograph, RGB, `(H, W, 3)` uint8."""
    if name.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(name)
    from skimage import data

    image = getattr(data, name)()
    image = image[0] if isinstance(image, tuple) else image  # the left picture of a stereo pair
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)


def _half(image: np.ndarray, split: str) -> np.ndarray:
    middle = image.shape[1] // 2
    return image[:, :middle] if split == "training" else image[:, middle:]


def _crop(photograph: np.ndarray, size: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Random part of a photograph at a random scale, mirrored or not, `(*size, 3)` float32."""
    largest = float(np.divide(photograph.shape[:2], size).min())
    zoom = min(rng.uniform(0.8, max(largest, 0.8)), largest)  # pixels of the photograph in one of the scene
    height, width = (max(int(zoom * side), 1) for side in size)
    top = rng.integers(photograph.shape[0] - height + 1)
    left = rng.integers(photograph.shape[1] - width + 1)
    part = photograph[top : top + height, left : left + width]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    how = cv2.INTER_AREA if zoom > 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(part), tuple(size[::-1]), interpolation=how).astype(np.float32)


def _lit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image under a little more or less light."""
    return (image * rng.uniform(0.7, 1.2) + rng.uniform(-20, 20)).clip(0, 255).astype(np.float32)


def _paint(image: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> None:
    """Lay ink of a random colour, that stands out, is shaded and lets some of the image through, over an image."""
    luminance = np.array([0.299, 0.587, 0.114])
    under = image[ink >= 0.5].mean(0) @ luminance
    while True:
        color = rng.uniform(0, 255, 3)
        if abs(color @ luminance - under) >= MIN_CONTRAST:
            break
    first, last = rng.uniform(0.85, 1.15, 2)
    shade = np.linspace(float(first), float(last), len(ink))[:, None, None]
    covered = ink[..., None] * rng.uniform(0.75, 1.0)
    image[:] = image + covered * ((color * shade).clip(0, 255) - image)


def _facts(settings: SceneSettings) -> dict[str, Any]:
    return {"version": VERSION, "settings": dataclasses.asdict(settings)}


def _is_made(root: Path, settings: SceneSettings) -> bool:
    """Whether `root` holds these scenes; raises ValueError where it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    file, wanted = root / SETTINGS_FILE, _facts(settings)
    if not file.is_file():
        raise ValueError(f"{root} holds no {SETTINGS_FILE}, so it is not a folder of scenes; name an empty or new one")
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = f"a damaged {SETTINGS_FILE}"
    if found != wanted:
        raise ValueError(f"{root} holds other scenes: {found}, not {wanted}; remove it or name another folder")
    return True


def _write_split(root: Path, split: str, settings: SceneSettings) -> None:
    """Images, masks and COCO file of one split."""
    maker = SceneMaker(split, settings)
    images, masks = root / "images" / split, root / "annotations" / split
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    content: dict[str, Any] = {
        "info": {"description": "digits in photographs", "version": str(VERSION), **dataclasses.asdict(settings)},
        "licenses": [],
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name, "supercategory": "digit"} for i, name in enumerate(DIGITS)],
    }
    for index in range(getattr(settings, split)):
        scene, name = maker.draw(index), f"{split}_{index:06d}"
        _write_image(images / f"{name}.jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        _write_image(masks / f"{name}.png", scene.labels)
        _add_to_coco(content, scene, f"{name}.jpg")
    _write_json(root / "annotations" / f"instances_{split}.json", content)


def _add_to_coco(content: dict[str, Any], scene: Scene, filename: str) -> None:
    height, width = scene.labels.shape
    image_id = len(content["images"]) + 1
    image = {"id": image_id, "file_name": filename, "height": height, "width": width, "photograph": scene.photograph}
    content["images"].append(image)
    for digit in scene.digits:
        annotation = {
            "id": len(content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": digit.label + 1,
            "bbox": tight_box(digit.mask),
            "area": int(digit.mask.sum()),
            "segmentation": run_lengths(digit.mask),
            "iscrowd": 0,
            "scan": digit.scan,
        }
        content["annotations"].append(annotation)


def _write_image(path: Path, image: np.ndarray, options: Sequence[int] = ()) -> None:
    done, content = cv2.imencode(path.suffix, image, list(options))
    if not done:
        raise OSError(f"{path} could not be encoded")
    path.write_bytes(content.tobytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n")
