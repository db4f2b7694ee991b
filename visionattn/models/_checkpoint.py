# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in other people's names: declarative key maps, the files themselves, and one error that says it all."""

import argparse
import logging
import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from visionattn._files import replacing
from visionattn.layers import resize_filter, resize_line, resize_pairs, resize_table, resize_vectors

_logger = logging.getLogger(__name__)

# (tensor of the file, our tensor) -> tensor in our layout
Transform = Callable[[Tensor, Tensor], Tensor]
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.")


@dataclass(frozen=True)
class KeyMap:
    """How one publisher's state dict becomes ours.

    Args:
        name: Whose names these are, for messages.
        keys: `(pattern, replacement)` or `(pattern, replacement, transform)`, applied to every name in order, as
            `re.sub` does; each may match, so that one rule can rename a prefix and another the end.
        constants: Patterns of entries that the model derives by itself: index tables, masks.
        optional: Patterns of our names that a file may lack; the model keeps its values.
        refuses: Says why entries, ours or the publisher's, are none for a model though they may fit: of another
            architecture with the same names and shapes; None if they are not.
        spare: Patterns of our names that a model may lack; the file's entries are left out then.
    """

    name: str
    keys: tuple[tuple[Any, ...], ...]
    constants: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    refuses: Callable[[Mapping[str, Tensor], nn.Module], str | None] | None = None
    spare: tuple[str, ...] = ()

    def rename(self, name: str) -> tuple[str, list[Transform]]:
        """Our name of an entry, and the transforms its tensor needs."""
        transforms: list[Transform] = []
        for pattern, replacement, *rest in self.keys:
            name, hits = re.subn(pattern, replacement, name)
            if hits and rest:
                transforms.extend(rest)
        return name, transforms

    def is_constant(self, name: str) -> bool:
        """Whether an entry of the file is derived and not loaded."""
        return any(re.search(pattern, name) for pattern in self.constants)


OURS = KeyMap("visionattn", ())
# Or what makes one for a model, where names follow from its depths.
AnyKeyMap = KeyMap | Callable[[nn.Module], KeyMap]


@dataclass
class _Attempt:
    """What one key map makes of a state dict."""

    converted: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)


def convert(
    state_dict: Mapping[str, Tensor],
    model: nn.Module,
    key_maps: Iterable[AnyKeyMap] = (),
    *,
    free: Iterable[str] = (),
    resize: bool = True,
    source: str = "the checkpoint",
) -> dict[str, Tensor]:
    """State dict of `model`, made of a published one.

    Our own names pass through; else the key map that fits best is used. Bias and position tables of another size are
    resized bicubically if wanted. Norms of intermediate outputs, which classification checkpoints lack, keep the values
    of the model.

    Args:
        state_dict: Entries of the file, wrappers and prefixes as they come.
        model: Model to load into.
        key_maps: Publishers' names to try, or functions that make such a map for the model.
        free: Prefixes of our names that may be missing or differ in shape, since the caller adapts them.
        resize: Whether tables of another size are resized; otherwise they do not fit.
        source: Where the entries come from, for messages.

    Returns:
        An entry for every parameter and buffer of `model` that is not free.

    Raises:
        ValueError: If an entry is left over, missing or of another shape; all of them are listed. Or if a key map
            tells that the entries are of another architecture.
    """
    entries = unwrap(state_dict, source)
    known = [key_map if isinstance(key_map, KeyMap) else key_map(model) for key_map in key_maps]
    for key_map in known:
        if key_map.refuses is not None and (reason := key_map.refuses(entries, model)) is not None:
            raise ValueError(f"{source} is refused: {reason}")
    attempts = [(key_map, _attempt(entries, model, key_map, tuple(free), resize)) for key_map in (OURS, *known)]
    key_map, best = min(attempts, key=lambda pair: pair[1].faults)
    if best.faults:
        raise ValueError(_complaint(best, key_map, source))
    return best.converted


