# SPDX-License-Identifier: Apache-2.0
import logging
import multiprocessing

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("albumentations")
pytest.importorskip("sklearn")
pytest.importorskip("webdataset")

from image_sets import CLASSES, jpeg, photograph, write_subset, write_tar  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from visionattn.data import (  # noqa: E402
    HubDataset,
    ImageFolderDataset,
    ShardDataset,
    ShardSampler,
    TarDataset,
    drop_bad,
    recognise,
    write_shards,
)
from visionattn.data.shards import list_samples  # noqa: E402

TRAIN = {"type": "ImageNetTrain", "size": 24, "auto_augment": "rand-m9-mstd0.5-inc1", "erase_prob": 0.5}
EVAL = {"type": "ImageNetEval", "size": 24}


@pytest.fixture
def rng():
    return np.random.default_rng()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("skimage")
    return write_subset(tmp_path_factory.mktemp("subset"), train=5, val=3, side=32)


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for split, prefix in (("train", "train"), ("test", "val")):
        write_shards(ImageFolderDataset(folder, EVAL, split), root, prefix, samples_per_shard=7)
    return root


@pytest.fixture(scope="module")
def tars(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("tars")
    for split in ("train", "val"):
        files = sorted((folder / split).rglob("*.jpg"))
        write_tar(root / f"{split}.tar", [(str(f.relative_to(folder / split)), f.read_bytes()) for f in files])
    return root


@pytest.fixture(scope="module")
def class_tars(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("class_tars")
    for split in ("train", "val"):
        for name in CLASSES:
            files = sorted((folder / split / name).glob("*.jpg"))
            write_tar(root / split / f"{name}.tar", [(f.name, f.read_bytes()) for f in files])
    return root


@pytest.fixture(scope="module")
def hub(folder, tmp_path_factory):
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("hub")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=sorted(CLASSES))})
    for split, name in (("train", "train"), ("test", "validation")):
        source = ImageFolderDataset(folder, EVAL, split)
        rows = {
            "image": [{"bytes": source.content(i), "path": None} for i in range(len(source))],
            "label": list(source.labels),
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "data" / f"{name}-00000-of-00001.parquet")
    return root


def samples(dataset):
    return [(sample["inputs"], sample["label"]) for sample in DataLoader(dataset, None)]


def by_content(dataset):
    return sorted((dataset.classes[dataset.label(i)], dataset.content(i)) for i in range(len(dataset)))


