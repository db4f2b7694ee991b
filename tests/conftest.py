# SPDX-License-Identifier: Apache-2.0
"""Without a GPU the Triton kernels run in Triton's interpreter, which has to be chosen before they are imported.

The tests run in one process a core; more threads than one in each would get into each other's way.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Read when torch is loaded; `torch.set_num_threads` holds for the main thread alone.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
