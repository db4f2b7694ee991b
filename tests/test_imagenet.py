# SPDX-License-Identifier: Apache-2.0
"""ImageNet accuracy: label maps, the models' own preprocessing, many models, and what is wrong with the input."""

import csv
import json
import shutil
import tarfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config

import visionattn
from visionattn import cli, imagenet, imagenet_sets

typer_testing = pytest.importorskip("typer.testing")

SYNSETS = ImageNetInfo().label_names()
NAME = "va_mambaout_femto"
MICRO = "test_vit"  # timm's


def write_images(root, folders, count=2, size=(40, 52)):
    rng = np.random.default_rng()
    for name in folders:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{i}.png")


@pytest.fixture
def photos(tmp_path):
    write_images(tmp_path / "data" / "val", [SYNSETS[i] for i in (3, 500, 999)])
    return tmp_path / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of timm's tiny test model, whose predictions differ from image to image."""
    folder = tmp_path_factory.mktemp("weights")
    model = timm.create_model(MICRO)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.state_dict(), folder / f"{MICRO}.pth")
    return folder


def call(*arguments):
    return typer_testing.CliRunner().invoke(cli.app, ["evaluate", "imagenet", *map(str, arguments)])


def settings(**changes):
    return imagenet.Settings(**{"device": "cpu", "workers": 0, "batch": 4, **changes})


def test_accuracy_is_that_of_the_models_own_preprocessing(photos, weights, tmp_path):
    (result,) = imagenet.evaluate([MICRO], photos, tmp_path / "out", weights, settings())
    model = timm.create_model(MICRO, checkpoint_path=str(weights / f"{MICRO}.pth")).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    hits = {1: 0, 5: 0}
    for path in sorted((photos / "val").rglob("*.png")):
        with torch.inference_mode():
            best = model(transform(Image.open(path))[None]).topk(5).indices[0].tolist()
        for k in hits:
            hits[k] += SYNSETS.index(path.parent.name) in best[:k]
    assert result["error"] is None
    assert (result["top1"], result["top5"]) == pytest.approx((100 * hits[1] / 6, 100 * hits[5] / 6))
    assert (result["images"], result["unreadable"], result["labels"]) == (6, [], "subset")
    assert result["images_per_second"] > 0
    assert tuple(result["preprocessing"]["input_size"]) == model.pretrained_cfg["input_size"]
    assert json.loads((tmp_path / "out" / f"{MICRO}.json").read_text())["top1"] == result["top1"]
    assert f"| {MICRO} | subset |" in (tmp_path / "out" / "results.md").read_text()


class Oracle(torch.nn.Module):
    """Predicts, from an image's brightness, class numbers that the tests choose."""

    num_classes = 1000
    pretrained_cfg = dict(input_size=(3, 8, 8), crop_pct=1.0, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))

    def __init__(self, ranking):
        super().__init__()
        self.ranking = ranking

    def forward(self, x):
        logits = torch.zeros(len(x), 1000)
        for row, image in zip(logits, x, strict=True):
            for place, label in enumerate(self.ranking(int((image.mean() * 255).round()))):
                row[label] = 10.0 - place
        return logits


