# SPDX-License-Identifier: Apache-2.0
"""ImageNet accuracy of any timm model, with the preprocessing that its weights were published with.

Knows ImageNet-1K, ImageNetV2 (arXiv:1902.10811), -Sketch (arXiv:1905.13549), -A (arXiv:1907.07174), -R
(arXiv:2006.16241) and the reassessed labels of the validation set, ReaL (arXiv:2006.07159).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fnmatch
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import visionattn
from visionattn._files import replacing
from visionattn.imagenet_sets import Images, Truth, find_images, find_truth
from visionattn.layers import unknown

_logger = logging.getLogger(__name__)

LABELS = ("auto", "folders", "real")
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".pth.tar")
MIB = 2**20
COLUMNS = (
    "model", "labels", "top1", "top5", "published_top1", "published_top5", "difference", "images", "unreadable",
    "input_size", "images_per_second", "peak_mib", "weights", "error",
)  # fmt: skip
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How models are evaluated.

    Args:
        labels: "folders": the folders' names are classes; "real": the reassessed labels, by the names of the validation
            set's files; "auto": the former, or the latter where the images lie in no folders.
        tta: Average the probabilities of an image and of its mirror image.
        bf16: Calculate under autocast in bfloat16.
        batch: Images a step.
        workers: Processes that load images; 0 for none.
        device: As `torch.device` takes it.
        on_bad_image: "skip" counts images that cannot be read and leaves them out; "raise" stops at the first.

    Raises:
        ValueError: A value is not allowed, or the device is not there.
    """

    labels: str = "auto"
    tta: bool = False
    bf16: bool = False
    batch: int = 64
    workers: int = 4
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    on_bad_image: str = "skip"

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise ValueError(f"labels={self.labels!r} must be one of {', '.join(LABELS)}")
        if self.on_bad_image not in ("skip", "raise"):
            raise ValueError(f"on_bad_image={self.on_bad_image!r} must be 'skip' or 'raise'")
        if self.batch < 1 or self.workers < 0:
            raise ValueError(f"batch={self.batch} must be at least 1, and workers={self.workers} not negative")
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            kind = ""
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"device={self.device!r} must be 'cpu', 'cuda' or 'cuda:N'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={self.device!r} is not here; use 'cpu'")


class _Prepared(Dataset):
    """`(image, number)` of each image, None in place of one that cannot be read."""

    def __init__(self, images: Images, transform: Callable[[Image.Image], Tensor], stop: bool) -> None:
        self.images, self.transform, self.stop = images, transform, stop

    def __len__(self) -> int:
        return len(self.images.paths)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int]:
        try:
            with self.images.open(index) as image:
                return self.transform(image.convert("RGB")), index
        except Exception as error:  # what Pillow raises on damaged files is of many kinds
            if self.stop:
                raise ValueError(f"{self.images.paths[index]} cannot be read: {error}") from error
            return None, index


def _collate(samples: Sequence[tuple[Tensor | None, int]]) -> tuple[Tensor | None, list[int], list[int]]:
    """Images that could be read, their numbers, and the numbers of the others."""
    good = [(image, number) for image, number in samples if image is not None]
    bad = [number for image, number in samples if image is None]
    return (torch.stack([image for image, _ in good]) if good else None), [number for _, number in good], bad


