# SPDX-License-Identifier: Apache-2.0
"""Samples follow from seed, epoch and position; loops by steps find their place."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("mmengine")

from mmengine.dataset import DefaultSampler, InfiniteSampler  # noqa: E402

from visionattn.openmmlab import loading  # noqa: E402
from visionattn.openmmlab.loading import own_randomness, reproducible  # noqa: E402
from visionattn.openmmlab.loops import EndlessBatches  # noqa: E402


class Noise:
    """Samples of an index and of numbers from every generator."""

    metainfo = {"classes": ("noise",)}

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


def loader(sampler, batch=2, workers=0, seed=5):
    built = sampler(Noise(), shuffle=True, seed=3)
    return reproducible(DataLoader(Noise(), batch, sampler=built, num_workers=workers, collate_fn=list), seed)


def taken(batches, count):
    return list(itertools.islice(batches, count))


def test_the_generators_go_on_as_before():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with own_randomness(11):
        first = random.random(), np.random.rand(), torch.rand(2)
    with own_randomness(11):
        again = random.random(), np.random.rand(), torch.rand(2)
    assert first[:2] == again[:2] and torch.equal(first[2], again[2])
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1]) and torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize("sampler", [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize("start", [0, 3, 4, 9])
def test_a_loop_that_begins_later_sees_what_the_whole_one_saw(sampler, start):
    whole = taken(EndlessBatches(loader(sampler)), 12)
    rest = taken(EndlessBatches(loader(sampler), start), 12 - start)
    assert rest == whole[start:]
    numbers = [sample[1] for batch in whole for sample in batch]
    assert len(set(numbers)) == len(numbers)


def test_nothing_is_loaded_on_the_way(monkeypatch):
    asked = []
    original = Noise.__getitem__
    monkeypatch.setattr(Noise, "__getitem__", lambda self, index: asked.append(index) or original(self, index))
    taken(EndlessBatches(loader(InfiniteSampler), 1000), 1)
    assert len(asked) == 2


def test_workers_and_the_state_of_the_generators_do_not_count():
    alone = taken(EndlessBatches(loader(InfiniteSampler)), 6)
    torch.rand(5), np.random.rand(3), random.random()
    assert taken(EndlessBatches(loader(InfiniteSampler, workers=2)), 6) == alone
    assert taken(EndlessBatches(loader(InfiniteSampler, seed=6)), 6) != alone


@pytest.mark.parametrize("sampler", [DefaultSampler, InfiniteSampler])
def test_two_processes_see_what_one_with_twice_the_batch_sees(sampler, monkeypatch):
    whole = taken(EndlessBatches(loader(sampler, batch=4)), 3)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(loading, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(loading, "get_world_size", lambda: 2)
        parts.append(taken(EndlessBatches(loader(sampler, batch=2)), 3))
    for number in range(1 if sampler is DefaultSampler else 3):  # 7 samples do not divide evenly
        both = sorted(sample for part in parts for sample in part[number])
        assert both == sorted(whole[number])


def test_the_wrapped_data_set_is_itself_in_everything_else():
    wrapped = loader(DefaultSampler)
    assert wrapped.dataset.metainfo == Noise.metainfo and len(wrapped.dataset) == 7
    assert len(wrapped) == 4
    with pytest.raises(AttributeError, match="colour"):
        _ = wrapped.dataset.colour
