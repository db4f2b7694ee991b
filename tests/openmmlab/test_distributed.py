# SPDX-License-Identifier: Apache-2.0
"""Several processes train what one does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
typer_testing = pytest.importorskip("typer.testing")

import dense_sets  # noqa: E402

from visionattn import cli  # noqa: E402
from visionattn.openmmlab import distributed, load_config, read_checkpoint, tasks  # noqa: E402

HERE = Path(__file__).parent
SEGMENTATION = HERE / "tiny_segmentation.py"
# Dropped paths and pixels differ from process to process. SGD, as Adam makes much of rounding where gradients are 0.
PLAIN = (
    "model.backbone.drop_path_rate=0.0",
    "model.decode_head.dropout_ratio=0.0",
    "optim_wrapper.optimizer.type=SGD",
    "optim_wrapper.optimizer.lr=0.05",
    "train_cfg.max_iters=6",
    "train_cfg.val_interval=3",
)
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NODELIST")


def command_line(*arguments, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), **environment}
    command = [sys.executable, "-m", "visionattn.cli", *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def call(*arguments):
    return typer_testing.CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture
def ade(tmp_path):
    dense_sets.write_ade(tmp_path / "ade", np.random.default_rng(), train=8, val=5)
    return tmp_path / "ade"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="would take as many GPUs")
@pytest.mark.parametrize("sampler", ["InfiniteSampler", "DefaultSampler"])
def test_two_processes_train_what_one_trains_with_twice_the_batch(sampler, ade, tmp_path):
    changes = (*PLAIN, f"train_dataloader.sampler.type={sampler}")
    cfg = load_config(SEGMENTATION, (*changes, "train_dataloader.batch_size=4"), ade)
    alone = tasks.train(cfg, tmp_path / "one")
    arguments = ("train", SEGMENTATION, *changes, "--data", ade, "--work-dir", tmp_path / "two")
    done = command_line(*arguments, "--launcher", "pytorch", "--processes", 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("last step 6") == 1
    one, two = (read_checkpoint(tmp_path / name / "last.pth") for name in ("one", "two"))
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(
            two["state_dict"][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )
    # The five validation images are shared between the processes and counted once each.
    measured = two["meta"]["metrics"]
    assert measured == pytest.approx({k: v for k, v in alone["last"].items() if k != "step"}, abs=0.5)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="would take as many GPUs")
def test_a_process_that_fails_ends_the_others(ade, tmp_path):
    file = sorted((ade / "images" / "training").iterdir())[0]
    file.write_bytes(b"no image")
    arguments = ("train", SEGMENTATION, *PLAIN, "--data", ade, "--work-dir", tmp_path / "run")
    done = command_line(*arguments, "--launcher", "pytorch", "--processes", 2)
    assert done.returncode != 0
    assert file.name in done.stderr


@pytest.mark.slow
def test_one_process_under_the_launchers_variables_trains_in_a_group(ade, tmp_path):
    """What torchrun and srun set, without their daemons."""
    port = str(np.random.default_rng().integers(20000, 60000))
    slurm = dict(zip(SLURM, ("0", "0", "1", "localhost"), strict=True))
    arguments = ("train", SEGMENTATION, *PLAIN, "train_cfg.max_iters=1", "--data", ade, "--work-dir", tmp_path / "run")
    done = command_line(*arguments, "--launcher", "slurm", MASTER_ADDR="localhost", MASTER_PORT=port, **slurm)
    if torch.cuda.is_available():
        pytest.skip("mmengine joins the group on GPUs")
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "run" / "last.pth")["meta"]["iter"] == 1


def test_wrong_launchers_are_errors_before_any_work(ade, tmp_path, monkeypatch):
    for name in (*distributed.TORCHRUN, *SLURM):
        monkeypatch.delenv(name, raising=False)
    arguments = ("train", SEGMENTATION, "--data", ade, "--work-dir", tmp_path / "run", "--launcher")
    for more, message in {
        ("mpi",): "launcher='mpi' must be one of 'none', 'pytorch', 'slurm'",
        ("slurm",): "use srun visionattn",
        ("pytorch", "--processes", 0): "processes=0 must be at least 1",
    }.items():
        result = call(*arguments, *more)
        assert result.exit_code == 1
        assert message in result.stderr
    if not torch.cuda.is_available():
        result = call(*arguments, "pytorch")
        assert "give --processes N" in result.stderr
    with pytest.raises(ValueError, match="not started by it; use torchrun"):
        tasks.train(load_config(SEGMENTATION, (), ade), tmp_path / "run", launcher="pytorch")
    assert not (tmp_path / "run").exists()


def test_torchrun_gets_the_whole_command(monkeypatch, ade, tmp_path):
    for name in distributed.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    seen = []
    monkeypatch.setattr(subprocess, "call", lambda command: seen.extend(command) or 3)
    result = call(
        "train", SEGMENTATION, "train_cfg.max_iters=1", "--resume", "auto", "--data", ade, "--work-dir", tmp_path,
        "--launcher", "pytorch", "--processes", 2, "--accelerate",
    )  # fmt: skip
    assert result.exit_code == 3
    assert "--nproc-per-node=2" in seen
    given = seen[seen.index("visionattn.cli") + 1 :]
    assert given == [
        "train", str(SEGMENTATION), "train_cfg.max_iters=1", "auto", "--data", str(ade), "--work-dir", str(tmp_path),
        "--launcher", "pytorch", "--resume", "--accelerate",
    ]  # fmt: skip
