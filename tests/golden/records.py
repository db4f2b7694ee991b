# SPDX-License-Identifier: Apache-2.0
"""Reader of golden records: what a reference computed, the weights and inputs it computed it with.

Nothing is stored but digests. Weights are drawn from their names and inputs from fixed seeds, by rules that both sides
follow, in float64 with numpy's PCG64.
"""

import gzip
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "records"
IMAGE_SEED = 20260101
COTANGENT_SEED = 7


def paths(config: pytest.Config) -> list[Path]:
    """Every record file of the folders given as `--records`, or of our own."""
    folders = [Path(d) for d in config.getoption("--records", default=None) or [FOLDER]]
    for folder in folders:
        if not folder.is_dir():
            raise pytest.UsageError(f"--records {folder} is no folder")
    found = sorted({p for folder in folders for p in folder.rglob("*.json.gz")})
    if not found:
        raise pytest.UsageError(f"no *.json.gz under {', '.join(map(str, folders))}")
    return found


def load(path: str | Path) -> dict[str, Any]:
    """A record."""
    with gzip.open(path, "rt") as file:
        return json.load(file)


def _normal(seed: int, shape: Any) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape))


def fill(name: str, shape: Any) -> np.ndarray:
    """Values of the state-dict entry `name`: what it is decides scale and offset, its name the draw."""
    x = _normal(zlib.crc32(name.encode()), shape)
    if name.endswith("running_var"):
        return 1 + np.abs(x) / 10
    if name.endswith("running_mean"):
        return 0.1 * x
    is_weight = name.endswith("weight")
    if len(x.shape) > 1:
        fan_in = math.prod(x.shape[1:])
        return x / math.sqrt(max(fan_in, 1)) if is_weight else 0.2 * x
    if is_weight:
        return 1 + 0.1 * x
    return 0.1 * x if name.endswith("bias") else 0.5 + 0.1 * x


def image(shape: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """Input of a run."""
    return torch.from_numpy(_normal(IMAGE_SEED, shape)).to(dtype)


def cotangent(shape: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gradient that is fed back into an output of this shape."""
    return torch.from_numpy(_normal(COTANGENT_SEED, shape)).to(dtype)


def draw(shape: Any, seed_name: str, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal times `scale`, seeded with the CRC-32 of a name: inputs of the op records."""
    return scale * torch.from_numpy(_normal(zlib.crc32(seed_name.encode()), shape)).to(dtype)


def state_dict(
    record: dict[str, Any], dtype: torch.dtype = torch.float64, constants: bool = False
) -> dict[str, Tensor]:
    """The reference's state dict; constants are left out unless asked for, and then are zeros."""
    entries = {}
    for name, shape, kind in record["state"]:
        if kind == "constant":
            if constants:
                entries[name] = torch.zeros(shape)
        else:
            entries[name] = torch.from_numpy(np.asarray(fill(name, shape)).reshape(shape)).to(dtype)
    return entries


def error(tensor: Tensor, digest: dict[str, Any], share: float = 1.0) -> float:
    """Largest deviation from a digest over its root mean square; infinite for another shape or a value not finite.

    With `share` below 1 the largest among this share of the sampled values, those that deviate least.
    """
    if list(tensor.shape) != digest["shape"] or not bool(torch.isfinite(tensor).all()):
        return math.inf
    flat = tensor.detach().to(torch.float64).cpu().reshape(-1)
    rms = digest["l2"] / math.sqrt(max(flat.numel(), 1))
    sampled = flat[torch.tensor(digest["at"])] - torch.tensor(digest["values"], dtype=torch.float64)
    worst = max(
        sampled.abs().quantile(share, interpolation="higher").item(),
        abs(flat.mean().item() - digest["mean"]),
        abs(flat.std(unbiased=False).item() - digest["std"]),
    )
    # A truly zero gradient has no scale of its own.
    return worst / rms if rms > 0 else worst