def _attempt(
    entries: Mapping[str, Tensor], model: nn.Module, key_map: KeyMap, free: tuple[str, ...], resize: bool
) -> _Attempt:
    targets = model.state_dict()
    # The last output norm is the final norm: one set of weights for both uses.
    last_norm = f"output_norms.{len(getattr(model, 'levels', ())) - 1}."
    result = _Attempt()
    for name, tensor in entries.items():
        if key_map.is_constant(name):
            continue
        ours, transforms = key_map.rename(name)
        if ours not in targets:
            ours = ours.replace(last_norm, "norm.")
        if ours not in targets:
            is_spare = any(re.search(pattern, ours) for pattern in key_map.spare)
            if not is_spare and not ours.startswith(free or ("\0",)):
                result.unexpected.append(f"{name} {tuple(tensor.shape)}")
            continue
        target = targets[ours]
        for transform in transforms:
            tensor = transform(tensor, target)
        if resize:
            tensor = _resized(ours, tensor, target)
        if tensor.shape != target.shape and not ours.startswith(free or ("\0",)):
            result.misshaped.append(f"{name} {tuple(tensor.shape)} where {tuple(target.shape)} is needed")
        result.converted[ours] = tensor
    for name, target in targets.items():
        if name in result.converted or name.startswith(free or ("\0",)):
            continue
        if name.startswith("output_norms.") or any(re.search(pattern, name) for pattern in key_map.optional):
            result.converted[name] = target
        else:
            result.missing.append(f"{name} {tuple(target.shape)}")
    return result