def evaluate_model(
    model: nn.Module, images: Images, truth: Truth, settings: Settings, progress: Progress | None = None
) -> dict[str, Any]:
    """Accuracy and speed of a model.

    Args:
        model: Any timm model; its `pretrained_cfg` says how images are prepared.
        images: From `find_images`.
        truth: From `find_truth`.
        settings: How it is evaluated.
        progress: Is told how far it is.

    Returns:
        `top1` and `top5` in percent, `images` that counted, `unreadable` ones, `without_label`, `seconds`,
        `images_per_second` of the model alone, `peak_mib` on CUDA devices, and `preprocessing`.

    Raises:
        ValueError: No image could be read or has a label; or one could not, with `on_bad_image="raise"`.
    """
    cfg = resolve_data_config({}, model=model)
    device = torch.device(settings.device)
    model = model.to(device).eval()
    if images.lost and settings.on_bad_image == "raise":
        raise ValueError(f"{images.lost[0]} has no label that can be read")
    prepared = _Prepared(images, create_transform(**cfg, is_training=False), settings.on_bad_image == "raise")
    loader = DataLoader(
        prepared, settings.batch, num_workers=settings.workers, collate_fn=_collate, pin_memory=device.type == "cuda"
    )
    outside = _outside(truth, model, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    hits, unreadable, unlabelled = [0, 0], list(images.lost), 0
    counted, first, busy, timed = 0, True, 0.0, 0
    for batch, numbers, bad in loader:
        unreadable += [str(images.paths[number]) for number in bad]
        if batch is None:
            continue
        scores, seconds = _timed(model, batch.to(device), settings)
        if not first:  # kernels are chosen, memory is found
            busy, timed = busy + seconds, timed + len(batch)
        only, first = seconds, False
        ranked = scores.masked_fill(outside, -1.0).topk(min(5, scores.shape[1]), dim=1).indices.tolist()
        for number, best in zip(numbers, ranked, strict=True):
            right = truth.right[number]
            if not right:
                unlabelled += 1
                continue
            counted += 1
            hits[0] += best[0] in right
            hits[1] += any(label in right for label in best)
        if progress is not None:
            progress(f"{counted + unlabelled + len(unreadable)} of {len(images.paths)} images")
    if not counted:
        raise ValueError(
            f"{images.root}: of {len(images.paths)} images {len(unreadable)} cannot be read and {unlabelled} have no "
            "label; nothing is left to measure"
        )
    return {
        "top1": 100 * hits[0] / counted,
        "top5": 100 * hits[1] / counted,
        "images": counted,
        "unreadable": unreadable,
        "without_label": unlabelled,
        "images_per_second": timed / busy if timed else len(numbers) / only,
        "peak_mib": torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None,
        "preprocessing": {
            key: cfg[key] for key in ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
        },
    }


def _outside(truth: Truth, model: nn.Module, device: torch.device) -> Tensor:
    """Mask `(classes,)` of what is not predicted among."""
    count = int(getattr(model, "num_classes", 1000))
    mask = torch.zeros(count, dtype=torch.bool, device=device)
    if truth.allowed is not None:
        mask[:] = True
        mask[list(truth.allowed)] = False
    return mask


def _timed(model: nn.Module, batch: Tensor, settings: Settings) -> tuple[Tensor, float]:
    """Probabilities `(B, classes)`, and the seconds that they took."""
    _wait(batch.device)
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(batch.device.type, torch.bfloat16, enabled=settings.bf16):
        scores = _logits(model(batch)).float().softmax(-1)
        if settings.tta:
            scores = (scores + _logits(model(batch.flip(-1))).float().softmax(-1)) / 2
    _wait(batch.device)
    return scores, time.perf_counter() - start


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]  # a model with a head for distillation has two


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def find_models(patterns: Sequence[str], weights: str | os.PathLike[str] | None = None) -> list[str]:
    """Names, with their tags, of our models and timm's that match.

    Args:
        patterns: Names or shell patterns, with or without a tag.
        weights: Folder of weight files; those without a file are left out.

    Raises:
        ValueError: A pattern matches nothing, or nothing with a file.
    """
    found: list[str] = []
    ours = set(visionattn.list_models())
    theirs = (name for name in timm.list_pretrained() if name.partition(".")[0] not in ours)
    known = [*visionattn.list_models(tags=True), *theirs]
    for pattern in patterns:
        matching = [
            name for name in known if any(fnmatch.fnmatchcase(n, pattern) for n in (name, name.partition(".")[0]))
        ]
        if not matching and timm.is_model(pattern):  # one without published weights
            matching = [pattern]
        if not matching:
            raise ValueError(unknown("model", pattern, sorted({name.partition(".")[0] for name in known})))
        if not any(letter in pattern for letter in "*?[.") and weights is None:
            matching = [_default_of(matching, pattern)]
        found += [name for name in matching if name not in found]
    if weights is None:
        return found
    with_file = [name for name in found if weight_file(weights, name) is not None]
    if not with_file:
        raise ValueError(
            f"--weights {weights}: there is no file for any of {len(found)} models; it is looked for as NAME.TAG or "
            f"NAME with {', '.join(WEIGHT_SUFFIXES)}, such as {found[0]}.safetensors"
        )
    return with_file


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in visionattn.list_models()


def _default_of(names: Sequence[str], architecture: str) -> str:
    """The name with the tag that timm takes where none is given."""
    cfg = timm.get_pretrained_cfg(architecture)
    return next((name for name in names if cfg is not None and name == f"{architecture}.{cfg.tag}"), names[0])


def weight_file(weights: str | os.PathLike[str], name: str) -> Path | None:
    """File of a model's weights: `weights` itself, or in that folder the one with its name, with or without the tag."""
    path = Path(weights)
    if not path.is_dir():
        return path
    stems = (name, name.partition(".")[0])
    return next((f for stem in stems for s in WEIGHT_SUFFIXES if (f := path / f"{stem}{s}").is_file()), None)


def load(name: str, weights: str | os.PathLike[str] | None = None) -> nn.Module:
    """Model with the published weights, or those of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be read or does not fit, or nothing is published.
    """
    if weights is None:
        if timm.get_pretrained_cfg(name) is None or not timm.is_model_pretrained(name.partition(".")[0]):
            raise ValueError(f"{name} has no published weights; give a file with --weights")
        return visionattn.create_model(name, pretrained=True)
    if not Path(weights).is_file():
        raise FileNotFoundError(f"--weights {weights}: there is no such file")
    model = visionattn.create_model(name)
    if _is_ours(name):
        visionattn.load_checkpoint(model, weights)
        return model
    try:
        timm.models.load_checkpoint(model, str(weights))
    except RuntimeError as error:
        raise ValueError(f"--weights {weights} does not fit {name}: {str(error).splitlines()[-1].strip()}") from error
    return model


