# SPDX-License-Identifier: Apache-2.0
"""Many processes, weights spread over them, lost processes, restarts, and resuming within an epoch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

pytest.importorskip("mmengine")

from torch import nn  # noqa: E402

from visionattn.openmmlab import load_config, read_checkpoint, tasks  # noqa: E402
from visionattn.openmmlab.schedules import TimmOptimizer, TimmSchedule  # noqa: E402
from visionattn.openmmlab.sharding import _blocks  # noqa: E402
from visionattn.openmmlab.throughput import peak_tflops, utilization  # noqa: E402

HERE = Path(__file__).parent
TINY = HERE / "tiny.py"
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="would take as many GPUs")
# What is dropped differs from process to process.
UNDROPPED = ("model.kwargs.drop_path_rate=0.0", "train_cfg.max_epochs=2")
SGD = ("optim_wrapper.optimizer.type=SGD", "optim_wrapper.optimizer.lr=0.05")
# With the usual epsilon, Adam divides a key bias's gradient, which is rounding alone, by its own size.
ADAMW = ("optim_wrapper.optimizer.lr=0.003", "optim_wrapper.optimizer.eps=0.001")
PLAIN = (*UNDROPPED, *SGD)
SHARDED = 'model_wrapper_cfg = {"type": "FullyShard", "min_parameters": 1000}'
CLIPPED = 'optim_wrapper = {"clip_grad": {"max_norm": 0.5}}'


def written(file, *lines):
    """The tiny config with more lines."""
    file.write_text("\n".join((f"_base_ = {str(TINY)!r}", *lines)) + "\n")
    return file


def start(work_dir, *arguments, config=TINY, processes=2):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    command = [sys.executable, "-m", "visionattn.cli", "train", config, *arguments, "--work-dir", work_dir]
    command += ["--launcher", "pytorch", "--processes", processes]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([str(part) for part in command], env=env, text=True, start_new_session=True, **pipes)


def finish(process, seconds=240):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out + err


def train(work_dir, *overrides, config=TINY, **kwargs):
    return tasks.train(load_config(config, overrides), work_dir, **kwargs)


def state(work_dir, name="last"):
    return read_checkpoint(work_dir / f"{name}.pth")


def assert_close(one, other, **tolerances):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], msg=lambda text, k=key: f"{k}: {text}", **tolerances)


@no_gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "more"),
    [(2, ()), (4, ()), (2, (SHARDED,)), (4, (SHARDED, CLIPPED))],
    ids=["2 by DDP", "4 by DDP", "2 by FSDP", "4 by FSDP, clipped"],
)
def test_processes_train_what_one_trains_with_as_many_images(processes, more, tmp_path):
    alone = written(tmp_path / "alone.py", *(line for line in more if line != SHARDED))
    train(tmp_path / "one", *PLAIN, config=alone)
    together, part = written(tmp_path / "together.py", *more), f"train_dataloader.batch_size={16 // processes}"
    code, text = finish(start(tmp_path / "many", *PLAIN, part, config=together, processes=processes))
    assert code == 0, text
    one, many = state(tmp_path / "one"), state(tmp_path / "many")
    assert_close(many["state_dict"], one["state_dict"], rtol=1e-4, atol=1e-5)
    assert many["meta"]["iter"] == one["meta"]["iter"] == 6


@no_gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "kept"),
    [((*SGD, "optim_wrapper.optimizer.momentum=0.9"), "momentum_buffer"), (ADAMW, "exp_avg_sq")],
    ids=["SGD", "AdamW"],
)
def test_sharded_and_plain_runs_go_on_from_each_others_checkpoints(optimizer, kept, tmp_path):
    common = (*UNDROPPED, *optimizer, "param_scheduler.0.T_max=2", "param_scheduler.0.end=2")
    one_epoch, two_epochs = (*common, "train_cfg.max_epochs=1"), (*common, "train_cfg.max_epochs=2")
    halves = "train_dataloader.batch_size=8"
    config = written(tmp_path / "sharded.py", SHARDED)
    train(tmp_path / "plain", *two_epochs)
    code, text = finish(start(tmp_path / "sharded", *one_epoch, halves, config=config))
    assert code == 0, text
    between = state(tmp_path / "sharded")
    assert all(type(value) is torch.Tensor for value in between["state_dict"].values())
    assert type(between["optimizer"]["state"][0][kept]) is torch.Tensor
    train(tmp_path / "sharded", *two_epochs, resume=True)  # in one process
    assert_close(
        state(tmp_path / "sharded")["state_dict"], state(tmp_path / "plain")["state_dict"], rtol=1e-4, atol=1e-5
    )

    train(tmp_path / "other", *one_epoch)
    code, text = finish(start(tmp_path / "other", *two_epochs, halves, "--resume", config=config))
    assert code == 0, text
    assert_close(state(tmp_path / "other")["state_dict"], state(tmp_path / "plain")["state_dict"], rtol=1e-4, atol=1e-5)


def test_weights_are_spread_only_over_several_processes(tmp_path):
    with pytest.raises(ValueError, match="FullyShard' needs several processes"):
        train(tmp_path / "run", config=written(tmp_path / "sharded.py", SHARDED))
    assert not (tmp_path / "run" / "last.pth").exists()


def test_innermost_big_members_of_lists_are_gathered_on_their_own():
    small, big = nn.Linear(4, 4), nn.Linear(40, 40)
    block = nn.ModuleDict({"a": big})
    model = nn.Module()
    model.stages = nn.ModuleList([nn.Sequential(small, nn.Linear(40, 40)), block])
    model.head = nn.Linear(40, 40)  # goes with the model itself
    assert _blocks(model, 1000) == [model.stages[0][1], big]
    assert _blocks(model, 10**6) == []


class Killed(Exception):
    pass


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_resumed_within_an_epoch_ends_as_if_never_stopped(workers, tmp_path, monkeypatch):
    from visionattn.openmmlab.hooks import ProgressHook

    overrides = [f"train_dataloader.num_workers={workers}", "default_hooks.checkpoint.interval=2"]
    overrides += ["train_dataloader.num_batch_per_epoch=5", "train_cfg.max_epochs=2"]

    def config():
        cfg = load_config(TINY, overrides)
        cfg.model.mixup = {"mixup_alpha": 0.8}  # draws in the main process
        return cfg

    whole = tasks.train(config(), tmp_path / "whole")
    original = ProgressHook.after_train_iter

    def stopping(self, runner, *args, **kwargs):
        original(self, runner, *args, **kwargs)
        if runner.iter == 8:  # the ninth step, three into the second epoch
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ProgressHook, "after_train_iter", stopping)
        with pytest.raises(Killed):
            tasks.train(config(), tmp_path / "parts")
    meta = state(tmp_path / "parts")["meta"]
    assert (meta["epoch"], meta["iter"]) == (1, 8)
    resumed = tasks.train(config(), tmp_path / "parts", resume=True)
    assert_close(state(tmp_path / "parts")["state_dict"], state(tmp_path / "whole")["state_dict"], rtol=0, atol=0)
    assert resumed["last"] == whole["last"]
    assert (tmp_path / "parts" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def wait_for(path, process, seconds=120):
    begin = time.monotonic()
    while not path.exists():
        assert process.poll() is None, finish(process)[1]
        assert time.monotonic() - begin < seconds
        time.sleep(0.1)


def processes_of(work_dir):
    """Processes of the run in a work dir: number of its process on this machine, None for launchers, and id."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(work_dir).encode() in words:
            rank = [part.partition(b"=")[2] for part in variables if part.startswith(b"LOCAL_RANK=")]
            found.append((int(rank[0]) if rank else None, int(entry.name)))
    return found