def _resized(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """Tables whose last two axes are positions, or whose first is an offset, fit any model: they are resized."""
    if name.endswith(".filter") and tensor.ndim == 4 and tensor.shape[0] == target.shape[0]:
        return resize_filter(tensor, (target.shape[1], target.shape[2]))
    if name.endswith((".height_rel", ".width_rel")) and tensor.ndim == 2 and tensor.shape[1] == target.shape[1]:
        return tensor if tensor.shape == target.shape else resize_vectors(tensor, target.shape[0])
    if name.endswith(("_rows", "_columns")) and tensor.shape[:-1] == target.shape[:-1]:
        return resize_line(tensor, target.shape[-1])
    if name.endswith(("pos_embed.table", "tokens.table")) and tensor.ndim == 2 and tensor.shape != target.shape:
        return _resized_tokens(tensor, target)
    if name.endswith(".position.table") and tensor.ndim == 5 and tensor.shape[0] == target.shape[0]:
        if tensor.shape == target.shape:
            return tensor
        return resize_pairs(tensor, (target.shape[1], target.shape[2]), (target.shape[3], target.shape[4]))
    is_table = name.endswith((".rpb", ".key_positions", ".position.table")) or name == "pos_embed.table"
    if not is_table or tensor.ndim != 3 or tensor.shape == target.shape or tensor.shape[0] != target.shape[0]:
        return tensor
    return resize_table(tensor, (target.shape[1], target.shape[2]))


def to_stage(path: str, shift: int = 1) -> Callable[[re.Match[str]], str]:
    """Replacement that turns a stage's number, counted from `shift`, into the name of `path` in that stage of ours.

    With stages counted from 0, a `shift` of 1 leads to what ends the stage before.
    """
    return lambda match: f"stages.{int(match[1]) - shift}.{path}"


def pointwise(tensor: Tensor, target: Tensor) -> Tensor:
    """Weights of a 1x1 convolution as those of a linear layer."""
    return tensor.flatten(1) if tensor.ndim == 4 and target.ndim == 2 else tensor


def _resized_tokens(table: Tensor, target: Tensor) -> Tensor:
    """Vectors `(1 + positions, C)` of a class token and the positions of a square map, which is resized."""
    old, new = (grid_of(t.shape[0] - 1, (0, 0)) for t in (table, target))
    if old is None or new is None:
        return table
    planes = resize_table(table[1:].t().unflatten(1, old), new)
    return torch.cat([table[:1], planes.flatten(1).t()])


def grid_of(count: int, target: tuple[int, int]) -> tuple[int, int] | None:
    """`(height, width)` of a flattened table: the target's where the count fits, else a square; None if neither."""
    if target[0] * target[1] == count:
        return target
    side = math.isqrt(count)
    return (side, side) if side * side == count else None


def _complaint(attempt: _Attempt, key_map: KeyMap, source: str) -> str:
    lines = [f"{source} does not fit the model (read with {key_map.name} names):"]
    for what, entries in (
        ("missing", attempt.missing),
        ("unexpected", attempt.unexpected),
        ("mis-shaped", attempt.misshaped),
    ):
        if entries:
            more = f", and {len(entries) - 5} more" if len(entries) > 5 else ""
            lines.append(f"  {len(entries)} {what}: {'; '.join(entries[:5])}{more}")
    return "\n".join(lines)


def unwrap(checkpoint: Any, source: str = "the checkpoint") -> dict[str, Tensor]:
    """Named tensors of a checkpoint, without the dictionaries and name prefixes that training code wraps them in.

    Raises:
        ValueError: If there are no named tensors inside.
    """
    while isinstance(checkpoint, Mapping):
        inner = next((w for w in WRAPPERS if isinstance(checkpoint.get(w), Mapping)), None)
        if inner is None:
            break
        checkpoint = checkpoint[inner]
    if not isinstance(checkpoint, Mapping) or len(checkpoint) == 0:
        raise ValueError(f"{source} is no checkpoint: it holds {type(checkpoint).__name__}, not named tensors")
    alien = [str(k) for k, v in checkpoint.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if alien:
        raise ValueError(f"{source} is no state dict: {len(alien)} entries are no tensors, e.g. {alien[0]!r}")
    entries = dict(checkpoint)
    while True:
        prefix = next((p for p in PREFIXES if any(k.startswith(p) for k in entries)), None)
        if prefix is None:
            return entries
        kept = {k[len(prefix) :]: v for k, v in entries.items() if k.startswith(prefix)}
        if len(kept) < len(entries):
            _logger.info("%s: left out %d entries without prefix %r", source, len(entries) - len(kept), prefix)
        entries = kept


# What torch, pickle and safetensors raise on files that are damaged or something else.
READ_ERRORS = (RuntimeError, EOFError, KeyError, AttributeError, TypeError, IndexError, UnicodeDecodeError, ValueError,
               pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError)  # fmt: skip


def read_checkpoint(path: str | os.PathLike[str], allowed: Iterable[Any] = (), map_location: Any = "cpu") -> Any:
    """Contents of a `.pth`, `.pt` or `.safetensors` file, read without running any code in it.

    Args:
        path: The file.
        allowed: Classes and functions that the file may hold besides tensors and plain values; see
            `torch.serialization.safe_globals`.
        map_location: As for `torch.load`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, is something else, or holds pickled objects other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts store their arguments beside the weights: timm's as a namespace, Swin's as a yacs node, a
        # dictionary.
        known = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode"), *allowed]
        with torch.serialization.safe_globals(known):
            mapped = map_location == "cpu" and zipfile.is_zipfile(path)  # tensors are paged in when they are copied
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except READ_ERRORS as error:
        if isinstance(error, pickle.UnpicklingError) and (found := _foreign(error)):
            raise ValueError(
                f"{path} is refused: it holds objects other than tensors and plain values, which could run code: "
                f"{found}. `visionattn convert {path} -o weights.safetensors` keeps its tensors and leaves out the rest"
            ) from None  # PyTorch's own message advises to load it all the same
        raise ValueError(f"{path} is truncated or not a PyTorch file: {_brief(error)}") from error


class _Inert:
    """Stands in for whatever else a file holds: takes any arguments, does nothing, becomes an empty dictionary."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def keep_tensors(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Writes the named tensors of a PyTorch file that holds other objects too. These are neither made nor run.

    Args:
        path: A `.pth` or `.pt` file as PyTorch has written them since 1.6.
        output: `.safetensors` file, complete or not there.

    Returns:
        The tensors, under the names that they have in the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, holds no state dict, or names functions of the operating system.
    """
    path = Path(path)
    if Path(output).suffix != ".safetensors":
        raise ValueError(f"output={str(output)!r} must end in .safetensors")
    foreign = []
    if path.is_file() and zipfile.is_zipfile(path):
        try:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except READ_ERRORS as error:
            raise ValueError(f"{path} is truncated or not a PyTorch file: {_brief(error)}") from error
    content = read_checkpoint(path, [(_Inert, name) for name in foreign])
    while isinstance(content, Mapping):
        inner = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = content[inner]
    entries = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value.contiguous().clone() for name, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no named tensors")
    with replacing(output) as temporary:
        save_file(tensors, temporary, {"format": "pt", "source": path.name})
    return tensors


def _foreign(error: Exception) -> str:
    """Names of the object for which PyTorch refused a file; empty if that is not the reason."""
    text = str(error)
    found = re.search(r"GLOBAL (\S+)|(?:class|type|function|got) (<[^>]+>)", text)
    return "" if found is None else next(filter(None, found.groups()))


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises what `read_checkpoint` and `unwrap` raise on the file."""
    unwrap(read_checkpoint(path), str(path))


def _brief(error: Exception) -> str:
    # PyTorch explains at length how to load a file all the same, then says what is wrong with it.
    text = str(error).rpartition("WeightsUnpickler error:")[2]
    lines = text.strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
