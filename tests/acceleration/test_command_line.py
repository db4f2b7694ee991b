# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("mmengine")

from visionattn import cli  # noqa: E402

CONFIG = """
_base_ = ["{tiny}"]
model = dict(
    _delete_=True,
    type="TimmClassifier",
    name="swin_tiny_patch4_window7_224",
    num_classes=10,
    kwargs=dict(img_size=(24, 16), window_size=3, embed_dim=8, depths=(1, 2), num_heads=(1, 2)),
)
"""


def call(*arguments):
    result = typer_testing.CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def logged(folder):
    return "".join(path.read_text() for path in folder.rglob("*.log"))


def test_training_and_evaluation_take_accelerate_and_their_checkpoints_go_either_way(tmp_path):
    config, run = tmp_path / "swin.py", tmp_path / "run"
    config.write_text(CONFIG.format(tiny=Path(__file__).parents[1] / "openmmlab" / "tiny.py"))
    call("train", config, "train_cfg.max_epochs=1", "--work-dir", run, "--accelerate")
    assert "accelerated 3 modules" in logged(run)
    metrics = {}
    for flag in ("", "--accelerate"):
        folder = tmp_path / f"with{flag}"
        call("evaluate", config, run / "last.pth", "-o", folder / "metrics.json", *flag.split())
        metrics[flag] = json.loads((folder / "metrics.json").read_text())["metrics"]
        assert ("accelerated 3 modules" in logged(folder)) == bool(flag)
    assert metrics[""] == pytest.approx(metrics["--accelerate"], abs=1e-3)


def test_models_are_benchmarked(tmp_path):
    file = tmp_path / "speed.json"
    arguments = ("--sizes", "32", "--batch", "1,2", "--rounds", "2", "--device", "cpu")
    output = call("benchmark", "test_vit", "halonet26t", *arguments, "-o", file)
    assert [result["batch"] for result in json.loads(file.read_text())["results"]] == [1, 2, 1, 2]
    assert "images/s" in output
    assert "peak MiB" not in output  # measured on GPUs only
    assert "halonet26t was not measured: AssertionError" in output
    nothing = typer_testing.CliRunner().invoke(cli.app, ["benchmark", "halonet26t", *arguments])
    assert nothing.exit_code == 1
