# SPDX-License-Identifier: Apache-2.0
"""timm's repeated augmentation under mmengine's Runner."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from mmengine.dist import get_rank, get_world_size
from mmengine.registry import DATA_SAMPLERS
from timm.data.distributed_sampler import RepeatAugSampler

from visionattn.data.randomness import sample_seed


@DATA_SAMPLERS.register_module()
class RepeatedAugmentation(RepeatAugSampler):
    """Samples come several times in an epoch, augmented differently, and fewer different ones come in each.

    An epoch has as many samples as without. A repetition of sample `i` of `n` is asked for as `i + n`, `i + 2 n`, …:
    data sets count around, and augment by the index as it is given. Paper: https://arxiv.org/abs/1901.09335.

    Args:
        dataset: The data set.
        seed: Seed of the order.
        num_repeats: How often a sample comes.

    Raises:
        ValueError: `num_repeats` is less than 1.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, num_repeats: int = 3) -> None:
        if num_repeats < 1:
            raise ValueError(f"sampler.num_repeats={num_repeats} must be at least 1")
        # Not rounded down to hundreds of samples, which would leave small data sets short.
        super().__init__(
            dataset, num_replicas=get_world_size(), rank=get_rank(), num_repeats=num_repeats, selected_round=0
        )
        self.seed = seed or 0

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, sample_seed(self.seed, self.epoch, 0)
        try:
            samples: list[Any] = list(super().__iter__())
        finally:
            self.epoch = epoch
        count, repeats = len(self.dataset), int(self.num_repeats)
        # Position p of the shared order is repetition p modulo `repeats`; this process has every n-th position.
        return iter(
            [sample + count * ((self.rank + i * self.num_replicas) % repeats) for i, sample in enumerate(samples)]
        )
