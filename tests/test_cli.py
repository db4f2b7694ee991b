# SPDX-License-Identifier: Apache-2.0
import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

typer_testing = pytest.importorskip("typer.testing")

from visionattn import cli  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
TINY = str(Path(__file__).parent / "openmmlab" / "tiny.py")
COMMANDS = ("train", "evaluate", "predict", "export", "benchmark", "convert", "tune", "zoo", "doctor")


def call(*arguments):
    return typer_testing.CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    pytest.importorskip("mmengine")
    folder = tmp_path_factory.mktemp("run")
    result = call("train", TINY, "train_cfg.max_epochs=1", "--work-dir", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_tools_are_the_commands():
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} >= set(COMMANDS)
    for command in COMMANDS:
        assert f'main(["{command}", *sys.argv[1:]])' in (ROOT / "tools" / f"{command}.py").read_text()


def test_help_and_the_zoo_come_without_pytorch():
    code = "import sys; sys.argv = ['visionattn']; from visionattn import cli\n"
    code += "for line in (['--help'], ['zoo'], ['zoo', 'nat*', '--json'], ['zoo', '--mixers']):\n"
    code += "    try: cli.main(line)\n    except SystemExit as end: assert not end.code\n"
    code += "assert not {'torch', 'timm'} & set(sys.modules); import visionattn\n"
    code += "visionattn.create_model; import timm; assert timm.is_model('va_nat_tiny')"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)


def test_training_prints_a_summary_and_evaluation_repeats_its_figures(trained, tmp_path):
    summary = json.loads((trained / "summary.json").read_text())
    # The run's own copy of the config holds the overrides.
    result = call("evaluate", trained / "tiny.py", trained / "last.pth", "-o", tmp_path / "m.json")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "m.json").read_text())["metrics"]
    assert {"epoch": 1, **metrics} == summary["last"]
    assert f"{metrics['top1']:.2f} %" in result.output


def test_predictions_are_drawn_for_files_and_for_test_samples(trained, tmp_path):
    import cv2

    image = tmp_path / "photo.png"
    cv2.imwrite(str(image), np.random.default_rng().integers(0, 256, (31, 45, 3), dtype=np.uint8))
    result = call("predict", TINY, trained / "last.pth", image, "-o", tmp_path / "one.png")
    assert result.exit_code == 0, result.output
    assert "1 predictions drawn" in result.output
    assert call("predict", TINY, trained / "last.pth", "--samples", 5, "-o", tmp_path / "five.png").exit_code == 0
    assert cv2.imread(str(tmp_path / "five.png")).std() > 1


def test_a_config_and_its_checkpoint_are_exported(trained, tmp_path):
    pytest.importorskip("onnxruntime")
    output, report = tmp_path / "m.onnx", tmp_path / "m.json"
    result = call("export", TINY, trained / "last.pth", "-o", output, "--json", report)
    assert result.exit_code == 0, result.output
    assert output.is_file()
    assert json.loads(report.read_text())["max_relative_difference"] <= 1e-4
    assert json.loads(report.read_text())["input_size"] == [3, 24, 16]


