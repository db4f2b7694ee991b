# SPDX-License-Identifier: Apache-2.0
"""Focal losses, arXiv 1708.02002: cross-entropy that fades for what is already told apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.openmmlab.mmcv_ext.gradients import gradients


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each image and class.

    Args:
        input: Logits (n, classes).
        target: Class indices (n,); any other number is the background.
        weight: Factors of images by their class (classes,); empty for 1. The background's factor is 1.
        output: Losses (n, classes).
        gamma: Power of what is missing to certainty.
        alpha: Factor of the true class; others have 1 - alpha.
    """
    output.copy_(_sigmoid_loss(input, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each entry of the loss by its own logit."""
    (grad,) = gradients(lambda x: _sigmoid_loss(x, target, weight, gamma, alpha), [input], torch.ones_like(input))
    grad_input.copy_(grad)


def _sigmoid_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    sign = torch.where(_one_hot(target, logits), 1, -1)
    log_right, log_wrong = F.logsigmoid(sign * logits), F.logsigmoid(-sign * logits)
    share = torch.where(sign > 0, alpha, 1 - alpha)
    # The power as an exponential: its derivative exists where the probability underflows.
    loss = -share * (gamma * log_wrong).exp() * log_right
    return loss * _class_weight(target, weight)[:, None] if weight.numel() else loss


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each image.

    Args:
        input: Probabilities after softmax (n, classes).
        target: Class indices (n,); images with any other number cost nothing.
        weight: Factors of images by their class (classes,); empty for 1.
        output: Losses (n,).
        gamma: Power of what is missing to certainty.
        alpha: Factor of all.
    """
    right, factor = _right(input, target, weight, alpha)
    output.copy_(-factor * (1 - right).pow(gamma) * right.log())


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivatives (n, classes) of each image's loss by its logits; `buff` (n,) keeps what they share."""
    right, factor = _right(input, target, weight, alpha)
    missing = 1 - right
    slope = 0 if gamma == 0 else gamma * missing.clamp(min=_tiny(input)).pow(gamma - 1) * right * right.log()
    buff.copy_(factor * (slope - missing.pow(gamma)))
    grad_input.copy_(buff[:, None] * (_one_hot(target, input).to(input.dtype) - input))


def _right(probability: Tensor, target: Tensor, weight: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Probability of the true class (n,), above zero, and the factor of its loss."""
    known = (target >= 0) & (target < probability.shape[1])
    right = probability.gather(1, torch.where(known, target, 0)[:, None])[:, 0].clamp(min=_tiny(probability))
    factor = torch.where(known, alpha, 0.0).to(probability.dtype)
    return right, factor * _class_weight(target, weight) if weight.numel() else factor


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def _one_hot(target: Tensor, like: Tensor) -> Tensor:
    return target[:, None] == torch.arange(like.shape[1], device=like.device)


def _class_weight(target: Tensor, weight: Tensor) -> Tensor:
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, weight[torch.where(known, target, 0)], 1)