def kill(work_dir, rank):
    (process,) = [process for number, process in processes_of(work_dir) if number == rank]
    os.kill(process, signal.SIGKILL)


@pytest.fixture
def work_dir(tmp_path):
    """A work dir whose processes are gone afterwards, whatever happened."""
    yield tmp_path / "run"
    for _, process in processes_of(tmp_path / "run"):
        os.kill(process, signal.SIGKILL)


LONG = ("train_cfg.max_epochs=400", "param_scheduler.0.T_max=400", "train_dataloader.num_batch_per_epoch=3")


@no_gpu
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_lost_process_ends_the_job_soon_and_the_next_one_goes_on(work_dir):
    process = start(work_dir, *LONG)
    wait_for(work_dir / "last.pth", process)
    kill(work_dir, 1)
    begin = time.monotonic()
    code, text = finish(process)
    assert time.monotonic() - begin < 60
    assert code != 0
    assert "a process of the job ended badly" in text
    assert "--resume auto goes on from it" in text
    epoch = state(work_dir)["meta"]["epoch"]
    shorter = (f"train_cfg.max_epochs={epoch + 2}", *LONG[1:])
    code, text = finish(start(work_dir, *shorter, "--resume", "auto"))
    assert code == 0, text
    assert state(work_dir)["meta"]["epoch"] == epoch + 2


