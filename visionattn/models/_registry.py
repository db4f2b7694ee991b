# SPDX-License-Identifier: Apache-2.0
"""What exists: families, their variants, the published weights and figures; and how timm gets to know them."""

import fnmatch
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import Tensor, nn

from visionattn._files import replacing
from visionattn.layers import GATES, attach, unknown

from ._base import VisionModel
from ._checkpoint import AnyKeyMap, check_file, convert, read_checkpoint

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Paper:
    """Where a family was published."""

    title: str
    arxiv: str

    @property
    def url(self) -> str:
        """Address of the paper."""
        return f"https://arxiv.org/abs/{self.arxiv}"


@dataclass(frozen=True)
class Published:
    """One set of published weights and the figures given with it.

    Args:
        reference: The reference's own name of this model.
        url: The authors' file; empty where they published none (their tag is then "untrained").
        top1: ImageNet-1K top-1 accuracy in percent.
        top5: Top-5 accuracy in percent.
        params_m: Parameters in millions, as published (rounded).
        gflops: Multiply-accumulates of one image in billions, as published (rounded).
        size: Side of the images that the figures hold for.
        crop_pct: Share of the resized image that the centre crop takes.
        num_classes: Classes of the head.
        args: Constructor arguments in which these weights' model differs from the variant.
        note: What a user must know about the file.
        is_page: Whether `url` is a page that a person downloads the file from, not the file.
        hub: Hugging Face repository with a copy of the weights, which is taken first.
        interpolation: How images are resized for the figures.
        mean: Mean of the channels that images are normalised by, and `std` their standard deviation.
        gflops_differ: Why the published `gflops` are not what the published code computes; None where they are.
        params_differ: Why the published `params_m` are not those of the published code; None where they are.
    """

    reference: str
    url: str
    top1: float | None = None
    top5: float | None = None
    params_m: float | None = None
    gflops: float | None = None
    size: int = 224
    crop_pct: float = 0.875
    num_classes: int = 1000
    args: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None
    is_page: bool = False
    hub: str | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    gflops_differ: str | None = None
    params_differ: str | None = None


@dataclass(frozen=True)
class Dense:
    """Published result of a detector or segmentor with a model of the zoo as its backbone.

    Args:
        method: Head and schedule, such as "Mask R-CNN 3x" or "UPerNet 160k".
        box_ap: Box AP on COCO val2017 in percent.
        mask_ap: Mask AP on COCO val2017.
        miou: Mean IoU on ADE20K's validation set in percent, at one scale.
        miou_multi: The same at several scales and flipped.
        note: Where the result differs from the others of its method: a data set, a crop.
    """

    method: str
    box_ap: float | None = None
    mask_ap: float | None = None
    miou: float | None = None
    miou_multi: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Family:
    """A published architecture.

    Args:
        name: Family name, also of its model card.
        title: Name for people.
        papers: Where it was published.
        license: Licence of the authors' code and weights.
        origin: The authors' repository.
        build: Makes a model from constructor arguments.
        key_maps: Names of the publishers' checkpoints.
        records: Family name under which golden records are kept.
        from_reference: Makes the model of a golden record from the reference's constructor arguments; None where the
            record is of another family that shares `records`.
        first_conv: Name of the first convolution.
        micros: Arguments that shrink a model of the family to seconds on a CPU, by model name; for tests and trials.
        counts_attention: Whether the published multiply-accumulates include those of the attention products.
        classifier: Name of the layer that makes logits.
        features: For networks of timm with our layers in them, the indices of their features that are the stages'
            maps; None for hosts of ours, which have no other features.
        outputs: Makes the outputs of golden records, by their names, from a model and its images; None where they are
            logits and the stages' maps.
        dense_args: Arguments in which the authors' backbone for detection and segmentation differs from the
            classifier, by shell pattern of model names.
        squash: Whether images are resized to a square for the figures, without keeping their aspect ratio.
    """

    name: str
    title: str
    papers: tuple[Paper, ...]
    license: str
    origin: str
    build: Callable[..., nn.Module]
    key_maps: tuple[AnyKeyMap, ...]
    records: str
    from_reference: Callable[[Mapping[str, Any]], nn.Module | None]
    first_conv: str = "stem.proj"
    micros: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    counts_attention: bool = True
    classifier: str = "head.fc"
    features: tuple[int, ...] | None = None
    outputs: Callable[[Any, Tensor], Mapping[str, Tensor]] | None = None
    dense_args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    squash: bool = False


