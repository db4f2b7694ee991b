# SPDX-License-Identifier: Apache-2.0
"""What gradients say: Grad-CAM and effective receptive fields."""

from __future__ import annotations

import torch
from torch import Tensor

PROBES = 8


def grad_cam(features: Tensor, gradients: Tensor) -> Tensor:
    """Where a class was seen, `(N,)`, from 0 to 1 at the largest; all zeros where nothing speaks for it.

    Args:
        features: Tokens of a map `(N, C)`.
        gradients: Of the class's logit with respect to them, `(N, C)`.

    Raises:
        ValueError: The shapes differ.

    Paper: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization, arXiv 1610.02391.
    """
    if features.shape != gradients.shape or features.ndim != 2:
        raise ValueError(
            f"features {tuple(features.shape)} and gradients {tuple(gradients.shape)} must both be (N, C), of one shape"
        )
    seen = (features * gradients.mean(0)).sum(-1).clamp(min=0)
    return seen / seen.max().clamp(min=torch.finfo(seen.dtype).tiny)


def effective_receptive_field(feature: Tensor, image: Tensor) -> Tensor:
    """How much each pixel of an image moves a feature, `(H, W)`, the largest being 1.

    The root of the squared Jacobian, summed over channels of both sides, estimated by random signs with a fixed seed.
    (A plain sum over the feature's channels would vanish behind a LayerNorm.)

    Args:
        feature: One pixel's channels, `(C,)`, computed from the image.
        image: `(1, C, H, W)`, which requires gradients.

    Paper: Understanding the Effective Receptive Field in Deep Convolutional Neural Networks, arXiv 1701.04128.
    """
    generator = torch.Generator(feature.device).manual_seed(0)
    total = torch.zeros_like(image[0, 0])
    for _ in range(PROBES):
        signs = torch.randint(0, 2, feature.shape, generator=generator, device=feature.device) * 2 - 1
        found = torch.autograd.grad(feature, image, signs.to(feature), retain_graph=True)[0]
        total += found[0].square().sum(0)
    field = total.sqrt()
    return field / field.max().clamp(min=torch.finfo(field.dtype).tiny)
