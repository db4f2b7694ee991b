# SPDX-License-Identifier: Apache-2.0
"""ConViT: timm has the network, and the names of its authors' files.

Paper: ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases, arXiv 2103.10697. Licence:
Apache-2.0 by its file; the headers name CC-BY-NC too.
"""

from typing import Any

from ._registry import Paper, Published
from ._served import OTHER_NAMES, Names, reader, serve_timms

PAPER = Paper("ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases", "2103.10697")
NAMES: Names = {**OTHER_NAMES, "patch_size": "patch_size"}


def _channels_a_head(args: dict[str, Any]) -> dict[str, Any]:
    return {"embed_dim": args["embed_dim"] // args["num_heads"]}


WEIGHTS = {
    f"convit_{size}.fb_in1k": Published(
        f"convit_{size}", f"https://dl.fbaipublicfiles.com/convit/convit_{size}.pth", top1, None, params)
    for size, params, top1 in (("tiny", 6, 73.1), ("small", 27, 81.3), ("base", 86, 82.4))
}  # fmt: skip

serve_timms(
    "convit", "ConViT", PAPER, "apache-2.0", "https://github.com/facebookresearch/convit", key_maps=(),
    reader=reader("convit_tiny", NAMES, _channels_a_head), weights=WEIGHTS,
)  # fmt: skip