def test_a_model_name_is_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    result = call("export", "test_resnet", "--size", "33x48", "-o", tmp_path / "m.onnx")
    assert result.exit_code == 0, result.output
    assert "largest relative difference" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "builtin/digits_nat-mirco"), "nearest: builtin/digits_nat-micro"),
        (("train", TINY, "train_cfg.max_epoch=3"), "nearest: max_epochs"),
        (("train", TINY, "trian_cfg.max_epochs=3"), "nearest: train_cfg"),
        (("train", TINY, "modle=3"), "nearest: model"),
        (("train", TINY, "train_cfg.max_epochs.deep=3"), "which has no keys"),
        (("train", TINY, "max_epochs"), "must have the form key=value"),
        (("train", TINY, "--data", "/nowhere/at/all"), "/nowhere/at/all does not exist"),
        (("train", TINY, "--work-dir", "{folder}", "model.name=test_vitt"), "test_vit"),
        (("train", TINY, "--work-dir", "{folder}", "model.kwargs.depht=3"), "depht"),
        (("train", TINY, "--work-dir", "{folder}", "--resume"), "last.pth does not exist"),
        (("evaluate", TINY, "/nowhere.pth"), "/nowhere.pth does not exist"),
        (("export", "va_nat_tny"), "va_nat_tiny"),
        (("export", "test_resnet", "--size", "12by8"), "'12by8' must look like"),
        (("zoo", "va_nat_tinny"), "nearest: va_nat_tiny"),
        (("benchmark", "va_nat_tinny"), "did you mean va_nat_tiny"),
        (("benchmark", "test_vit", "--batch", "1,few"), "'few' must be a whole number"),
        (("benchmark", "test_vit", "--dtype", "int8"), "dtype='int8' must be one of"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_what_would_be_right(arguments, message, tmp_path):
    pytest.importorskip("mmengine")
    result = call(*(argument.format(folder=tmp_path) for argument in arguments))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stderr.strip().splitlines()[-1].startswith("visionattn: error:")


def test_a_wrong_option_is_bad_usage():
    result = call("train", TINY, "--epochs", "3")
    assert result.exit_code == 2
    assert "--epochs" in result.stderr


@pytest.mark.parametrize(("module", "extra"), [("mmengine", "train"), ("onnxruntime", "export"), ("matplotlib", "viz")])
def test_a_missing_part_names_the_pip_line(module, extra):
    error = ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.sub")
    assert f'pip install "visionattn[{extra}]"' in cli.advice(error)


def test_an_error_in_a_loader_worker_is_said_without_its_traceback(tmp_path):
    pytest.importorskip("mmengine")
    for name in ("ant", "bee"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(4):
            (tmp_path / "data" / name / f"{i}.png").write_text("no image")
    changes = ("train_dataloader.num_workers=1", "train_dataloader.num_batch_per_epoch=None")
    stop = "train_dataloader.dataset.on_bad_image=raise"
    result = call("train", TINY, *changes, stop, "--data", tmp_path / "data", "--work-dir", tmp_path / "run")
    assert result.exit_code == 1
    assert "png is not an image" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_line_works_without_the_extras(tmp_path):
    code = f"""
import sys
sys.modules["mmengine"] = None
from visionattn.cli import main
main(["train", {TINY!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert 'pip install "visionattn[train]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_the_zoo_is_listed_as_table_json_and_markdown():
    from visionattn import info, list_models

    models = json.loads(call("zoo", "*nat_tiny*", "--json").stdout)
    names = [model["name"] for model in models]
    assert names == list_models("*nat_tiny*", tags=True)
    assert len(names) >= 2
    assert json.loads(json.dumps(dataclasses.asdict(info(names[0])), default=dict)) == models[0]
    markdown = call("zoo", "va_nat_*", "--markdown").stdout.splitlines()
    assert len(markdown) == 2 + len(list_models("va_nat_*", tags=True))
    assert all(line.count("|") == len(cli.listing.ZOO_COLUMNS) + 1 for line in markdown)
    assert call("zoo").exit_code == 0


def test_the_zoo_lists_mixers_with_their_cost():
    from visionattn.layers import MIXERS

    rows = {row["name"]: row for row in json.loads(call("zoo", "--mixers", "--json").stdout)}
    assert list(rows) == list(MIXERS)
    assert (rows["taylor"]["cost"], rows["taylor"]["arxiv"]) == ("O(N)", "2403.02920")
    assert rows["talking_heads"]["paper"] == "Talking-Heads Attention, arXiv 2003.02436"
    assert rows["pooled"]["summary"].endswith("so that cost is linear in the pixels.")
    markdown = call("zoo", "*linear*", "--mixers", "--markdown").stdout.splitlines()
    assert markdown[0] == "| mixer | cost | what it is | paper |" and len(markdown) >= 3
    table = call("zoo", "circular", "--mixers").stdout
    assert "O(N log N)" in table and "2504.06704" in table and "global" not in table
    wrong = call("zoo", "talkin_heads", "--mixers")
    assert wrong.exit_code != 0 and "nearest: talking_heads" in wrong.stderr


def test_the_zoo_shows_the_best_dense_results():
    def cells(name):
        header, _, row = (line.split(" | ") for line in call("zoo", name, "--markdown").stdout.splitlines())
        return dict(zip(header, row, strict=True))

    # Of Mask R-CNN and Cascade Mask R-CNN the latter is better; the mask AP is of the same detector.
    tiny = cells("va_nat_tiny.in1k")
    assert (tiny["box/mask AP"], tiny["mIoU"]) == ("51.4/44.5", "47.1")
    # RetinaNet has no masks, but Mask R-CNN has the higher box AP.
    assert cells("va_biformer_base.in1k")["box/mask AP"] == "48.6/43.7"
    twins = cells("va_twins_svt_base.in1k")
    assert (twins["box/mask AP"], twins["mIoU"]) == ("–", "47.4")
    table = call("zoo", "va_nat_tiny*").stdout
    assert "51.4/44.5" in table and "47.1" in table


def test_doctor_names_versions_backends_and_what_is_missing(monkeypatch):
    import timm
    import torch

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    output = call("doctor").stdout
    assert torch.__version__.split("+")[0] in output
    assert timm.__version__ in output
    assert "backend torch" in output
    assert 'pip install "visionattn[export]"' in output


def test_every_builtin_config_builds_and_has_a_docstring_with_its_command():
    pytest.importorskip("mmengine")
    from mmengine.registry import DATASETS, MODELS

    from visionattn.openmmlab import dense, load_config
    from visionattn.openmmlab.config import SCOPES, builtin_configs, task_of

    found = {name: file for name, file in builtin_configs().items() if name.startswith("builtin/")}
    assert "builtin/digits_nat-micro" in found
    for name, file in found.items():
        assert f"visionattn train {name}" in file.read_text()
        cfg = load_config(name)
        task = task_of(cfg)
        if task in SCOPES:
            if importlib.util.find_spec(SCOPES[task]) is not None:
                assert not dense.load_model(cfg).training
            continue
        model = MODELS.build(cfg.model).eval()
        if cfg.train_dataloader.dataset.type == "DigitsDataset":
            sample = DATASETS.build(cfg.train_dataloader.dataset)[0]
            assert model(sample["inputs"][None]).shape == (1, 10)
