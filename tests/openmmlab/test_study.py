# SPDX-License-Identifier: Apache-2.0
"""Studies: configs trained and measured side by side, begun again where they stopped."""

import csv
import json

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
cv2 = pytest.importorskip("cv2")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner  # noqa: E402

from visionattn._memory import peak_bytes  # noqa: E402
from visionattn.cli import app  # noqa: E402
from visionattn.layers import MIXERS  # noqa: E402
from visionattn.openmmlab import load_config  # noqa: E402
from visionattn.openmmlab.study import Settings, cells, columns, find_study, run_study  # noqa: E402

MIB = 2**20


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Twelve pictures of two classes."""
    root = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng()
    for part, count in (("train", 4), ("val", 2)):
        for label in ("dark", "light"):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                low = 0 if label == "dark" else 128
                pixels = draws.integers(low, low + 128, (40, 40, 3), dtype=np.uint8)
                cv2.imwrite(str(root / part / label / f"{i}.png"), pixels)
    return root


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """One config that trains, and one that cannot be built."""
    folder = tmp_path_factory.mktemp("configs")
    base = find_study("builtin/mixers")["identity"].parents[2] / "_base_" / "mixer_study.py"
    for name, mixer in (("good", "pooling"), ("broken", "nothing")):
        text = f'_base_ = "{base}"\nmodel = dict(kwargs=dict(mixers=("identity", "identity", "{mixer}")))\n'
        (folder / f"{name}.py").write_text(text)
    (folder / "_shared.py").write_text("")
    return folder


def overrides():
    return ("train_cfg.max_epochs=1", "train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False")


def test_every_mixer_has_a_config_of_its_own():
    files = find_study("configs/builtin/mixers/")
    assert set(files) == set(MIXERS)
    for name, file in files.items():
        mixers = load_config(file).model.kwargs.mixers
        assert list(mixers) == ["identity", "identity", name]


def test_study_is_reported_and_goes_on_where_it_stopped(configs, images, tmp_path):
    settings, said = Settings((32, 64), str(images), overrides(), "cpu"), []
    broken, good = run_study(configs, tmp_path, settings, progress=said.append)
    assert "unknown mixer 'nothing'" in broken["error"] and "sizes" not in broken
    assert "Traceback" in (tmp_path / "broken" / "error.txt").read_text()
    assert good["error"] is None and good["mixer"] == "pooling" and good["cost"] == "O(N)"
    assert 0 <= good["top1"] <= 100 and good["epoch"] == 1
    for small, large in (("32", "64"),):
        assert good["sizes"][large]["gmacs"] > 3 * good["sizes"][small]["gmacs"] > 0
        assert good["sizes"][large]["peak_mib"] > good["sizes"][small]["peak_mib"] > 0
        assert 0 < good["sizes"][small]["latency_q1_ms"] <= good["sizes"][small]["latency_q3_ms"]
    assert json.loads((tmp_path / "study.json").read_text())["results"] == [broken, good]
    with (tmp_path / "study.csv").open() as file:
        header, first, second = csv.reader(file)
    assert header == columns((32, 64)) and second == cells(good, (32, 64))
    assert first[0] == "broken" and set(first[2:]) == {""}
    assert (tmp_path / "study.md").read_text().splitlines()[2].startswith("| good | O(N) |")

    written = (tmp_path / "good" / "result.json").stat().st_mtime_ns
    said.clear()
    assert run_study(configs, tmp_path, settings, progress=said.append)[1] == good
    assert (tmp_path / "good" / "result.json").stat().st_mtime_ns == written
    assert not any("good" in line for line in said) and any("broken" in line for line in said)
    with pytest.raises(ValueError, match=r"other settings \(sizes=\[32, 64\], now \[48\]\)"):
        run_study(configs, tmp_path, Settings((48,), str(images), overrides(), "cpu"))


@pytest.mark.slow
def test_study_of_several_processes_by_the_command_line(configs, images, tmp_path):
    arguments = ["study", str(configs), *overrides(), "-o", str(tmp_path), "--data", str(images), "--sizes", "32"]
    result = CliRunner().invoke(app, [*arguments, "--processes", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "broken failed: ValueError: unknown mixer 'nothing'" in result.output
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "builtin/mixrs"], "'builtin/mixrs' is no folder of configs"),
        (["study", "builtin/mixers", "--sizes", "0"], r"sizes=[0] must be"),
        (["study", "builtin/mixers", "--device", "tpu"], "device='tpu'"),
        (["study", "builtin/mixers", "--processes", "0"], "processes=0"),
        (["study", "builtin/mixers", "modl.name=x"], "nearest: model"),
    ],
)
def test_bad_input_is_named(arguments, message, tmp_path):
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path)])
    assert result.exit_code == 1 and message in result.output


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.randn(MIB // 4)

    def step():
        first = x + 1
        second = first * 2  # two held
        del first
        third = second + 1  # two held
        return third.sum() + (second - third).sum()  # three held

    found = peak_bytes(step, torch.device("cpu"))
    assert 3 * MIB <= found < 3.1 * MIB