@dataclass(frozen=True)
class ModelInfo:
    """What the registry knows of one model name; figures are the published ones.

    `name` carries the tag of the weights that the figures belong to; `args` are the constructor arguments; `library` is
    the one that has the network, "visionattn" or "timm".
    """

    name: str
    architecture: str
    tag: str
    tags: tuple[str, ...]
    family: str
    reference: str
    input_size: tuple[int, int, int]
    num_classes: int
    top1: float | None
    top5: float | None
    params_m: float | None
    gflops: float | None
    gflops_differ: str | None
    params_differ: str | None
    paper: str
    arxiv: str
    license: str
    urls: tuple[str, ...]
    note: str | None
    dense: tuple[Dense, ...]
    args: Mapping[str, Any]
    library: str = "visionattn"


FAMILIES: dict[str, Family] = {}
# Families whose networks are timm's: we read their authors' files and know what was published.
SERVED: dict[str, Family] = {}
_FAMILY_OF: dict[str, str] = {}
_ARGS: dict[str, Mapping[str, Any]] = {}
_WEIGHTS: dict[str, dict[str, Published]] = {}
_DENSE: dict[str, tuple[Dense, ...]] = {}


def register(
    module: str,
    family: Family,
    variants: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, Published],
    dense: Mapping[str, Sequence[Dense]] | None = None,
) -> None:
    """Adds a family to the zoo and its models to timm.

    Args:
        module: `__name__` of the family's file.
        family: The family.
        variants: Constructor arguments by model name.
        weights: Published weights by `name.tag`; a variant's first ones are its default.
        dense: Published results of detectors and segmentors by `name.tag` of the weights that they started from.

    Raises:
        ValueError: If `dense` names weights that are not there.
    """
    unknown_weights = set(dense or {}) - set(weights)
    if unknown_weights:
        raise ValueError(f"dense names {sorted(unknown_weights)}, which are not among the weights of {family.name}")
    _DENSE.update({name: tuple(results) for name, results in (dense or {}).items()})
    FAMILIES[family.name] = family
    target: Any = sys.modules[module]
    cfgs: dict[str, Any] = {name: _pretrained_cfg(family, row) for name, row in weights.items()}
    target.default_cfgs = {**getattr(target, "default_cfgs", {}), **generate_default_cfgs(cfgs)}
    for name, args in variants.items():
        _FAMILY_OF[name], _ARGS[name] = family.name, args
        _WEIGHTS[name] = {key.split(".", 1)[1]: row for key, row in weights.items() if key.split(".", 1)[0] == name}
        entry = partial(_create, name)
        entry.__name__, entry.__module__ = name, module  # type: ignore[attr-defined]
        entry.__doc__ = f"{family.title}, {name}."
        register_model(entry)
        setattr(target, name, entry)


def serve(family: Family, weights: Mapping[str, Published], dense: Mapping[str, Sequence[Dense]] | None = None) -> None:
    """Adds a family of timm's to what is known, not to the zoo: its authors' files load, its figures are listed.

    Args:
        family: The family.
        weights: Published weights by timm's `name.tag`.
        dense: Published results of detectors and segmentors, likewise.
    """
    SERVED[family.name] = family
    _DENSE.update({name: tuple(results) for name, results in (dense or {}).items()})
    for key, row in weights.items():
        name, tag = key.split(".", 1)
        _FAMILY_OF[name], _ARGS[name] = family.name, {}
        _WEIGHTS.setdefault(name, {})[tag] = row


def family_of(name: str) -> Family | None:
    """Family of a model of the zoo or of one that timm serves; None for any other name."""
    found = _FAMILY_OF.get(name.split(".", 1)[0])
    return None if found is None else FAMILIES.get(found) or SERVED[found]


def _pretrained_cfg(family: Family, row: Published) -> dict[str, Any]:
    return {
        "url": row.url,
        "hf_hub_id": row.hub,
        "num_classes": row.num_classes,
        "input_size": (3, row.size, row.size),
        "crop_pct": row.crop_pct,
        "interpolation": row.interpolation,
        "crop_mode": "squash" if family.squash else "center",
        "mean": row.mean,
        "std": row.std,
        "first_conv": family.first_conv,
        "classifier": family.classifier,
        "license": family.license,
        "origin_url": family.origin,
        "paper_name": family.papers[0].title,
        "paper_ids": tuple(f"arXiv:{p.arxiv}" for p in family.papers),
        "description": row.note,
    }


