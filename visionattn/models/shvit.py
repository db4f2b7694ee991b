# SPDX-License-Identifier: Apache-2.0
"""SHViT: timm has the network; here are the names of its authors' files.

Paper: SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design, arXiv 2401.16456. Licence: MIT.
"""

from collections.abc import Callable

from ._checkpoint import KeyMap
from ._registry import Dense, Paper, Published
from ._served import OTHER_NAMES, Names, reader, serve_timms

PAPER = Paper("SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", "2401.16456")
ORIGIN = "https://github.com/ysj9909/SHViT"
NAMES: Names = {**OTHER_NAMES, "img_size": None}


def _stage(path: str, number: int = 2) -> Callable[..., str]:
    """Replacement by `path` in the stage that the first group counts from 1; the second one is a number, less some."""
    return lambda match: (
        f"stages.{int(match[1]) - 1}.{path.format(int(match[2]) - number if match.re.groups > 1 else 0)}"
    )


SHVIT = KeyMap(
    "SHViT",
    (
        (r"^blocks1\.", "stages.0.blocks."),
        (r"^blocks(\d)\.0\.(\d)\.", _stage("downsample.{}.", 0)),
        (r"^blocks(\d)\.1\.", _stage("downsample.2.")),
        (r"^blocks(\d)\.2\.(\d)\.", _stage("downsample.{}.", -3)),
        (r"^blocks(\d)\.(\d+)\.", _stage("blocks.{}.", 3)),
    ),
)

FIGURES = (
    ("s1", 6.3, 0.241, 72.8),
    ("s2", 11.4, 0.366, 75.2),
    ("s3", 14.2, 0.601, 77.4),
    ("s4", 16.5, 0.986, 79.4),
)
WEIGHTS = {
    f"shvit_{size}.in1k": Published(
        f"shvit_{size}", f"{ORIGIN}/releases/download/v1.0/shvit_{size}.pth", top1, None, params, gflops,
        256 if size == "s4" else 224)
    for size, params, gflops, top1 in FIGURES
}  # fmt: skip
DENSE = {"shvit_s4.in1k": (Dense("RetinaNet 1x", 38.8), Dense("Mask R-CNN 1x", 39.0, 35.9))}

serve_timms(
    "shvit", "SHViT", PAPER, "mit", ORIGIN, key_maps=(SHVIT,), reader=reader("shvit_s1", NAMES), weights=WEIGHTS,
    dense=DENSE,
)  # fmt: skip
