# SPDX-License-Identifier: Apache-2.0
"""Image files in, arrays out."""

from __future__ import annotations

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
REDUCTIONS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
JPEG, SCAN, END_OF_IMAGE = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """RGB image of a file, `(H, W, 3)` uint8, turned upright where the file says how it was held.

    Args:
        path: An image file in any format that OpenCV decodes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an image that can be decoded; the message names it.
    """
    return decode_image(read_file(path), str(path))


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Content of an image file; raises FileNotFoundError naming it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"image file {path} does not exist")
    return path.read_bytes()


def decode_image(
    content: bytes, source: str, upright: bool = True, header: Image.Image | None = None, reduction: int = 1
) -> np.ndarray:
    """RGB image of a file's bytes, `(H, W, 3)` uint8.

    Args:
        content: The file.
        source: What to call it in errors.
        upright: Turn the image as the file says it was held, which published accuracies don't.
        header: From `open_image`, where it is at hand.
        reduction: 1, or 2, 4 or 8 for an image of a half, a quarter or an eighth of the sides, rounded up, which a JPEG
            file gives faster than the whole one.

    Raises:
        ValueError: These are no bytes of an image that can be decoded, or its end is missing.
    """
    check_whole(content, source)
    if not upright:
        # CMYK, palettes, transparency: what others do with them is what Pillow does.
        header = header or open_image(content, source)
        if header.mode not in ("RGB", "L"):
            return np.asarray(to_rgb(header, source))
    flags = REDUCTIONS[reduction]
    # Decoding from memory, as OpenCV's own reader fails on some non-ASCII paths and prints instead of raising.
    try:
        buffer = np.frombuffer(content, np.uint8)
        image = cv2.imdecode(buffer, flags if upright else flags | cv2.IMREAD_IGNORE_ORIENTATION) if content else None
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"{source} is not an image that can be decoded ({len(content)} bytes)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def check_whole(content: bytes, source: str) -> None:
    """Raise ValueError, naming `source`, if a JPEG file ends within its picture."""
    if ends_early(content):
        raise ValueError(f"{source} is cut off: the end of its JPEG data is missing ({len(content)} bytes)")


def to_rgb(image: Image.Image, source: str) -> Image.Image:
    """Decoded RGB image; raises ValueError naming `source` where it cannot be decoded."""
    try:
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{source} is not an image that can be decoded ({error})") from error


def open_image(content: bytes, source: str) -> Image.Image:
    """Pillow's image of a file's bytes, of which only the header is read yet.

    Raises:
        ValueError: These are no bytes of an image; the message names `source`.
    """
    try:
        return Image.open(io.BytesIO(content))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{source} is not an image that can be decoded ({len(content)} bytes)") from error


def ends_early(content: bytes) -> bool:
    """Whether a JPEG file ends within its picture, of which decoders make a picture that is partly grey."""
    if not content.startswith(JPEG) or content.endswith(END_OF_IMAGE):
        return False
    # Within a scan 0xFF is always followed by 0 or a restart marker, so that these are markers.
    return content.rfind(END_OF_IMAGE) < content.rfind(SCAN)
