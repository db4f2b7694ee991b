# SPDX-License-Identifier: Apache-2.0
"""Pictures: training curves and labelled predictions. Needs the extra `viz` (`pip install "visionattn[viz]"`)."""

from visionattn.viz.curves import draw_curves
from visionattn.viz.predictions import Prediction, draw_predictions

__all__ = ["Prediction", "draw_curves", "draw_predictions"]
