# SPDX-License-Identifier: Apache-2.0
"""Image files in, arrays out."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """RGB image of a file, `(H, W, 3)` uint8, turned upright where the file says how it was held.

    Args:
        path: An image file in any format that OpenCV decodes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an image that can be decoded; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image file {path} does not exist")
    # Decoding from memory, as OpenCV's own reader fails on some non-ASCII paths and prints instead of raising.
    content = np.fromfile(path, dtype=np.uint8)
    try:
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"{path} is not an image that can be decoded ({content.size} bytes)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
