# SPDX-License-Identifier: Apache-2.0
"""Several processes: torchrun or Slurm, with NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size, is_distributed, is_main_process

from visionattn.openmmlab.sharding import FULLY_SHARD

LAUNCHERS = ("none", "pytorch", "slurm")
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Slurm's variables, and what PyTorch calls them.
SLURM = {"SLURM_PROCID": "RANK", "SLURM_LOCALID": "LOCAL_RANK", "SLURM_NTASKS": "WORLD_SIZE"}

TIMEOUT = 1800  # seconds; as PyTorch has it
# What gloo and NCCL say where the other end of a connection is gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "NCCL error", "watchdog")


def started(launcher: str) -> bool:
    """Whether this process is one of those that the launcher started; always true of "none".

    Raises:
        ValueError: There is no such launcher.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher={launcher!r} must be one of {', '.join(map(repr, LAUNCHERS))}")
    needed: Sequence[str] = {"none": (), "pytorch": TORCHRUN, "slurm": tuple(SLURM)}[launcher]
    return all(name in os.environ for name in needed)


def hand_over(arguments: Sequence[str], processes: int | None = None, restarts: int = 0) -> int:
    """Run the command line with `arguments` in processes of torchrun; the exit code.

    Args:
        arguments: As after `visionattn`.
        processes: How many; None for one a GPU.
        restarts: How often all processes begin again after one of them ended badly.

    Raises:
        ValueError: `processes` is not positive, or None where there is no GPU; or `restarts` is negative.
    """
    if processes is None:
        processes = torch.cuda.device_count()
        if not processes:
            raise ValueError("launcher='pytorch' starts one process a GPU, and there is none here; give --processes N")
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    if restarts < 0:
        raise ValueError(f"restarts={restarts} must not be negative")
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    torchrun += [f"--max-restarts={restarts}"] if restarts else []
    return subprocess.call([sys.executable, *torchrun, "-m", "visionattn.cli", *arguments])


def ended_badly(work_dir: str | os.PathLike[str]) -> str:
    """What to say, and to do, where a process of the job ended badly."""
    last = Path(work_dir, "last.pth")
    left = f"{last} is whole: --resume auto goes on from it" if last.is_file() else "there is no checkpoint yet"
    return f"a process of the job ended badly (see above), and the others were ended with it; {left}"


def restarted() -> bool:
    """Whether torchrun started this process again, after one of the job ended badly."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Raises ConnectionError, with what to do, where a process of the job is gone in the midst of its work."""
    try:
        yield
    except RuntimeError as error:
        if not is_distributed() or not any(sign in str(error) for sign in LOST):
            raise
        raise ConnectionError(
            f"process {get_rank()} of {get_world_size()} lost another one of the job ({str(error).splitlines()[0]}); "
            "the last checkpoint is whole: start the job again with --resume auto"
        ) from error


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return is_main_process()


def join(cfg: Config, launcher: str) -> None:
    """Prepare `cfg` for this process, and, without GPUs, join the group, which mmengine does on GPUs only.

    Raises:
        ValueError: The launcher is unknown or did not start this process.
    """
    if not started(launcher):
        how = "torchrun --nproc-per-node=N -m visionattn.cli train …" if launcher == "pytorch" else "srun visionattn …"
        raise ValueError(f"launcher={launcher!r}: this process was not started by it; use {how}")
    cfg.launcher = launcher
    if launcher == "none" or torch.cuda.is_available():
        return
    given = cfg.get("model_wrapper_cfg") or {}
    if given.get("type") != FULLY_SHARD:
        # DDP takes no devices on a CPU.
        wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False}
        wrapper["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
        cfg.model_wrapper_cfg = {**wrapper, **given, "device_ids": None}
    _join_gloo(cfg, launcher)


def _join_gloo(cfg: Config, launcher: str) -> None:
    if is_distributed():
        return
    if launcher == "slurm":
        _take_over_slurm()
    seconds = ((cfg.get("env_cfg") or {}).get("dist_cfg") or {}).get("timeout", TIMEOUT)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=seconds))


def _take_over_slurm() -> None:
    for theirs, ours in SLURM.items():
        os.environ[ours] = os.environ[theirs]
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ["SLURM_NODELIST"]
        names = subprocess.run(["scontrol", "show", "hostname", nodes], capture_output=True, text=True, check=True)
        os.environ["MASTER_ADDR"] = names.stdout.split()[0]
