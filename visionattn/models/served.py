# SPDX-License-Identifier: Apache-2.0
"""TNT, LeViT, ConViT and SHViT: timm has their networks, equal to the authors'; here are the names of their files.

Papers: Transformer in Transformer, arXiv 2103.00112; LeViT, arXiv 2104.01136; ConViT, arXiv 2103.10697; SHViT, arXiv
2401.16456. Licences: Apache-2.0, SHViT's MIT; ConViT's headers name CC-BY-NC beside the Apache-2.0 of its licence file.
"""

from collections.abc import Callable, Mapping
from typing import Any

import timm
from torch import Tensor, nn

from ._checkpoint import KeyMap
from ._registry import Dense, Family, Paper, Published, serve

# What the reference's own constructor arguments are called in timm; None for what has no counterpart to set.
Names = Mapping[str, str | None]


def _reader(
    base: str, names: Names, adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Callable[[Mapping[str, Any]], nn.Module]:
    """What makes timm's model of a golden record from the constructor arguments of the reference.

    Args:
        base: A model of the family.
        names: timm's name of each argument.
        adapt: Returns the arguments that timm takes in another form.
    """

    def read(record: Mapping[str, Any]) -> nn.Module:
        if record["variant"] in NAME_OF:
            return timm.create_model(NAME_OF[record["variant"]])
        config = record["config"]
        if left := set(config) - set(names):
            raise ValueError(f"arguments {sorted(left)} of the reference have no counterpart in timm's {base}")
        args = {ours: config[theirs] for theirs, ours in names.items() if ours is not None and theirs in config}
        args = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
        return timm.create_model(base, **{**args, **adapt(args)})

    return read


def _word_positions(table: Tensor, target: Tensor) -> Tensor:
    """`(1, words, C)` as a map `(1, C, h, w)`."""
    return table.transpose(1, 2).reshape(target.shape) if table.numel() == target.numel() else table


TNT_KEYS = (
    (r"^outer_pos$", "patch_pos"),
    (r"^inner_pos$", "pixel_pos", _word_positions),
    (r"^patch_embed\.", "pixel_embed."),
    (r"\bproj_norm([12])\.", r"norm\1_proj."),
    (r"\.inner_norm1\.", ".norm_in."),
    (r"\.inner_norm2\.", ".norm_mlp_in."),
    (r"\.inner_(attn|mlp)\.", r".\1_in."),
    (r"\.outer_norm1\.", ".norm_out."),
    (r"\.outer_norm2\.", ".norm_mlp."),
    (r"\.outer_attn\.", ".attn_out."),
    (r"\.outer_mlp\.", ".mlp."),
)
# Frozen and used by nothing.
TNT = KeyMap("TNT", TNT_KEYS, constants=(r"^outer_tokens$",))


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


def _timms(*args: Any, key_maps: tuple[Any, ...], reader: Callable[..., nn.Module]) -> Family:
    """A family whose network is timm's; `args` are name, title, paper, licence and repository."""
    name, title, paper, license, origin = args
    return Family(name, title, (paper,), license, origin, timm.create_model, key_maps, name, reader)


SIZE_NAMES: Names = {"img_size": "img_size", "patch_size": None, "num_classes": "num_classes"}
TNT_NAMES: Names = {
    **SIZE_NAMES, "patch_size": "patch_size", "outer_dim": "embed_dim", "inner_dim": "inner_dim", "depth": "depth",
    "outer_num_heads": "num_heads_outer", "inner_num_heads": "num_heads_inner", "qkv_bias": "qkv_bias",
    "inner_stride": "first_stride",
}  # fmt: skip
SAME = ("embed_dim", "key_dim", "depth", "num_heads", "attn_ratio", "mlp_ratio", "partial_dim", "qk_dim", "types",
        "local_up_to_layer", "locality_strength")  # fmt: skip
# timm derives the rest from these, the stem and the step between stages from the family.
OTHER_NAMES: Names = {**SIZE_NAMES, **{name: name for name in SAME}, "norm_eps": None, "distillation": None,
                      "down_ops": None, "stem": None}  # fmt: skip
CONVIT_NAMES: Names = {**OTHER_NAMES, "patch_size": "patch_size"}
SHVIT_NAMES: Names = {**OTHER_NAMES, "img_size": None}


def _channels_a_head(args: dict[str, Any]) -> dict[str, Any]:
    return {"embed_dim": args["embed_dim"] // args["num_heads"]}


def _one_key_dim(args: dict[str, Any]) -> dict[str, Any]:
    if len(set(args["key_dim"])) > 1:
        raise ValueError(f"key_dim={args['key_dim']} must be the same in all stages of timm's LeViT")
    return {"key_dim": args["key_dim"][0]}


HUAWEI = "https://github.com/huawei-noah/Efficient-AI-Backbones"
PIXELS = {"crop_pct": 0.9, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _tnt(variant: str, size: str, params: float, gflops: float, top1: float) -> Published:
    return Published(variant, f"{HUAWEI}/releases/download/tnt/tnt_{size}_{top1}.pth.tar", top1, None, params, gflops,
                     **PIXELS)  # type: ignore[arg-type]  # fmt: skip


TNT_WEIGHTS = {
    "tnt_s_patch16_224.in1k": _tnt("tnt_s_patch16_224", "s", 23.8, 5.2, 81.5),
    "tnt_b_patch16_224.in1k": _tnt("tnt_b_patch16_224", "b", 65.6, 14.1, 82.9),
}
LEVIT_FIGURES = {
    "128s": ("128S-96703c44", 76.6, 7.8, 0.305),
    "128": ("128-b88c2750", 78.6, 9.2, 0.406),
    "192": ("192-92712e41", 80.0, 11, 0.658),
    "256": ("256-13b5763e", 81.6, 19, 1.12),
    "384": ("384-9bdaf2e2", 82.6, 39, 2.353),
}
LEVIT_WEIGHTS = {
    f"levit_{form}{size}.fb_dist_in1k": Published(
        f"LeViT_{size.upper()}{form and ' as convolutions'}", f"https://dl.fbaipublicfiles.com/LeViT/LeViT-{file}.pth",
        top1, None, params, gflops, crop_pct=0.9)
    for form in ("", "conv_")
    for size, (file, top1, params, gflops) in LEVIT_FIGURES.items()
}  # fmt: skip
CONVIT_WEIGHTS = {
    f"convit_{size}.fb_in1k": Published(
        f"convit_{size}", f"https://dl.fbaipublicfiles.com/convit/convit_{size}.pth", top1, None, params)
    for size, params, top1 in (("tiny", 6, 73.1), ("small", 27, 81.3), ("base", 86, 82.4))
}  # fmt: skip
SHVIT_ORIGIN = "https://github.com/ysj9909/SHViT"
SHVIT_FIGURES = (
    ("s1", 6.3, 0.241, 72.8),
    ("s2", 11.4, 0.366, 75.2),
    ("s3", 14.2, 0.601, 77.4),
    ("s4", 16.5, 0.986, 79.4),
)
SHVIT_WEIGHTS = {
    f"shvit_{size}.in1k": Published(
        f"shvit_{size}", f"{SHVIT_ORIGIN}/releases/download/v1.0/shvit_{size}.pth", top1, None, params, gflops,
        256 if size == "s4" else 224)
    for size, params, gflops, top1 in SHVIT_FIGURES
}  # fmt: skip
SHVIT_DENSE = {"shvit_s4.in1k": (Dense("RetinaNet 1x", 38.8), Dense("Mask R-CNN 1x", 39.0, 35.9))}

FAMILIES = {
    "tnt": _timms("tnt", "TNT", Paper("Transformer in Transformer", "2103.00112"), "apache-2.0", HUAWEI,
                  key_maps=(TNT,), reader=_reader("tnt_s_patch16_224", TNT_NAMES)),
    "levit": _timms(
        "levit", "LeViT", Paper("LeViT: a Vision Transformer in ConvNet's Clothing for Faster Inference", "2104.01136"),
        "apache-2.0", "https://github.com/facebookresearch/LeViT", key_maps=(levit_names,),
        reader=_reader("levit_128s", OTHER_NAMES, _one_key_dim)),
    "convit": _timms(
        "convit", "ConViT",
        Paper("ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases", "2103.10697"),
        "apache-2.0", "https://github.com/facebookresearch/convit", key_maps=(),
        reader=_reader("convit_tiny", CONVIT_NAMES, _channels_a_head)),
    "shvit": _timms(
        "shvit", "SHViT",
        Paper("SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", "2401.16456"),
        "mit", SHVIT_ORIGIN, key_maps=(SHVIT,), reader=_reader("shvit_s1", SHVIT_NAMES)),
}  # fmt: skip
NAME_OF: dict[str, str] = {}
for _name, _weights, _dense in (
    ("tnt", TNT_WEIGHTS, {}), ("levit", LEVIT_WEIGHTS, {}), ("convit", CONVIT_WEIGHTS, {}),
    ("shvit", SHVIT_WEIGHTS, SHVIT_DENSE),
):  # fmt: skip
    serve(FAMILIES[_name], _weights, _dense)
    NAME_OF.update({row.reference: key.split(".", 1)[0] for key, row in _weights.items()})
