# SPDX-License-Identifier: Apache-2.0
"""Pictures: training curves, labelled images, detections and class maps, accuracy over speed, studies, explanations.

Needs the extra `viz` (`pip install "visionattn[viz]"`).
"""

from visionattn.viz.curves import draw_curves
from visionattn.viz.dense import DensePrediction, Objects, draw_dense
from visionattn.viz.explanation import draw_explanation
from visionattn.viz.predictions import Prediction, draw_predictions
from visionattn.viz.study import draw_study
from visionattn.viz.tradeoff import draw_tradeoff

__all__ = [
    "DensePrediction",
    "Objects",
    "Prediction",
    "draw_curves",
    "draw_dense",
    "draw_explanation",
    "draw_predictions",
    "draw_study",
    "draw_tradeoff",
]
