# SPDX-License-Identifier: Apache-2.0
"""Region mutual information, a segmentation loss that sees how pixels depend on their neighbours.

    custom_imports = dict(imports=["visionattn.openmmlab.heads.rmi"])

Needs mmsegmentation.
"""

from __future__ import annotations

from typing import Any

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F


@MODELS.register_module()
class RegionMutualInformationLoss(nn.Module):
    """Binary cross-entropy of every class, and a bound of the mutual information of labels and predictions.

    Both maps of a class are averaged over cells of `stride` pixels; every `radius` x `radius` cells are one vector.
    With the vectors' scatter matrices `S`, what remains of the labels' when predictions are known is
    `M = S_yy - S_yp S_pp^-1 S_py`, and the bound is `-log(det M) / 2`. The loss is
    `share * cross_entropy + (1 - share) * log(det M) / (2 radius^2)`, summed over classes, averaged over images.

    Args:
        radius: Side of the regions.
        stride: Side of the cells.
        share: Share of the cross-entropy, in [0, 1].
        epsilon: Added to the diagonals of the matrices.
        loss_weight: Factor of the loss.
        loss_name: Its name in logs; `loss_` begins what is optimised.

    Raises:
        ValueError: If a size is not positive, or `share` is not in [0, 1].

    Paper: Region Mutual Information Loss for Semantic Segmentation, arXiv 1910.12037.
    """

    def __init__(
        self,
        radius: int = 3,
        stride: int = 4,
        share: float = 0.5,
        epsilon: float = 5e-4,
        loss_weight: float = 1.0,
        loss_name: str = "loss_rmi",
    ) -> None:
        super().__init__()
        if radius < 1 or stride < 1:
            raise ValueError(f"radius={radius} and stride={stride} must be at least 1")
        if not 0 <= share <= 1:
            raise ValueError(f"share={share} must be from 0 to 1")
        self.radius, self.stride, self.share, self.epsilon = radius, stride, share, epsilon
        self.loss_weight, self.loss_name = loss_weight, loss_name

    def forward(
        self, cls_score: Tensor, label: Tensor, weight: Any = None, ignore_index: int = 255, **others: Any
    ) -> Tensor:
        """The loss.

        Args:
            cls_score: Logits `(B, classes, H, W)`.
            label: Classes `(B, H, W)`.
            weight: Must be None.
            ignore_index: Label that counts nowhere.
            **others: `avg_factor` and `reduction_override`, which must be None.

        Raises:
            ValueError: If an argument that must be None is not, or a map is smaller than a region.
        """
        given = [name for name, value in {"weight": weight, **others}.items() if value is not None]
        if given:
            raise ValueError(f"{', '.join(given)}: must be None, the loss has no such option")
        least = self.radius * self.stride
        if min(cls_score.shape[2:]) < least:
            raise ValueError(
                f"logits of shape {tuple(cls_score.shape)} must have sides of at least {least} pixels, "
                f"radius={self.radius} cells of stride={self.stride}"
            )
        known = label != ignore_index
        truth = F.one_hot(torch.where(known, label, 0), cls_score.shape[1]).permute(0, 3, 1, 2)
        # In double precision: determinants of nearly dependent vectors.
        known, logits, truth = known[:, None].double(), cls_score.double(), truth.double()
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known
        entropy = entropy.sum() / known.sum().clamp(min=1)
        bound = self._log_determinants(truth * known, logits.sigmoid() * known).sum(1).mean()
        loss = self.share * entropy + (1 - self.share) * bound / (2 * self.radius**2)
        return self.loss_weight * loss.to(cls_score.dtype)

    def _log_determinants(self, truth: Tensor, prediction: Tensor) -> Tensor:
        """Logarithm of det M of every image and class, `(B, classes)`."""
        y, p = (self._regions(maps) for maps in (truth, prediction))
        diagonal = self.epsilon * torch.eye(y.shape[2], dtype=y.dtype, device=y.device)
        yp = y @ p.transpose(2, 3)
        known = torch.linalg.solve(p @ p.transpose(2, 3) + diagonal, yp.transpose(2, 3))
        left = y @ y.transpose(2, 3) - yp @ known + diagonal
        return 2 * torch.linalg.cholesky(left).diagonal(dim1=2, dim2=3).log().sum(2)

    def _regions(self, maps: Tensor) -> Tensor:
        """Centred vectors of all regions, `(B, classes, radius ** 2, regions)`."""
        cells = F.avg_pool2d(maps, self.stride)
        regions = cells.unfold(2, self.radius, 1).unfold(3, self.radius, 1).flatten(4).flatten(2, 3).transpose(2, 3)
        return regions - regions.mean(3, keepdim=True)