def write_grey(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def test_right_answers_are_counted(tmp_path):
    for value, label in ((10, 7), (20, 8), (30, 9), (40, 10)):
        write_grey(tmp_path / SYNSETS[label] / "a.png", value)
    ranking = {10: [7], 20: [1, 2, 8], 30: [0, 1, 2, 3, 4, 9], 40: [10]}.__getitem__
    images = imagenet.find_images(tmp_path)
    result = imagenet.evaluate_model(Oracle(ranking), images, imagenet.find_truth(images, 1000), settings(batch=3))
    assert (result["top1"], result["top5"]) == (50.0, 75.0)


def test_numbered_folders_are_class_numbers(tmp_path):
    for number in (2, 10, 700):  # whose names sort otherwise
        write_grey(tmp_path / str(number) / "a.png", number % 251)
    images = imagenet.find_images(tmp_path)
    truth = imagenet.find_truth(images, 1000)
    assert truth.name == "v2"
    assert dict(zip(images.folders, truth.right, strict=True)) == {"2": (2,), "10": (10,), "700": (700,)}
    with pytest.raises(ValueError, match="folder 700 is no class of a model of 100"):
        imagenet.find_truth(images, 100)


@pytest.mark.parametrize("subset", ["a", "r"])
def test_imagenet_a_and_r_are_predicted_among_their_200_classes(tmp_path, subset):
    synsets = imagenet_sets._lines(f"imagenet_{subset}_synsets.txt")
    assert len(synsets) == 200
    for i, synset in enumerate(synsets):
        write_grey(tmp_path / synset / "a.png", i)
    images = imagenet.find_images(tmp_path)
    truth = imagenet.find_truth(images, 1000)
    assert truth.name == subset
    inside = [SYNSETS.index(synset) for synset in synsets]
    outside = next(i for i in range(1000) if i not in inside)
    ranking = lambda value: [outside, inside[value]]  # noqa: E731
    result = imagenet.evaluate_model(Oracle(ranking), images, truth, settings(batch=64))
    assert result["top1"] == 100.0


def test_real_labels_accept_several_classes_and_leave_out_images_without_one(tmp_path):
    from timm.data.real_labels import RealLabelsImagenet

    real = RealLabelsImagenet([""] * 50_000).real_labels
    several = next(name for name, labels in real.items() if len(labels) > 1)
    none = next(name for name, labels in real.items() if not labels)
    write_grey(tmp_path / several.replace(".JPEG", ".png"), 10)
    write_grey(tmp_path / none.replace(".JPEG", ".png"), 20)
    images = imagenet.find_images(tmp_path)
    truth = imagenet.find_truth(images, 1000)
    assert truth.name == "real"
    result = imagenet.evaluate_model(Oracle(lambda value: [real[several][-1]]), images, truth, settings())
    assert (result["top1"], result["images"], result["without_label"]) == (100.0, 1, 1)


def test_models_of_more_classes_are_asked_by_synset(tmp_path):
    write_grey(tmp_path / SYNSETS[0] / "a.png", 1)
    write_grey(tmp_path / SYNSETS[1] / "a.png", 1)
    images = imagenet.find_images(tmp_path)
    names = ImageNetInfo("imagenet22k").label_names()
    assert imagenet.find_truth(images, 21841).right == ((names.index(SYNSETS[0]),), (names.index(SYNSETS[1]),))
    with pytest.raises(ValueError, match="a model of 10 classes has no ImageNet labels"):
        imagenet.find_truth(images, 10)


def test_the_mirror_image_counts_as_much(tmp_path, weights, photos):
    model = timm.create_model(MICRO, checkpoint_path=str(weights / f"{MICRO}.pth")).eval()
    batch = torch.randn(3, 3, 160, 160)
    scores, seconds = imagenet._timed(model, batch, settings(tta=True))
    with torch.inference_mode():
        expected = (model(batch).softmax(-1) + model(batch.flip(3)).softmax(-1)) / 2
    torch.testing.assert_close(scores, expected)
    assert seconds > 0
    half, _ = imagenet._timed(model, batch, settings(bf16=True))
    assert half.dtype == torch.float32
    assert not torch.equal(half, imagenet._timed(model, batch, settings())[0])


def test_many_models_go_on_where_an_earlier_call_stopped(photos, weights, tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    torch.save({"alien": torch.randn(2)}, folder / "test_vit2.pth")
    out = tmp_path / "out"
    options = ("--models", "test_vit,test_vit2", "--data", photos, "--weights", folder, "--workers", 0, "-o", out)
    result = call(*options, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "test_vit2" in result.stdout
    assert "was not measured: ValueError" in result.stdout
    with (out / "results.csv").open() as file:
        rows = {row["model"].partition(".")[0]: row for row in csv.DictReader(file)}
    assert set(rows) == {"test_vit", "test_vit2"}
    assert rows["test_vit"]["error"] == ""
    assert float(rows["test_vit"]["top5"]) >= float(rows["test_vit"]["top1"])
    assert "does not fit test_vit2" in rows["test_vit2"]["error"]

    measured = []
    original = imagenet.evaluate_model
    monkeypatch.setattr(imagenet, "evaluate_model", lambda *a, **k: measured.append(a) or original(*a, **k))
    assert call(*options, "--device", "cpu").exit_code == 0
    assert not measured  # the one is done, the other does not get so far
    assert call(*options, "--device", "cpu", "--again").exit_code == 0
    assert len(measured) == 1
    assert call(*options, "--device", "cpu", "--tta").exit_code == 0  # other settings are another result
    assert len(measured) == 2
    (folder / f"{MICRO}.pth").touch()
    shutil.copy(folder / f"{MICRO}.pth", folder / "copy.pth")
    torch.save(timm.create_model(MICRO).half().state_dict(), folder / f"{MICRO}.pth")  # another file
    assert call(*options, "--device", "cpu").exit_code == 0
    assert len(measured) == 3


@pytest.mark.slow
def test_a_model_of_the_zoo_is_measured_beside_the_published_figure(photos, tmp_path):
    torch.save(visionattn.create_model(NAME).state_dict(), tmp_path / "random.pth")
    options = ("--model", NAME, "--data", photos, "--weights", tmp_path / "random.pth", "--workers", 0)
    result = call(*options, "-o", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 0, result.output
    (file,) = (tmp_path / "out").glob("*.json")
    found = json.loads(file.read_text())
    assert found["published_top1"] == visionattn.info(NAME).top1
    assert found["difference"] is None  # these images are not ImageNet's
    assert found["preprocessing"]["crop_pct"] == 1.0


def test_where_the_authors_squash_images_so_does_the_evaluation():
    squashed = ("va_dat_tiny", "va_datpp_base", "va_agent_swin_tiny", "va_inline_pvt_tiny", "va_flatten_cswin_tiny")
    for name in squashed:
        assert timm.get_pretrained_cfg(name).crop_mode == "squash"
    assert timm.get_pretrained_cfg("va_nat_tiny").crop_mode == "center"


def test_patterns_find_models_and_tags(tmp_path):
    assert {"va_nat_mini.in1k", "va_nat_tiny.in1k"} <= set(imagenet.find_models(["va_nat_*"]))
    assert imagenet.find_models(["va_swin_tiny"]) == ["va_swin_tiny.in1k"]
    assert imagenet.find_models(["va_swin_tiny.in22k_ft_in1k"]) == ["va_swin_tiny.in22k_ft_in1k"]
    (tmp_path / "va_swin_tiny.in22k_ft_in1k.safetensors").touch()
    assert imagenet.find_models(["va_swin_*"], tmp_path) == ["va_swin_tiny.in22k_ft_in1k"]
    with pytest.raises(ValueError, match="unknown model 'va_nta_tiny'; did you mean va_nat_tiny"):
        imagenet.find_models(["va_nta_tiny"])
    with pytest.raises(ValueError, match="there is no file for any of"):
        imagenet.find_models(["va_nat_*"], tmp_path)


def test_unreadable_images_are_counted_or_stop_the_evaluation(photos, weights, tmp_path):
    bad = photos / "val" / SYNSETS[3] / "bad.png"
    bad.write_bytes(b"\x89PNG and no more")
    (result,) = imagenet.evaluate([MICRO], photos, tmp_path / "out", weights, settings())
    assert (result["images"], result["unreadable"]) == (6, [str(bad)])
    with pytest.raises(ValueError, match=r"bad\.png cannot be read"):
        imagenet.evaluate([MICRO], photos, tmp_path / "out", weights, settings(on_bad_image="raise"), again=True)


class Labelled(list):
    """Contents and labels, as data sets have them."""

    classes = SYNSETS

    def content(self, index):
        return self[index][0]

    def label(self, index):
        return self[index][1]


def test_tar_files_and_shards_are_measured_as_the_folder_is(photos, weights, tmp_path):
    from visionattn.data import write_shards

    files = sorted((photos / "val").rglob("*.png"))
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "val.tar", "w") as archive:
        for path in files:
            archive.add(path, path.relative_to(photos / "val"))
    samples = [(path.read_bytes(), SYNSETS.index(path.parent.name)) for path in files]
    samples.insert(2, (samples[2][0][:99], 3))
    write_shards(Labelled(samples), tmp_path / "shards", "val", 4)
    results = [
        imagenet.evaluate([MICRO], data, tmp_path / f"out{i}", weights, settings())[0]
        for i, data in enumerate((photos, tmp_path / "tar", tmp_path / "tar" / "val.tar", tmp_path / "shards"))
    ]
    figures = [(r["top1"], r["top5"], r["images"], r["labels"]) for r in results]
    assert figures[0][2] == 6 and figures == figures[:1] * 4
    assert [len(r["unreadable"]) for r in results] == [0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"val-000000\.tar:.* cannot be read"):
        raising = settings(on_bad_image="raise")
        imagenet.evaluate([MICRO], tmp_path / "shards", tmp_path / "out", weights, raising)


def test_numbers_are_the_labels_of_shards_without_names(tmp_path):
    from visionattn.data import write_shards

    grey = {7: 10, 300: 20}
    contents = []
    for label, value in grey.items():
        write_grey(tmp_path / "a.png", value)
        contents.append(((tmp_path / "a.png").read_bytes(), label))
    write_shards(Labelled(contents), tmp_path / "shards", "val")
    (tmp_path / "shards" / "classes.txt").unlink()
    images = imagenet.find_images(tmp_path / "shards")
    truth = imagenet.find_truth(images, 1000)
    assert (truth.name, truth.right) == ("subset", ((7,), (300,)))
    ranking = {value: [label] for label, value in grey.items()}.__getitem__
    assert imagenet.evaluate_model(Oracle(ranking), images, truth, settings())["top1"] == 100.0


def test_wrong_input_is_named_before_any_work(tmp_path, weights, photos):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "named", ["cat", "dog"])
    write_grey(tmp_path / "mixed" / SYNSETS[0] / "a.png", 1)
    write_grey(tmp_path / "mixed" / "b.png", 1)
    good = ("--model", MICRO, "--weights", weights, "--workers", 0)
    for arguments, message in (
        ((*good, "--data", tmp_path / "nowhere"), "there is no such folder"),
        ((*good, "--data", tmp_path / "empty"), "has no images"),
        ((*good, "--data", tmp_path / "named"), "2 of 2 folders are no classes of a model of 1000 (cat, dog)"),
        ((*good, "--data", tmp_path / "mixed"), "lies in no class folder"),
        (("--data", photos), "needs --data DIR, and either --model NAME or --models PATTERNS"),
        (("--model", MICRO, "--models", "x", "--data", photos), "either --model NAME or --models PATTERNS"),
        ((*good, "--data", photos, "--labels", "all"), "labels='all' must be one of auto, folders, real"),
        ((*good, "--data", photos, "--batch", 0), "batch=0 must be at least 1"),
        ((*good, "--data", photos, "--labels", "real"), "go by the names of the validation set's files"),
        (("--model", MICRO, "--data", photos, "--weights", tmp_path / "no.pth"), "there is no such file or folder"),
        (("--models", "va_*", "--data", photos, "--weights", weights / f"{MICRO}.pth"), "give a folder of files"),
    ):
        result = call(*arguments, "-o", tmp_path / "out")
        assert result.exit_code == 1
        text = " ".join((result.stdout + result.stderr).split())
        assert message in text
    result = typer_testing.CliRunner().invoke(cli.app, ["evaluate", "builtin/digits_nat-micro", "--model", "x"])
    assert "--model: for 'evaluate imagenet' only" in result.stderr
