# SPDX-License-Identifier: Apache-2.0
"""Random numbers of a sample: from its seed alone, whatever was drawn before."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.random import mtrand


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Random numbers of Python, NumPy and PyTorch's CPU generator from `seed`; afterwards they go on as before."""
    states = random.getstate(), mtrand.get_bit_generator(), torch.get_rng_state()
    mtrand.set_bit_generator(np.random.MT19937(0))  # a swap is much faster than reading out NumPy's state
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        mtrand.set_bit_generator(states[1])
        torch.set_rng_state(states[2])


def sample_seed(seed: int, epoch: int, position: int) -> int:
    """Seed, 0 to 2**32 - 1, of the random numbers that augment one sample."""
    return int(np.random.SeedSequence((seed, epoch, position)).generate_state(1)[0])