def _create(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    features_only: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Entry point of every model: variant, tag and user arguments, in this order, then timm's builder."""
    family = FAMILIES[_FAMILY_OF[name]]
    cfg = resolve_pretrained_cfg(name, pretrained_cfg, dict(pretrained_cfg_overlay or {}))
    row = _WEIGHTS[name].get(cfg.tag or "")
    args = {**_ARGS[name], **(row.args if row is not None else {}), **kwargs}
    out_indices = family.features or (tuple(range(len(args["depths"]))) if "depths" in args else 3)
    if pretrained and cfg.file and not cfg.state_dict:
        check_file(cfg.file)
    if pretrained and row is not None and row.is_page:
        _check_available(f"{name}.{cfg.tag}", row, cfg)
    source = str(cfg.file or cfg.url)
    try:
        return build_model_with_cfg(
            family.build,
            name,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            features_only=features_only,
            feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
            pretrained_filter_fn=partial(_convert_for, family=family, features_only=features_only, source=source),
            **args,
        )
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        # What torch raises on a downloaded file that is cut short or holds more than tensors.
        if not (pretrained and cfg.url):
            raise
        raise ValueError(f"{source} cannot be loaded (damaged, or it holds pickled code): {error}") from error


def _check_available(name: str, row: Published, cfg: Any) -> None:
    """Raises where there is nothing but a page to get the weights from."""
    if cfg.url == row.url and not (cfg.file or cfg.state_dict or cfg.hf_hub_id):
        raise ValueError(
            f"the weights of {name} cannot be fetched by a program: download them from {row.url} and give the file as "
            "pretrained_cfg_overlay=dict(file=PATH)"
        )


def _convert_for(
    state_dict: Mapping[str, Tensor], model: Any, *, family: Family, features_only: bool, source: str
) -> dict[str, Tensor]:
    """Converts, leaving to timm what timm adapts: a head of another class count and another number of channels."""
    cfg = model.pretrained_cfg
    free: list[str] = []
    if features_only or model.num_classes != cfg["num_classes"]:
        free.extend(_heads_of(model))
    if model.get_submodule(cfg["first_conv"]).weight.shape[1] != cfg["input_size"][0]:
        free.append(f"{cfg['first_conv']}.weight")
    return convert(state_dict, model, family.key_maps, free=free, source=source)


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Loads a file into a model of the zoo: our names or the authors', with or without wrappers and prefixes.

    Models of timm whose authors' files have other names, such as LeViT, are taken too.

    Args:
        model: Model made by `create_model`, not wrapped for features.
        path: `.pth`, `.pt` or `.safetensors`; never runs code in it.

    Raises:
        TypeError: If `model` is not a model of the zoo.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read or does not fit; says which entries are at fault. The model then keeps
            its weights.
    """
    # Wrappers for features carry the name of what they wrap, but have no classifier.
    if not isinstance(model, VisionModel) and not (_name_of(model) in _FAMILY_OF and hasattr(model, "num_classes")):
        raise TypeError(
            f"model is {type(model).__name__}, not a model of the zoo; weights of a features_only model are loaded "
            "by create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file=...))"
        )
    key_maps = [m for family in _families_of(model) for m in family.key_maps]
    free = _heads_of(model) if model.num_classes == 0 else ()
    converted = convert(read_checkpoint(path), model, key_maps, free=free, source=str(path))
    model.load_state_dict(converted)


def convert_checkpoint(
    path: str | os.PathLike[str], name: str, output: str | os.PathLike[str], num_classes: int | None = None
) -> nn.Module:
    """Writes a published checkpoint in our names; nothing is dropped, made up or resized on the way.

    Args:
        path: `.pth`, `.pt` or `.safetensors`; never runs code in it.
        name: Model that the weights are of, with the tag where tags differ in classes.
        output: `.safetensors` file, complete or not there.
        num_classes: Classes of the file's head; None for those of `name`.

    Returns:
        The model with the weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the model is unknown, the file cannot be read or does not fit; says which entries are at fault.
    """
    if Path(output).suffix != ".safetensors":
        raise ValueError(f"output={str(output)!r} must end in .safetensors")
    row = info(name)
    entries = read_checkpoint(path)
    model = create_model(name, num_classes=row.num_classes if num_classes is None else num_classes)
    known = family_of(name)
    key_maps = () if known is None else known.key_maps
    model.load_state_dict(convert(entries, model, key_maps, resize=False, source=str(path)))
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    with replacing(output) as temporary:
        save_file(tensors, temporary, {"format": "pt", "architecture": row.architecture, "source": Path(path).name})
    return model


def _name_of(model: nn.Module) -> str:
    return (getattr(model, "pretrained_cfg", None) or {}).get("architecture", "")


def _heads_of(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names of the heads' parameters."""
    classifier = (getattr(model, "pretrained_cfg", None) or {}).get("classifier", Family.classifier)
    names = (classifier,) if isinstance(classifier, str) else classifier
    return tuple(f"{name.split('.', 1)[0]}." for name in names)


def _families_of(model: nn.Module) -> list[Family]:
    known = family_of(_name_of(model))
    return list(FAMILIES.values()) if known is None else [known]


def create_model(name: str, gate: Mapping[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """`timm.create_model`, with an error that offers the nearest names, and with gates in any CNN.

    Args:
        name: A name of the zoo or of timm, with or without a tag.
        gate: Gates to put in, `dict(name="triplet", where="after_bottleneck", kernel_size=3)`; name and place as
            `visionattn.layers.attach` takes them, the rest goes to the gates. Pretrained weights are loaded before.
        **kwargs: As `timm.create_model` takes them.

    Raises:
        TypeError: If `gate` is no mapping.
        ValueError: If there is no such model, tag or gate.
    """
    if gate is not None and not isinstance(gate, Mapping):
        raise TypeError(f"gate={gate!r} must be a mapping such as dict(name='triplet', where='after_bottleneck')")
    if gate is not None and "name" not in gate:
        raise ValueError(f"gate={dict(gate)} must have a name, one of {', '.join(GATES)}")
    if ":" not in name and not timm.is_model(name):
        raise ValueError(unknown("model", name, [*list_models(), *timm.list_models()]))
    if name.split(".", 1)[0] in _WEIGHTS:
        info(name)
    model = timm.create_model(name, **kwargs)
    if gate is not None:
        options = dict(gate)
        attach(model, options.pop("name"), **options)
    return model


def list_models(pattern: str = "*", tags: bool = False, served: bool = False) -> list[str]:
    """Names of the zoo that match a shell pattern, in order of registration.

    Args:
        pattern: Shell pattern; `va_` may be left out.
        tags: List `name.tag` for every set of weights instead of names.
        served: List timm's own models too whose authors' files load.
    """
    known = {name: rows for name, rows in _WEIGHTS.items() if served or _FAMILY_OF[name] in FAMILIES}
    names = [f"{name}.{tag}" for name, rows in known.items() for tag in rows] if tags else list(known)
    return [n for n in names if fnmatch.fnmatch(n, pattern) or fnmatch.fnmatch(n, f"va_{pattern}")]


def dense_args(name: str) -> dict[str, Any]:
    """Arguments that make a model the backbone that its authors detect and segment with; none for models of timm.

    Args:
        name: A model name, with or without a tag.
    """
    architecture, family = name.split(".", 1)[0], family_of(name)
    patterns = {} if family is None else family.dense_args
    return {
        k: v for pattern, args in patterns.items() if fnmatch.fnmatch(architecture, pattern) for k, v in args.items()
    }


def info(name: str) -> ModelInfo:
    """What is known of a model, with the published figures of its default weights or of the tag given.

    Raises:
        ValueError: If there is no such name or tag; the nearest are offered.
    """
    architecture, _, tag = name.partition(".")
    if architecture not in _WEIGHTS:
        raise ValueError(unknown("model", name, list_models(served=True)))
    rows = _WEIGHTS[architecture]
    tag = tag or next(iter(rows))
    if tag not in rows:
        raise ValueError(unknown(f"tag of {architecture}", tag, rows))
    row, family = rows[tag], FAMILIES.get(_FAMILY_OF[architecture]) or SERVED[_FAMILY_OF[architecture]]
    return ModelInfo(
        name=f"{architecture}.{tag}",
        architecture=architecture,
        tag=tag,
        tags=tuple(rows),
        family=family.name,
        reference=row.reference,
        input_size=(3, row.size, row.size),
        num_classes=row.num_classes,
        top1=row.top1,
        top5=row.top5,
        params_m=row.params_m,
        gflops=row.gflops,
        gflops_differ=row.gflops_differ,
        params_differ=row.params_differ,
        paper=family.papers[0].title,
        arxiv=family.papers[0].arxiv,
        license=family.license,
        urls=(row.url,),
        note=row.note,
        dense=_DENSE.get(f"{architecture}.{tag}", ()),
        args={**_ARGS[architecture], **row.args},
        library="visionattn" if family.name in FAMILIES else "timm",
    )
