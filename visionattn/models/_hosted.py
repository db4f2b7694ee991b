# SPDX-License-Identifier: Apache-2.0
"""What the families of one mixer in several hosts share: records, names of parameters, sizes, registration."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ._checkpoint import KeyMap
from ._class_token import ClassTokenHost
from ._reference import dense_args, translate
from ._registry import Dense, Family, Paper, Published, register
from .cswin import KEYS as CSWIN_KEYS
from .cswin import cswin_args
from .pvt import KEYS as PVT_KEYS
from .pvtv2 import AUTHORS as PVTV2_KEYS
from .swin import AUTHORS as SWIN_KEYS
from .swin import DENSE_ARGS, DERIVED, LARGE_IMAGES, swin_variant


def linear_blocks_of(attn_type: str, depths: Sequence[int]) -> tuple[int, ...]:
    """Blocks of the linear mixer in each stage by the references' code: a letter a stage, M for mixed; a number."""
    mixed = int(attn_type[len(depths) :] or 0)
    blocks = {"A": max(depths), "L": max(depths), "I": max(depths), "M": mixed}
    return tuple(min(blocks.get(letter, 0), depth) for letter, depth in zip(attn_type, depths, strict=False))


HOSTS = {"swin": "swin", "pvt": "pvt", "pvt2": "pvtv2", "cswin": "cswin", "deit": "deit"}
RENAMED = {"depths": "depths", "depth": "depths", "embed_dims": "dims", "mlp_ratios": "mlp_ratio",
           "sr_ratios": "reductions", "split_size": "stripe_widths"}  # fmt: skip
# Exponent of the head's channels in the scale of logits, and what the norms of blocks add.
FIXED = {"scale": -0.5, "norm_eps": 1e-6}


def host_of(record: Mapping[str, Any]) -> str:
    """Our name of a record's host; that of dense backbones is the same."""
    return HOSTS[record["config"]["host"].split(",")[0]]


