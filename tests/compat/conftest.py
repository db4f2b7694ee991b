# SPDX-License-Identifier: Apache-2.0
"""The golden records' reader is at hand here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "golden"))