def evaluate(
    names: Sequence[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Evaluate models one after the other; what an earlier call finished is not done again.

    `output` gets a JSON file for each model, and `results.csv` and `results.md` with a row each.

    Args:
        names: From `find_models`.
        data: Folder of images, see `find_images`.
        output: Folder to write.
        weights: A file, for one model, or a folder of files named as the models; None for the published weights.
        settings: How models are evaluated.
        again: Evaluate also what `output` has.
        progress: Is told what is being done.

    Returns:
        The JSON files' contents, in the order of `names`. A model that failed has an `error`, and is tried again by
        the next call.

    Raises:
        FileNotFoundError: `data` is not there.
        ValueError: It holds no images.
    """
    settings, say = settings or Settings(), progress or (lambda text: None)
    images = find_images(data)
    folder = Path(output)
    results = []
    for name in names:
        file = None if weights is None else weight_file(weights, name)
        asked = _question(name, images, file, settings)
        path = folder / f"{name}{_mark(settings)}.json"
        known = None if again else _answered(path, asked)
        if known is None:
            say(name)
            known = {**asked, **_outcome(name, images, file, settings, partial(_say_of, say, name))}
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(known, indent=2) + "\n")
        results.append(known)
        write_tables(results, folder)
    return results


def _say_of(say: Progress, name: str, text: str) -> None:
    say(f"{name}: {text}")


def _mark(settings: Settings) -> str:
    """Part of file names that keeps results of other settings apart."""
    marks = [settings.labels if settings.labels != "auto" else "", "tta" * settings.tta, "bf16" * settings.bf16]
    return "".join(f"+{mark}" for mark in marks if mark)


def _question(name: str, images: Images, file: Path | None, settings: Settings) -> dict[str, Any]:
    """What a result is of; another one's is not taken for it."""
    weights = None
    if file is not None and file.is_file():
        weights = {"file": str(file), "bytes": file.stat().st_size, "modified": int(file.stat().st_mtime)}
    kept = {key: value for key, value in dataclasses.asdict(settings).items() if key in ("labels", "tta", "bf16")}
    return {"model": name, "data": str(images.root), "found": len(images.paths), "weights": weights, "settings": kept}


def _answered(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        known = json.loads(path.read_text())
        if known.get("error") is None and all(known.get(key) == value for key, value in asked.items()):
            return known
    return None


def _outcome(name: str, images: Images, file: Path | None, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Result of one model, or its error, so that the others go on."""
    known = published(name)
    try:
        model = load(name, file)
        truth = find_truth(images, int(getattr(model, "num_classes", 1000)), settings.labels)
        measured = evaluate_model(model, images, truth, settings, progress)
    except Exception as error:  # a model may be anyone's code
        if settings.on_bad_image == "raise" and "cannot be read" in str(error):
            raise
        return {**known, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    top1, comparable = known["published_top1"], truth.name == "1k"
    difference = measured["top1"] - top1 if comparable and top1 is not None else None
    device = torch.cuda.get_device_name(settings.device) if "cuda" in settings.device else "cpu"
    facts = {"device": device, "torch": torch.__version__, "timm": timm.__version__, "batch": settings.batch}
    return {**known, "labels": truth.name, **measured, "difference": difference, **facts, "error": None}


def published(name: str) -> dict[str, Any]:
    """Published ImageNet-1K accuracies of a model's weights in percent, None where they are not known."""
    if not _is_ours(name):
        return {"published_top1": None, "published_top5": None}
    row = visionattn.info(name)
    return {"published_top1": row.top1, "published_top5": row.top5}


def write_tables(results: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write `results.csv` and `results.md`, a row for each result."""
    rows = [_row(result) for result in results]
    with replacing(folder / "results.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with replacing(folder / "results.md") as temporary:
        temporary.write_text(markdown(results))


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    row = {column: result.get(column) for column in COLUMNS}
    weights, prepared = result.get("weights"), result.get("preprocessing")
    row["weights"] = weights["file"] if weights else "published"
    row["unreadable"] = len(result.get("unreadable") or ())
    row["input_size"] = "x".join(map(str, prepared["input_size"])) if prepared else None
    return row


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Table of results beside the published figures."""
    lines = [
        "| model | labels | top-1, % | published | top-5, % | published | images | input | images/s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        row = _row(result)
        figures = [_shown(row[key]) for key in ("top1", "published_top1", "top5", "published_top5")]
        cells = [row["model"], row["labels"] or f"failed: {row['error']}", *figures]
        cells += [_shown(row["images"], 0), row["input_size"] or "–", _shown(row["images_per_second"], 1)]
        lines.append("| " + " | ".join(re.sub(r"\|", r"\\|", str(cell)) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"