@pytest.mark.parametrize("kind", ["shards", "tars", "class_tars", "hub"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_kind_of_data_holds_the_folders_images(folder, request, kind, split):
    root = request.getfixturevalue(kind)
    build = {"shards": ShardDataset, "hub": lambda root, *args: HubDataset(str(root), *args)}.get(kind, TarDataset)
    dataset = build(root, EVAL, split)
    expected = ImageFolderDataset(folder, EVAL, split)
    assert set(dataset.classes) == set(CLASSES)
    assert by_content(dataset) == by_content(expected)
    assert len(samples(dataset)) == len(expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_in_the_folders_order_give_equal_samples(folder, shards, workers):
    loaders = [
        DataLoader(
            dataset, 4, num_workers=workers, collate_fn=drop_bad, multiprocessing_context="fork" if workers else None
        )
        for dataset in (ImageFolderDataset(folder, TRAIN, seed=3), ShardDataset(shards, TRAIN, seed=3))
    ]
    for one, other in zip(*loaders, strict=True):
        assert torch.equal(one["inputs"], other["inputs"])
        assert torch.equal(one["label"], other["label"])


def test_tar_files_that_were_opened_before_are_read_by_worker_processes(tars):
    dataset = TarDataset(tars, EVAL)
    expected = [dataset[index]["inputs"] for index in range(len(dataset))]
    loader = DataLoader(dataset, None, num_workers=3, multiprocessing_context=multiprocessing.get_context("fork"))
    for sample, inputs in zip(loader, expected, strict=True):
        assert torch.equal(sample["inputs"], inputs)


@pytest.mark.parametrize("kind", ["shards", "tars", "hub"])
def test_data_sets_go_to_spawned_processes(request, kind):
    import pickle

    root = request.getfixturevalue(kind)
    dataset = {"shards": ShardDataset, "tars": TarDataset, "hub": lambda root, p: HubDataset(str(root), p)}[kind](
        root, EVAL
    )
    first = dataset[0]["inputs"]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[0]["inputs"], first)


def order(dataset, epoch=0, **settings):
    sampler = ShardSampler(dataset, **settings)
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return indices


def test_the_order_of_shards_follows_from_seed_and_epoch(shards):
    dataset = ShardDataset(shards, EVAL)
    first = order(dataset, seed=4, window=2)
    assert sorted(first) == list(range(len(dataset)))
    assert first == order(dataset, seed=4, window=2)
    assert first != order(dataset, 1, seed=4, window=2)
    assert first != order(dataset, seed=5, window=2)
    assert order(dataset, shuffle=False) == list(range(len(dataset)))


def test_shards_are_read_in_runs(shards):
    dataset = ShardDataset(shards, EVAL)
    seen = [dataset.place(index)[0] for index in order(dataset, seed=7, window=1)]
    assert sum(a != b for a, b in zip(seen, seen[1:], strict=False)) == len(dataset.names) - 1
    windows = [dataset.place(index)[0] for index in order(dataset, seed=7, window=2)]
    assert len(set(windows[:9])) <= 3


@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_shards_evenly(shards, world):
    dataset = ShardDataset(shards, EVAL)
    parts = [order(dataset, 2, seed=1, window=2, rank=rank, world_size=world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    together = [index for part in parts for index in part]
    assert set(together) == set(range(len(dataset)))
    assert len(together) < len(dataset) + world
    exact = [order(dataset, 2, seed=1, rank=r, world_size=world, round_up=False) for r in range(world)]
    assert sorted(index for part in exact for index in part) == list(range(len(dataset)))


def test_shards_are_named_counted_and_fetched(shards, tmp_path, monkeypatch):
    import json

    lengths = ShardDataset(shards, EVAL).lengths
    names = [path.name for path in sorted(shards.glob("train-*.tar"))]
    braces = f"train-{{000000..{len(names) - 1:06d}}}.tar"
    assert ShardDataset(shards, EVAL, shards=braces).names == names
    info = {"splits": {"train": {"name": "train", "filenames": names, "shard_lengths": lengths}}}
    for path in shards.glob("train-*.tar"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "_info.json").write_text(json.dumps(info))
    (tmp_path / "classes.txt").write_text("\n".join(sorted(CLASSES)))
    opened = []
    monkeypatch.setattr("visionattn.data.shards.list_samples", lambda *a: opened.append(a) or list_samples(*a))
    known = ShardDataset(tmp_path, EVAL)
    assert not opened  # the lengths are known
    assert by_content(known) == by_content(ShardDataset(shards, EVAL))

    cache = tmp_path / "cache"
    fetched = ShardDataset(f"file://{tmp_path}", EVAL, cache=cache)
    assert not cache.exists()
    fetched[0]
    assert len(list(cache.glob("*.tar"))) == 1
    assert by_content(fetched) == by_content(known)
    assert len(list(cache.glob("*.tar"))) == len(names)
    small = ShardDataset(f"file://{tmp_path}", EVAL, cache=tmp_path / "small", cache_bytes=1)
    assert by_content(small) == by_content(known)
    assert len(list((tmp_path / "small").glob("*.tar"))) == 1


def test_labels_may_come_from_json(tmp_path, rng):
    image = jpeg(photograph(rng, 40, 40))
    files = [(f"{i}.{s}", c) for i in range(3) for s, c in (("jpg", image), ("json", b'{"label": %d}' % (i % 2)))]
    write_tar(tmp_path / "train-0.tar", files)
    dataset = ShardDataset(tmp_path, EVAL, classes=2, label_key="label")
    assert [label for _, label in samples(dataset)] == [0, 1, 0]
    with pytest.raises(ValueError, match="label_key='target'.* is missing"):
        ShardDataset(tmp_path, EVAL, classes=2, label_key="target")[0]


def shard(rng, count=6, label=lambda i: i % 2):
    files = []
    for index in range(count):
        files += [(f"{index:04d}.jpg", jpeg(photograph(rng, 40, 44))), (f"{index:04d}.cls", str(label(index)).encode())]
    return files


@pytest.mark.parametrize("cut", ["within an image", "at a member's end"])
def test_a_shard_that_was_cut_off_is_skipped_or_stops(tmp_path, rng, caplog, cut):
    path = write_tar(tmp_path / "train-0.tar", shard(rng))
    write_tar(tmp_path / "train-1.tar", shard(rng))
    content = path.read_bytes()
    with path.open("rb") as file:
        places, damage = list_samples(file)
    assert damage is None
    assert len(places) == 6
    end = places[3].image[0] + 100 if cut == "within an image" else places[3].image[0] - 512
    path.write_bytes(content[:end])
    with caplog.at_level(logging.WARNING):
        dataset = ShardDataset(tmp_path, EVAL, classes=2)
    assert "train-0.tar is damaged or cut off" in caplog.text
    assert "after 3 whole samples" in caplog.text
    assert len(samples(dataset)) == 9
    with pytest.raises(ValueError, match=r"train-0\.tar is damaged or cut off .* after 3 whole samples"):
        ShardDataset(tmp_path, EVAL, classes=2, on_bad_image="raise")


def test_samples_that_a_shard_lacks_are_listed_and_counted(tmp_path, rng):
    import json

    path = write_tar(tmp_path / "train-0.tar", shard(rng))
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 2])
    part = {"name": "train", "filenames": ["train-0.tar"], "shard_lengths": [6]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": part}}))
    dataset = ShardDataset(tmp_path, EVAL, classes=2)
    got = [dataset[index] for index in range(6)]
    missing = [index for index, sample in enumerate(got) if sample is None]
    assert missing
    assert dataset.bad_files() == [f"{path}:sample {index}" for index in missing]
    with pytest.raises(ValueError, match=rf"sample {missing[0]} is missing"):
        ShardDataset(tmp_path, EVAL, classes=2, on_bad_image="raise")[missing[0]]


def test_a_label_out_of_range_stops_whatever_is_done_with_bad_images(tmp_path, rng):
    write_tar(tmp_path / "train-0.tar", shard(rng, label=lambda i: 7 if i == 4 else i % 2))
    dataset = ShardDataset(tmp_path, EVAL, classes=2, on_bad_image="skip")
    assert dataset[0] is not None
    with pytest.raises(ValueError, match=r"train-0\.tar:0004 has the label 7; allowed are 0 to 1"):
        dataset[4]


def test_wrong_shards_are_named(tmp_path, rng):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        ShardDataset(tmp_path / "nowhere", EVAL)
    with pytest.raises(FileNotFoundError, match="has no shards train"):
        ShardDataset(tmp_path, EVAL)
    write_tar(tmp_path / "train-0.tar", [("readme.txt", b"nothing")])
    with pytest.raises(ValueError, match="hold no images"):
        ShardDataset(tmp_path, EVAL, classes=2)
    write_tar(tmp_path / "train-0.tar", shard(rng, 2))
    with pytest.raises(ValueError, match=r"has no classes\.txt"):
        ShardDataset(tmp_path, EVAL)
    with pytest.raises(ValueError, match="at least two classes, but has 1"):
        ShardDataset(tmp_path, EVAL, classes=1)
    (tmp_path / "_info.json").write_text('{"splits": {"train": {"filenames": ["a.tar"]}}}')
    with pytest.raises(ValueError, match=r"_info\.json does not list splits"):
        ShardDataset(tmp_path, EVAL, classes=2)
    with pytest.raises(TypeError, match="needs a ShardDataset, not list"):
        ShardSampler([1, 2])


def test_wrong_tar_files_are_named(tmp_path, tars, rng):
    with pytest.raises(FileNotFoundError, match=r"no train\.tar"):
        TarDataset(tmp_path, EVAL)
    path = tmp_path / "train.tar"
    path.write_bytes((tars / "train.tar").read_bytes()[:9000])
    with pytest.raises(ValueError, match=r"train\.tar is damaged"):
        TarDataset(tmp_path, EVAL)
    write_tar(path, [("readme.txt", b"nothing")])
    with pytest.raises(ValueError, match=r"train\.tar holds no images"):
        TarDataset(tmp_path, EVAL)
    write_tar(path, [("ant/0.jpg", jpeg(photograph(rng, 30, 30)))])
    with pytest.raises(ValueError, match="at least two classes, but has 1: ant"):
        TarDataset(tmp_path, EVAL)
    write_tar(path, [("ant/0.jpg", b"no image"), ("bee/0.jpg", jpeg(photograph(rng, 30, 30)))])
    dataset = TarDataset(tmp_path, EVAL)
    assert dataset[0] is None
    assert dataset.bad_files() == [f"{path}:ant/0.jpg"]
    assert dataset[1]["label"] == 1


def test_wrong_hugging_face_datasets_are_named(hub, tmp_path):
    with pytest.raises(ValueError, match="label_key='species'"):
        HubDataset(str(hub), EVAL, label_key="species")
    with pytest.raises(ValueError, match="image_key='photo'"):
        HubDataset(str(hub), EVAL, image_key="photo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no such dataset"):
        HubDataset(str(tmp_path / "empty"), EVAL)


def test_data_are_recognised(folder, shards, tars, class_tars, tmp_path):
    kinds = [recognise(root)["type"] for root in (folder, folder / "train", shards, tars, class_tars)]
    assert kinds == ["ImageFolderDataset", "ImageFolderDataset", "ShardDataset", "TarDataset", "TarDataset"]
    assert recognise("hfds/cifar10") == {"type": "HubDataset", "name": "cifar10"}
    assert recognise(f"wds/{tmp_path}") == {"type": "ShardDataset", "root": str(tmp_path)}
    assert recognise("https://host/imagenet") == {"type": "ShardDataset", "root": "https://host/imagenet"}
    with pytest.raises(FileNotFoundError, match=r"does not exist; data are .*hfds/NAME"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"train\.tar' is a file"):
        recognise(tars / "train.tar")
    (tmp_path / "train.tar").write_bytes(b"no tar")
    with pytest.raises(ValueError, match=r"train\.tar is damaged or no tar file"):
        recognise(tmp_path)