@no_gpu
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_torchrun_starts_all_again_from_the_last_checkpoint(work_dir):
    process = start(work_dir, "train_cfg.max_epochs=60", "param_scheduler.0.T_max=60", "--restarts", 1)
    wait_for(work_dir / "last.pth", process)
    kill(work_dir, 0)
    code, text = finish(process)
    assert code == 0, text
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["mode"] == "val"]
    assert steps == sorted(set(steps))  # none is missing, none twice
    assert len(steps) == 60
    starts = sorted(work_dir.glob("2*"))  # a folder of logs for each start
    assert len(starts) == 2


def test_restarts_are_checked(tmp_path):
    typer_testing = pytest.importorskip("typer.testing")
    from visionattn import cli

    def call(*arguments):
        return typer_testing.CliRunner().invoke(cli.app, ["train", str(TINY), *map(str, arguments)])

    result = call("--restarts", 2, "--work-dir", tmp_path)
    assert "--restarts 2 needs --launcher pytorch" in result.stderr
    result = call("--restarts", -1, "--launcher", "pytorch", "--processes", 1, "--work-dir", tmp_path)
    assert "restarts=-1 must not be negative" in result.stderr
    result = call("--scale-lr", "--work-dir", tmp_path)
    assert "has no auto_scale_lr.base_batch_size" in result.stderr


def test_the_learning_rate_follows_the_images_of_a_step(tmp_path):
    cfg = load_config(TINY, ("train_cfg.max_epochs=1", "optim_wrapper.accumulative_counts=3"))
    cfg.auto_scale_lr = {"enable": False, "base_batch_size": 64}
    tasks.scale_learning_rate(cfg)
    tasks.train(cfg, tmp_path)
    groups = state(tmp_path)["optimizer"]["param_groups"]
    assert max(group["initial_lr"] for group in groups) == pytest.approx(3e-3 * 16 * 3 / 64)


