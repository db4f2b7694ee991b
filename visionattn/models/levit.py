# SPDX-License-Identifier: Apache-2.0
"""LeViT: timm has the network; here are the names of its authors' files.

Paper: LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference, arXiv 2104.01136. Licence: Apache-2.0.
"""

from typing import Any

from torch import Tensor, nn

from ._checkpoint import KeyMap
from ._registry import Paper, Published
from ._served import OTHER_NAMES, reader, serve_timms

PAPER = Paper("LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference", "2104.01136")


def _like(weight: Tensor, target: Tensor) -> Tensor:
    """Weights of a linear layer as those of a 1x1 convolution, where timm's model has one."""
    return weight[:, :, None, None] if weight.ndim == 2 and target.ndim == 4 else weight


def levit_names(model: nn.Module) -> KeyMap:
    """Names of LeViT's files, which count all blocks in one list; what each is follows from the model's depths."""
    places: list[str] = []
    for i, stage in enumerate(getattr(model, "stages", ())):
        if i > 0:
            places += [f"stages.{i}.downsample.attn_downsample.", f"stages.{i}.downsample.mlp."]
        for j in range(len(stage.blocks)):
            places += [f"stages.{i}.blocks.{j}.attn.", f"stages.{i}.blocks.{j}.mlp."]
    keys = (
        (r"^blocks\.(\d+)\.(?:m\.)?", lambda match: places[int(match[1])] if int(match[1]) < len(places) else match[0]),
        (r"^patch_embed\.(\d)\.", lambda match: f"stem.conv{int(match[1]) // 2 + 1}."),
        (r"\.mlp\.([02])\.", lambda match: f".mlp.ln{int(match[1]) // 2 + 1}."),
        (r"\.(q|proj)\.1\.", r".\1.ln."),
        (r"\.c\.weight$", ".linear.weight", _like),
        (r"^head(_dist)?\.l\.", r"head\1.linear."),
    )
    return KeyMap("LeViT", keys, constants=(r"\.attention_bias_idxs$",))


def _one_key_dim(args: dict[str, Any]) -> dict[str, Any]:
    if len(set(args["key_dim"])) > 1:
        raise ValueError(f"key_dim={args['key_dim']} must be the same in all stages of timm's LeViT")
    return {"key_dim": args["key_dim"][0]}


FIGURES = {
    "128s": ("128S-96703c44", 76.6, 7.8, 0.305),
    "128": ("128-b88c2750", 78.6, 9.2, 0.406),
    "192": ("192-92712e41", 80.0, 11, 0.658),
    "256": ("256-13b5763e", 81.6, 19, 1.12),
    "384": ("384-9bdaf2e2", 82.6, 39, 2.353),
}
WEIGHTS = {
    f"levit_{form}{size}.fb_dist_in1k": Published(
        f"LeViT_{size.upper()}{form and ' as convolutions'}", f"https://dl.fbaipublicfiles.com/LeViT/LeViT-{file}.pth",
        top1, None, params, gflops, crop_pct=0.9)
    for form in ("", "conv_")
    for size, (file, top1, params, gflops) in FIGURES.items()
}  # fmt: skip

serve_timms(
    "levit", "LeViT", PAPER, "apache-2.0", "https://github.com/facebookresearch/LeViT", key_maps=(levit_names,),
    reader=reader("levit_128s", OTHER_NAMES, _one_key_dim), weights=WEIGHTS,
)  # fmt: skip
