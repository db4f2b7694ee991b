# SPDX-License-Identifier: Apache-2.0
"""mmsegmentation's IoU with the figures of each class; imported where mmsegmentation is installed."""

from __future__ import annotations

from typing import Any

from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS

CLASS_FIGURES = ("IoU", "Acc")


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmsegmentation's IoUMetric, which also returns `IoU/<class>` and `Acc/<class>`, in percent.

    A class that is in neither prediction nor ground truth has NaN.
    """

    def compute_metrics(self, results: list) -> dict[str, Any]:
        """Figures of all images together; see `IoUMetric`."""
        metrics = super().compute_metrics(results)
        if self.format_only or not results:
            return metrics
        totals = [sum(areas) for areas in zip(*results, strict=True)]
        figures = self.total_area_to_metrics(*totals, self.metrics, self.nan_to_num, self.beta)
        for name in CLASS_FIGURES:
            values = figures.get(name, ())
            for label, value in zip(self.dataset_meta["classes"], values, strict=False):
                metrics[f"{name}/{label}"] = round(100 * float(value), 2)
        return metrics