def test_schedules_are_timms(tmp_path):
    from timm.scheduler import CosineLRScheduler

    def optimizer():
        groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": lr} for lr in (0.4, 0.1)]  # layer decay
        return torch.optim.SGD(groups, lr=0.4)

    ours = optimizer()
    schedule = TimmSchedule(ours, epoch_length=7, end=12, warmup_epochs=3, cooldown_epochs=2, min_factor=0.05)
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.4)
    timms = CosineLRScheduler(
        theirs, t_initial=70, lr_min=0.02, warmup_t=21, warmup_lr_init=4e-4, cycle_limit=1, t_in_epochs=False
    )
    timms.step_update(0)
    for step in range(84):
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"]), step
        assert ours.param_groups[1]["lr"] == pytest.approx(ours.param_groups[0]["lr"] / 4)
        ours.step()
        schedule.step()
        timms.step_update(step + 1)
    assert ours.param_groups[0]["lr"] == pytest.approx(0.02)
    assert all(isinstance(value, (int, float, list, str, bool, type(None))) for value in schedule.state_dict().values())
    steps = TimmSchedule(optimizer(), epoch_length=5, end=90, schedule="step", decay_epochs=30, decay_rate=0.1)
    assert [steps.factor(e * 5) for e in (0, 29, 30, 60)] == pytest.approx([1, 1, 0.1, 0.01])
    assert TimmSchedule(optimizer(), 5, 4, "constant").factor(19) == 1.0
    for wrong, message in (
        ({"schedule": "cosinus"}, "schedule='cosinus' must be one of"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1 must not be negative"),
        ({"cooldown_epochs": 9}, "nothing is left of 9 epochs"),
        ({"min_factor": 2}, r"min_factor=2 must lie in \[0, 1\]"),
        ({"by_epoch": False}, "counts epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            TimmSchedule(optimizer(), epoch_length=5, end=9, **wrong)


def test_optimizers_are_timms():
    groups = [{"params": [nn.Parameter(torch.randn(3, 3))], "weight_decay": 0.1}]
    assert type(TimmOptimizer(groups, "lamb", lr=0.1)).__name__ == "Lamb"
    with pytest.raises(ValueError, match="unknown optimizer 'lambda'"):
        TimmOptimizer(groups, "lambda", lr=0.1)


def test_speed_is_written_beside_the_metrics(tmp_path):
    cfg = load_config(TINY, ("train_cfg.max_epochs=2",))
    cfg.custom_hooks.append({"type": "ThroughputHook", "interval": 2})
    tasks.train(cfg, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "throughput.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0
    assert lines[0]["seconds_to_first_batch"] > 0
    assert [line["step"] for line in lines[1:]] == [2, 3, 4, 6]
    for line in lines[1:]:
        assert line["images_per_second"] == line["images_per_second_per_gpu"] > 0
        assert 0 <= line["data_share"] <= 1
        assert "mfu" not in line or torch.cuda.is_available()


def test_utilization_is_of_the_gpus_peak():
    assert peak_tflops("NVIDIA H100 80GB HBM3", half=True) == 989.4
    assert peak_tflops("NVIDIA A100-SXM4-80GB", half=False) == 156.0
    assert peak_tflops("NVIDIA H100 PCIe", half=True) is None
    assert peak_tflops("AMD EPYC 7B13", half=True) is None
    # 1,000 images a second at 4.3 GMACs: three passes of two operations each, of 989.4 TFLOP/s.
    assert utilization(1000, 4.3e9, 989.4) == pytest.approx(100 * 25.8 / 989.4)


@no_gpu
@pytest.mark.parametrize(
    ("optimizer", "peak"), [("OptimWrapper", 494.7), ("AutocastOptimWrapper", 989.4)], ids=["float32", "bfloat16"]
)
def test_utilization_is_written_where_the_gpus_peak_is_known(optimizer, peak, tmp_path, monkeypatch):
    from visionattn.models._macs import count_macs
    from visionattn.openmmlab.throughput import ThroughputHook

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    network = timm.create_model("test_vit", num_classes=3)
    runner = SimpleNamespace(
        model=SimpleNamespace(model=network),
        optim_wrapper=type(optimizer, (), {})(),
        work_dir=tmp_path,
        iter=0,
        visualizer=SimpleNamespace(add_scalars=lambda *_, **__: None),
    )
    hook, batch = ThroughputHook(interval=2), {"inputs": torch.randn(4, 3, 160, 160)}
    hook.before_train(runner)
    for runner.iter in range(2):
        hook.before_train_iter(runner, runner.iter, batch)
        hook.after_train_iter(runner, runner.iter, batch)
    last = json.loads((tmp_path / "throughput.jsonl").read_text().splitlines()[-1])
    macs = count_macs(network, (3, 160, 160))
    assert last["mfu"] == pytest.approx(100 * 6 * macs * last["images_per_second"] / (peak * 1e12), rel=1e-6)


@pytest.mark.parametrize("name", ["va_nat_tiny", "test_vit"])
def test_recomputing_and_layout_change_no_result(name):
    from visionattn.openmmlab import TimmClassifier

    kwargs = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "kernel_size": 3} if name == "va_nat_tiny" else {}
    size = 32 if name == "va_nat_tiny" else 160
    torch.manual_seed(int(np.random.default_rng().integers(2**31)))
    plain = TimmClassifier(name, 3, kwargs)
    other = TimmClassifier(name, 3, kwargs, grad_checkpointing=True, channels_last=True)
    other.load_state_dict(plain.state_dict())
    images, labels = torch.randn(2, 3, size, size), torch.tensor([0, 2])
    losses = []
    for model in (plain, other):
        loss = model.eval()(images, labels, "loss")["loss"]
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-5)


def test_compiling_changes_no_result_and_no_name():
    from visionattn.openmmlab import TimmClassifier

    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    kwargs = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "kernel_size": 3}
    torch._dynamo.reset()
    plain = TimmClassifier("va_nat_tiny", 3, kwargs).eval()
    compiled = TimmClassifier("va_nat_tiny", 3, kwargs, compile={"backend": backend, "fullgraph": True}).eval()
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    compiled.load_state_dict(plain.state_dict())
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    losses = [model(images, labels, "loss")["loss"] for model in (plain, compiled)]
    assert len(graphs) == 1
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for loss in losses:
        loss.backward()
    for one, two in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-6)


def test_a_model_that_cannot_recompute_is_named():
    from visionattn.openmmlab import TimmClassifier

    with pytest.raises(ValueError, match="model.grad_checkpointing=True: .* cannot recompute"):
        TimmClassifier("dla34", 3, grad_checkpointing=True)


def test_repeated_samples_are_augmented_differently():
    from visionattn.data import DigitsDataset
    from visionattn.openmmlab import RepeatedAugmentation

    pipeline = [{"type": "Affine", "rotate": (-40, 40), "p": 1.0}, {"type": "ToTensorV2"}]
    data = DigitsDataset(pipeline, "train", size=16)
    sampler = RepeatedAugmentation(data, seed=3)
    sampler.set_epoch(1)
    order = list(sampler)
    assert len(order) == len(sampler) == len(data)
    assert len({index % len(data) for index in order}) == -(-len(data) // 3)
    assert list(sampler) == order
    sampler.set_epoch(2)
    assert list(sampler) != order
    first, second = order[0], order[1]
    assert first % len(data) == second % len(data)
    assert data[first]["label"] == data[second]["label"]
    assert not torch.equal(data[first]["inputs"], data[second]["inputs"])
    with pytest.raises(ValueError, match=r"num_repeats=0"):
        RepeatedAugmentation(data, num_repeats=0)
