# SPDX-License-Identifier: Apache-2.0
"""Small sets of real images for tests: parts of photographs, scans of digits, as JPEG files in class folders."""

from __future__ import annotations

import tarfile
from pathlib import Path

import cv2
import numpy as np
from sklearn.datasets import load_sample_image

from visionattn.data.datasets import digit_scans

CLASSES = ("digit_0", "digit_1", "digit_7", "brick", "grass", "flower")


def photograph(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Random part of a photograph, `(height, width, 3)` uint8."""
    image = load_sample_image(str(rng.choice(["china.jpg", "flower.jpg"])))
    top = int(rng.integers(image.shape[0] - height + 1))
    left = int(rng.integers(image.shape[1] - width + 1))
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    """File of an RGB image."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def write_subset(root: Path, train: int = 16, val: int = 8, side: int = 48, seed: int = 0) -> Path:
    """`root/{train,val}/CLASS/*.jpg`: digits, textures, a photograph; each split has scans and halves of its own."""
    from skimage import data

    rng = np.random.default_rng(seed)
    pictures = {"brick": data.brick(), "grass": data.grass(), "flower": load_sample_image("flower.jpg")}
    for split, count in (("train", train), ("val", val)):
        scans, labels = digit_scans("train" if split == "train" else "test")
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            own = scans[labels == int(name[-1])] if name.startswith("digit") else None
            for index in range(count):
                height, width = side + int(rng.integers(9)), side + int(rng.integers(9))
                if own is not None:
                    part = cv2.resize(own[index], (width, height), interpolation=cv2.INTER_CUBIC)
                else:
                    picture = pictures[name]
                    middle = picture.shape[1] // 2
                    half = picture[:, :middle] if split == "train" else picture[:, middle:]
                    top = int(rng.integers(half.shape[0] - 2 * height))
                    left = int(rng.integers(half.shape[1] - 2 * width))
                    part = half[top : top + 2 * height : 2, left : left + 2 * width : 2]
                part = part if part.ndim == 3 else np.repeat(part[..., None], 3, axis=-1)
                (folder / f"{index:03d}.jpg").write_bytes(jpeg(np.ascontiguousarray(part)))
    return root


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    """A tar file with these members."""
    import io

    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path
