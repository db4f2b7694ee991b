# SPDX-License-Identifier: Apache-2.0
"""Why a model says what it says: attention of a pixel, rollout, flow, Grad-CAM, effective receptive field.

Works on any timm model with attention, ours or timm's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionattn.explanation.capture import record
from visionattn.explanation.flow import (
    attention_flow,
    attention_rollout,
    cells,
    membership,
    resize,
    roll_back,
)
from visionattn.explanation.gradients import effective_receptive_field, grad_cam
from visionattn.explanation.weights import Grid, Weights, grid_of, tokens_of

__all__ = [
    "Explanation",
    "Layer",
    "attention_flow",
    "attention_rollout",
    "effective_receptive_field",
    "explain",
    "grad_cam",
]


@dataclass(frozen=True)
class Layer:
    """Attention of one pixel in one layer.

    Args:
        name: Of the module in the model.
        kind: Of the module's class.
        method: "weights", of a softmax or what stands in its place; "implied weights" of attention of linear cost,
            which may be negative; or "share of the Jacobian" of a mixer without weights, with one head.
        maps: Weights of the map's pixels, `(heads, h, w)`; heads that see nothing for this pixel are left out.
        prefix: Weights of leading tokens, such as a class token, `(heads, tokens)`.
        points: Where deformable attention reads keys, `(groups, N, 2)`, (y, x) from -1 to 1; None for others.
    """

    name: str
    kind: str
    method: str
    maps: np.ndarray
    prefix: np.ndarray
    points: np.ndarray | None = None


@dataclass(frozen=True)
class Explanation:
    """What `explain` finds.

    Args:
        pixel: (row, column) in the image.
        image_size: (height, width) of the image.
        target: Class that Grad-CAM is of.
        probability: The model's for that class.
        layers: Attention of the pixel in each layer, the first one first.
        rollout: Attention rollout from the output to the first layer's map, `(h, w)`, without its leading tokens; None
            if no layer attends.
        flow: Attention flow to cells of that map, `(s, s)`; None if it was not asked for, or no layer attends.
        grad_cam: `(h, w)` on the last map, 0 to 1.
        receptive_field: Effective receptive field of the pixel in the last map, `(H, W)`, 0 to 1.
    """

    pixel: tuple[int, int]
    image_size: tuple[int, int]
    target: int
    probability: float
    layers: list[Layer]
    rollout: np.ndarray | None
    flow: np.ndarray | None
    grad_cam: np.ndarray
    receptive_field: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """All figures by name, as an `.npz` file holds them; a layer's begin with its name."""
        found: dict[str, Any] = {"pixel": self.pixel, "image_size": self.image_size, "target": self.target}
        found |= {"grad_cam": self.grad_cam, "receptive_field": self.receptive_field}
        found |= {name: value for name in ("rollout", "flow") if (value := getattr(self, name)) is not None}
        found["layers"] = [layer.name for layer in self.layers]
        for layer in self.layers:
            found |= {f"{layer.name}/maps": layer.maps, f"{layer.name}/prefix": layer.prefix}
            found[f"{layer.name}/method"] = layer.method
            if layer.points is not None:
                found[f"{layer.name}/points"] = layer.points
        return {name: np.asarray(value) for name, value in found.items()}


