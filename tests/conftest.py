# SPDX-License-Identifier: Apache-2.0
"""Without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before they are imported.

The tests run in one process a core; more threads than one in each would get into each other's way.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
