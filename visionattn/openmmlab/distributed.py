# SPDX-License-Identifier: Apache-2.0
"""Several processes: torchrun or Slurm, with NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed, is_main_process

LAUNCHERS = ("none", "pytorch", "slurm")
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Slurm's variables, and what PyTorch calls them.
SLURM = {"SLURM_PROCID": "RANK", "SLURM_LOCALID": "LOCAL_RANK", "SLURM_NTASKS": "WORLD_SIZE"}


def started(launcher: str) -> bool:
    """Whether this process is one of those that the launcher started; always true of "none".

    Raises:
        ValueError: There is no such launcher.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher={launcher!r} must be one of {', '.join(map(repr, LAUNCHERS))}")
    needed: Sequence[str] = {"none": (), "pytorch": TORCHRUN, "slurm": tuple(SLURM)}[launcher]
    return all(name in os.environ for name in needed)


def hand_over(arguments: Sequence[str], processes: int | None = None) -> int:
    """Run the command line with `arguments` in processes of torchrun; the exit code.

    Args:
        arguments: As after `visionattn`.
        processes: How many; None for one a GPU.

    Raises:
        ValueError: `processes` is not positive, or None where there is no GPU.
    """
    if processes is None:
        processes = torch.cuda.device_count()
        if not processes:
            raise ValueError("launcher='pytorch' starts one process a GPU, and there is none here; give --processes N")
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return subprocess.call([sys.executable, *torchrun, "-m", "visionattn.cli", *arguments])


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
    # DDP takes no devices on a CPU.
    wrapper = {"type": "MMDistributedDataParallel", "broadcast_buffers": False}
    wrapper["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
    cfg.model_wrapper_cfg = {**wrapper, **(cfg.get("model_wrapper_cfg") or {}), "device_ids": None}
    if is_distributed():
        return
    if launcher == "slurm":
        _take_over_slurm()
    torch.distributed.init_process_group("gloo")


def _take_over_slurm() -> None:
    for theirs, ours in SLURM.items():
        os.environ[ours] = os.environ[theirs]
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ["SLURM_NODELIST"]
        names = subprocess.run(["scontrol", "show", "hostname", nodes], capture_output=True, text=True, check=True)
        os.environ["MASTER_ADDR"] = names.stdout.split()[0]
