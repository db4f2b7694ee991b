# SPDX-License-Identifier: Apache-2.0
"""Published accuracy over measured throughput."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib")
typer_testing = pytest.importorskip("typer.testing")

from PIL import Image  # noqa: E402

from visionattn import benchmarking, cli  # noqa: E402
from visionattn.benchmarking import Measurement  # noqa: E402
from visionattn.viz import draw_tradeoff  # noqa: E402


def call(*arguments):
    return typer_testing.CliRunner().invoke(cli.app, ["benchmark", *map(str, arguments)])


def row(model, top1, speed, size=224, **more):
    return Measurement(model, more.pop("accelerated", False), (3, size, size), 1, top1=top1, top1_size=224,
                       images_per_second=speed, **more)  # fmt: skip


def test_models_with_both_figures_are_drawn_as_png_and_svg(tmp_path):
    results = [row("va_nat_tiny", 83.2, 40.0), row("va_nat_mini", 81.8, 70.0), row("va_swin_tiny", 81.2, 90.0),
               row("va_swin_tiny", 81.2, 120.0, accelerated=True), row("resnet50", None, 200.0),
               row("va_nat_base", 84.3, None)]  # fmt: skip
    drawn = benchmarking.comparable(results)
    files = draw_tradeoff(drawn, tmp_path / "speed.any", "on this machine", benchmarking.families(drawn))
    assert files == [tmp_path / "speed.png", tmp_path / "speed.svg"]
    with Image.open(files[0]) as image:
        assert image.size[0] > 600
        assert len(set(image.convert("L").tobytes())) > 20
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")
    text = files[1].read_text()
    assert "nat_tiny" in text
    assert "swin (accelerated)" in text
    assert "resnet50" not in text
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_tradeoff([], tmp_path / "none")
    assert not list(tmp_path.glob("none*"))


def test_an_accuracy_counts_only_at_the_size_it_holds_for():
    results = [row("va_nat_tiny", 83.2, 40.0), row("va_nat_tiny", 83.2, 15.0, size=384)]
    assert [found["images_per_second"] for found in benchmarking.comparable(results)] == [40.0]


def test_accuracies_come_from_timms_tables_and_from_our_own(tmp_path):
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    ours.write_text("model,top1,input_size\nresnet50.a1_in1k,80.2,3x224x224\nbroken,,\n")
    theirs.write_text("model,img_size,top1,top5\nresnet50,288,81.2,95.5\n")
    assert benchmarking.read_accuracies(ours) == {"resnet50.a1_in1k": (80.2, 224)}
    assert benchmarking.read_accuracies(theirs) == {"resnet50": (81.2, 288)}
    (completed,) = benchmarking.with_accuracies([row("resnet50", None, 3.0)], benchmarking.read_accuracies(ours))
    assert (completed.top1, completed.top1_size) == (80.2, 224)
    for text, message in (
        ("name,top1\na,1\n", "has no column model"),
        ("model,top1\na,good\n", "must be a percentage"),
    ):
        ours.write_text(text)
        with pytest.raises(ValueError, match=message):
            benchmarking.read_accuracies(ours)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        benchmarking.read_accuracies(tmp_path / "none.csv")


def test_the_command_draws_and_keeps_the_figures(tmp_path):
    table = tmp_path / "top1.csv"
    table.write_text("model,top1\ntest_vit,12.5\ntest_resnet,20\n")
    arguments = ("test_vit", "test_resnet", "--sizes", 32, "--batch", 1, "--rounds", 1, "--device", "cpu")
    result = call(*arguments, "--plot", tmp_path / "p.png", "--top1", table)
    assert result.exit_code == 0, result.output
    assert {file.name for file in tmp_path.iterdir()} == {"p.json", "p.png", "p.svg", "top1.csv"}
    kept = json.loads((tmp_path / "p.json").read_text())["results"]
    assert {found["model"]: found["top1"] for found in kept} == {"test_vit": 12.5, "test_resnet": 20.0}
    result = call(*arguments, "--plot", tmp_path / "q.png")
    assert result.exit_code == 1
    assert "nothing to draw" in result.stderr
    assert (tmp_path / "q.json").is_file()