def explain(
    model: nn.Module,
    image: Tensor,
    pixel: tuple[int, int] | None = None,
    target: int | None = None,
    flow: bool = True,
    side: int = 7,
) -> Explanation:
    """Attention maps of a pixel in every layer, rollout, flow, Grad-CAM and effective receptive field.

    A layer's weights are derivatives of its attention's output with respect to the values, queries and keys held fixed:
    exact for everything that is linear in values, whatever computes it. Layers between those that attend (convolutions,
    downsamplers) count as the identity in rollout and flow; both begin at the class token where the head reads it, else
    at all pixels alike.

    Args:
        model: timm's classifier, or ours.
        image: Normalised, `(3, H, W)` or `(1, 3, H, W)`.
        pixel: (row, column) of the image; its centre if None.
        target: Class for Grad-CAM; the most probable one if None.
        flow: Whether attention flow is computed, which takes longest.
        side: Cells along each side of the map in which flow is computed; fewer on smaller maps.

    Raises:
        TypeError: `image` is no floating-point tensor.
        ValueError: `image` is not one image, `pixel` lies outside of it, there is no class `target`, or `side` is
            not positive.
        ModuleNotFoundError: Flow is asked for, and SciPy is not installed.
    """
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise TypeError(f"image={type(image).__name__} must be a floating-point tensor (3, H, W), normalised")
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or len(batch) != 1:
        raise ValueError(f"image of shape {tuple(image.shape)} must be one image, (3, H, W) or (1, 3, H, W)")
    height, width = batch.shape[2:]
    pixel = (height // 2, width // 2) if pixel is None else pixel
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(
            f"pixel={tuple(pixel)} lies outside of the image: rows 0 to {height - 1}, columns 0 to {width - 1}"
        )
    if side < 1:
        raise ValueError(f"side={side} must be at least 1")
    if flow:
        import scipy.sparse  # noqa: F401 - before any work
    parameter = next(model.parameters(), None)
    batch = batch.detach().to(batch if parameter is None else parameter).requires_grad_()
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            return _explain(model, batch, (int(pixel[0]), int(pixel[1])), target, side if flow else None)
    finally:
        model.train(training)


def _explain(model: Any, image: Tensor, pixel: tuple[int, int], target: int | None, side: int | None) -> Explanation:
    size = int(image.shape[2]), int(image.shape[3])
    features, sites = record(model, image, model.forward_features)
    logits = model.forward_head(features)
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise ValueError(f"the model's output of shape {tuple(logits.shape)} must be logits (1, classes)")
    target = int(logits[0].argmax()) if target is None else target
    if not 0 <= target < logits.shape[1]:
        raise ValueError(f"target={target} must be a class, 0 to {logits.shape[1] - 1}")
    found = grid_of(features, size)
    if found is None:
        raise ValueError(f"features of shape {tuple(features.shape)} are no map of the image")
    grid, channels_last = found
    tokens = tokens_of(features, channels_last)
    field = effective_receptive_field(tokens[_token(grid, pixel, size)], image)
    sites = [site for site in sites if grid_of(site.input, size) is not None]
    logit = logits[0, target]
    gradients = torch.autograd.grad(logit, features, retain_graph=True)[0]
    reads_prefix = bool(grid.prefix) and not tokens_of(gradients, channels_last)[grid.prefix :].any()
    cam, cam_grid = _cam(logit, features if not reads_prefix else sites[-1].input, size)
    start = torch.zeros(grid.tokens, dtype=tokens.dtype, device=tokens.device)
    start[slice(0, 1) if reads_prefix else slice(grid.prefix, None)] = 1
    layers, rollout, first, flows = _through(sites, start / start.sum(), grid, pixel, size, side)
    return Explanation(
        pixel=pixel,
        image_size=size,
        target=target,
        probability=float(logits[0].detach().softmax(-1)[target]),
        layers=layers,
        rollout=_map(rollout, first) if layers else None,
        flow=flows,
        grad_cam=_map(cam, cam_grid),
        receptive_field=field.detach().cpu().numpy(),
    )


def _through(
    sites: list[Any], mixture: Tensor, grid: Grid, pixel: tuple[int, int], size: tuple[int, int], side: int | None
) -> tuple[list[Layer], Tensor, Grid, np.ndarray | None]:
    """Layers from the last to the first, on the way the rollout; and the flow through all."""
    if not sites:
        return [], mixture, grid, None
    grids = [found[0] for site in sites for found in (grid_of(site.input, size), grid_of(site.output, size)) if found]
    across = 0 if side is None else min(side, *(min(each.height, each.width) for each in grids))
    prefix = min(grid.prefix, *(each.prefix for each in grids))
    source = membership(grid, across, prefix).to(mixture) @ mixture if across else mixture
    layers: list[Layer] = []
    matrices: list[Tensor] = []
    for site in reversed(sites):
        weights = Weights(site, size)
        layers.append(_layer(weights, pixel, size))
        mixture = roll_back(weights, resize(mixture, grid, weights.output_grid))
        grid = weights.grid
        if across:
            matrices.append(cells(weights, across, prefix))
    flows = None
    if across:
        flows = attention_flow(torch.stack(matrices[::-1]).cpu(), source.cpu())[prefix:].view(across, across).numpy()
    return layers[::-1], mixture, grid, flows


def _layer(weights: Weights, pixel: tuple[int, int], size: tuple[int, int]) -> Layer:
    grid = weights.grid
    chosen = torch.zeros(weights.output_grid.tokens, dtype=weights.site.output.dtype, device=weights.site.output.device)
    chosen[_token(weights.output_grid, pixel, size)] = 1
    rows = weights.rows(chosen).detach().cpu().numpy()
    rows = rows[rows.any(1)] if rows.any() else rows[:1]
    points = torch.cat(weights.points).cpu().numpy() if weights.points else None
    maps = rows[:, grid.prefix :].reshape(-1, grid.height, grid.width)
    return Layer(weights.site.name, weights.site.kind, weights.method, maps, rows[:, : grid.prefix], points)


def _cam(logit: Tensor, features: Tensor, size: tuple[int, int]) -> tuple[Tensor, Grid]:
    found = grid_of(features, size)
    assert found is not None  # layers without a map were left out
    grid, channels_last = found
    gradients = torch.autograd.grad(logit, features, retain_graph=True)[0]
    pixels, slopes = (tokens_of(t, channels_last)[grid.prefix :] for t in (features, gradients))
    return grad_cam(pixels, slopes), Grid(0, grid.height, grid.width)


def _token(grid: Grid, pixel: tuple[int, int], size: tuple[int, int]) -> int:
    """Token of a grid in which a pixel of the image lies."""
    row, column = (p * side // s for p, side, s in zip(pixel, (grid.height, grid.width), size, strict=True))
    return grid.prefix + row * grid.width + column


def _map(values: Tensor, grid: Grid) -> np.ndarray:
    return values[grid.prefix :].reshape(grid.height, grid.width).detach().cpu().numpy()
