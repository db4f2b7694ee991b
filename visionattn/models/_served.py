# SPDX-License-Identifier: Apache-2.0
"""Networks that timm has, equal to their authors': what their families need, to read the authors' files."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
from torch import nn

from ._registry import Dense, Family, Published, serve

# What the reference's own constructor arguments are called in timm; None for what has no counterpart to set.
Names = Mapping[str, str | None]
SIZE_NAMES: Names = {"img_size": "img_size", "patch_size": None, "num_classes": "num_classes"}
SAME = ("embed_dim", "key_dim", "depth", "num_heads", "attn_ratio", "mlp_ratio", "partial_dim", "qk_dim", "types",
        "local_up_to_layer", "locality_strength")  # fmt: skip
# timm derives the rest from these, the stem and the step between stages from the family.
OTHER_NAMES: Names = {**SIZE_NAMES, **{name: name for name in SAME}, "norm_eps": None, "distillation": None,
                      "down_ops": None, "stem": None}  # fmt: skip
# timm's names of the references' models.
_NAME_OF: dict[str, str] = {}


def reader(
    base: str, names: Names, adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> Callable[[Mapping[str, Any]], nn.Module]:
    """What makes timm's model of a golden record from the constructor arguments of the reference.

    Args:
        base: A model of the family.
        names: timm's name of each argument.
        adapt: Returns the arguments that timm takes in another form.
    """

    def read(record: Mapping[str, Any]) -> nn.Module:
        if record["variant"] in _NAME_OF:
            return timm.create_model(_NAME_OF[record["variant"]])
        config = record["config"]
        if left := set(config) - set(names):
            raise ValueError(f"arguments {sorted(left)} of the reference have no counterpart in timm's {base}")
        args = {ours: config[theirs] for theirs, ours in names.items() if ours is not None and theirs in config}
        args = {name: tuple(value) if isinstance(value, list) else value for name, value in args.items()}
        return timm.create_model(base, **{**args, **adapt(args)})

    return read


def serve_timms(
    *about: Any,
    key_maps: tuple[Any, ...],
    reader: Callable[..., nn.Module],
    weights: Mapping[str, Published],
    dense: Mapping[str, Sequence[Dense]] | None = None,
) -> Family:
    """Makes known a family whose network is timm's.

    Args:
        *about: Its name, title, `Paper`, licence and repository.
        key_maps: Names of its authors' files.
        reader: Makes the model of a golden record.
        weights: Published weights by timm's `name.tag`.
        dense: Published results of detectors and segmentors, likewise.
    """
    name, title, paper, license, origin = about
    family = Family(name, title, (paper,), license, origin, timm.create_model, key_maps, name, reader)
    serve(family, weights, dense)
    _NAME_OF.update({row.reference: key.split(".", 1)[0] for key, row in weights.items()})
    return family