def host_args(record: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of the host of a record, and of its mixers by `names`, without the window of softmax blocks.

    Args:
        record: Golden record of one of the references that share these hosts.
        names: Our name for each argument of the reference's mixer.
    """
    host, config = host_of(record), dict(record["config"])
    fixed = FIXED if host in ("swin", "deit") else {**FIXED, "patch_size": 4}
    wrong = {name: config[name] for name, value in fixed.items() if config.get(name, value) != value}
    if wrong:
        raise ValueError(f"arguments {wrong} of the reference must be {fixed}")
    depths = config.get("depths", config.get("depth"))
    if "attn_type" in config:
        config["linear_blocks"] = linear_blocks_of(config["attn_type"], depths)
    for ratios in ("agent_sr_ratios", "la_sr_ratios"):
        if ratios in config:
            config["linear_reductions"] = [int(digit) for digit in config.pop(ratios)]
    if host == "cswin":
        config["linear_stripes"] = _stripes(config["la_split_size"], config["img_size"])
    dropped = {"host", "attn_type", "window_size", "la_split_size", "linear_stripes", *fixed} - set(names)
    own = {"img_size": "img_size", "ape": "ape", "linear_blocks": "linear_blocks",
           "linear_reductions": "linear_reductions", **RENAMED, **names}  # fmt: skip
    if host == "deit":
        own["depth"] = "depth"
    args = translate({name: value for name, value in config.items() if name not in dropped}, own)
    args.pop("qk_scale")  # never set
    if ", dense" in config["host"]:
        args |= dense_args(config, len(depths)) if host == "swin" else {"num_classes": 0}
    return args


def class_token_outputs(model: ClassTokenHost, x: Tensor) -> dict[str, Tensor]:
    """What records of DeiT hold."""
    tokens = model.forward_features(x)
    return {"tokens": tokens, "logits": model.forward_head(tokens)}


def _stripes(widths: str, img_size: int) -> list[int | None]:
    """Width of the stripes of linear blocks in each stage; None where they are as wide as the map."""
    sides = [int(width) for width in widths.split("-")]
    return [cswin_args(sides, img_size, stage)["stripe_width"] for stage in range(len(sides))]


# --- the hosts' names of parameters -----------------------------------------------------------------------------------


DEIT_KEYS = (
    (r"^patch_embed\.", "stem."),
    (r"^cls_token$", "pos_embed.class_token", lambda tensor, target: tensor.flatten()),
    (r"^pos_embed$", "pos_embed.table", lambda tensor, target: tensor[0]),
    (r"^head\.", "head.fc."),
)
HOST_KEYS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "swin": SWIN_KEYS.keys,
    "pvt": PVT_KEYS,
    "pvtv2": PVTV2_KEYS.keys,
    "cswin": CSWIN_KEYS.keys,
    "deit": DEIT_KEYS,
}


def key_map(publisher: str, host: str, keys: tuple[tuple[Any, ...], ...], constants: tuple[str, ...] = ()) -> KeyMap:
    """Key map of a host with the names of a mixer."""
    return KeyMap(publisher, (*HOST_KEYS[host], *keys), (*DERIVED, *constants))


# --- sizes that the families share ------------------------------------------------------------------------------------

PVT_DEPTHS = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3), "medium": (3, 4, 18, 3), "large": (3, 8, 27, 3)}
CSWIN_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 64, "depths": (2, 4, 18, 1), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.2},
    "small": {"embed_dim": 64, "depths": (3, 6, 29, 2), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.4},
    "base": {"embed_dim": 96, "depths": (3, 6, 29, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5},
}
CSWIN_SIZES["base_384"] = {
    **CSWIN_SIZES["base"], "drop_path_rate": 0.7, "img_size": 384, "stripe_widths": (1, 2, 12, 12)}  # fmt: skip
SWIN_SIZES = {
    "tiny": swin_variant(96, 3, 6, 0.2),
    "small": swin_variant(96, 3, 18, 0.3),
    "base": swin_variant(128, 4, 18, 0.5),
    "base_384": swin_variant(128, 4, 18, 0.5, **LARGE_IMAGES),
}


def variants(
    prefix: str, sizes: Mapping[str, Mapping[str, Any]], blocks: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Arguments of models by name: those of the host and the count of linear blocks of each size."""
    return {f"{prefix}_{size}": {**args, "linear_blocks": blocks[size]} for size, args in sizes.items()}


def pvt_sizes(rates: Mapping[str, float], **more: Any) -> dict[str, dict[str, Any]]:
    """Arguments of PVT by size, all of whose blocks are linear."""
    return {size: {"depths": PVT_DEPTHS[size], "linear_blocks": PVT_DEPTHS[size], "mlp_ratio": (8, 8, 4, 4),
                   "drop_path_rate": rate, **more} for size, rate in rates.items()}  # fmt: skip


def shared_file(identity: str) -> str:
    """Address of a file in the authors' cloud, from which a person can download it."""
    return f"https://cloud.tsinghua.edu.cn/f/{identity}/?dl=1"


def row(reference: str, identity: str | None, *figures: float | None, size: int = 224, **more: Any) -> Published:
    """Published weights by the identity of their file; None where there is no file."""
    url = "" if identity is None else shared_file(identity)
    return Published(reference, url, *figures, size=size, is_page=identity is not None, **more)


# Of mixers whose authors published no dense backbone: what their hosts' have.
LINEAR_DENSE_ARGS: dict[str, Mapping[str, Any]] = {"swin": DENSE_ARGS, "cswin": {"output_norms": True}}


class HostedFamily(NamedTuple):
    """A mixer in several hosts, whose names are the keys of all mappings.

    `keys` and `constants` are those of the mixer; `from_reference` takes a host and a record. `dense_args` are the
    arguments of the backbone that detectors and segmentors have.
    """

    name: str
    titles: Mapping[str, str]
    paper: Paper
    origin: str
    builders: Mapping[str, Callable[..., Any]]
    keys: tuple[tuple[Any, ...], ...]
    records: str
    from_reference: Callable[[str, Mapping[str, Any]], Any]
    micros: Mapping[str, Mapping[str, Any]]
    constants: Mapping[str, tuple[str, ...]] = {}
    dense_args: Mapping[str, Mapping[str, Any]] = {}


def register_hosts(
    module: str,
    family: HostedFamily,
    names: Mapping[str, Mapping[str, Mapping[str, Any]]],
    weights: Mapping[str, Published],
    dense: Mapping[str, Sequence[Dense]] | None = None,
) -> None:
    """Registers one family for each host.

    Args:
        module: `__name__` of the family's file.
        family: What the hosts share.
        names: Constructor arguments by model name, for each host.
        weights: Published weights of all hosts by `name.tag`.
        dense: Published results of detectors and segmentors by `name.tag`.
    """
    for host, title in family.titles.items():
        keys = key_map(title, host, family.keys, family.constants.get(host, ()))
        entry = Family(
            f"{family.name}_{host}",
            title,
            (family.paper,),
            "",  # none of the three repositories names a licence
            family.origin,
            family.builders[host],
            (keys,),
            family.records,
            partial(family.from_reference, host),
            micros={next(iter(names[host])): family.micros[host]} if host in family.micros else {},
            outputs=class_token_outputs if host == "deit" else None,
            dense_args={"*": family.dense_args[host]} if host in family.dense_args else {},
            squash=True,
        )
        own = {tag: published for tag, published in weights.items() if tag.split(".")[0] in names[host]}
        register(module, entry, names[host], own, {tag: rows for tag, rows in (dense or {}).items() if tag in own})
