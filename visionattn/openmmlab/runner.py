# SPDX-License-Identifier: Apache-2.0
"""mmengine's Runner with checkpoints that are written atomically and read without running code from them."""

from __future__ import annotations

import logging
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.dist import master_only
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import Tensor, nn

from visionattn._files import replacing


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Content of a training checkpoint, read with `weights_only=True`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, is no checkpoint, holds code, or has no `state_dict` of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), "")
        raise ValueError(
            f"checkpoint {path} is refused: it holds objects other than tensors and plain values, which could run "
            f"code. {found}"
        ) from error
    except (EOFError, RuntimeError, ValueError, LookupError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint {path} is truncated or not a PyTorch file") from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"checkpoint {path} has no 'state_dict' of tensors; it was not written by `visionattn train`")
    return content


def load_strictly(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load `state` into `model`, or raise one ValueError that lists all that is missing, unexpected and mis-shaped."""
    own = model.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "mis-shaped": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    found = [
        f"{len(entries)} {kind} ({', '.join(entries[:4])}{', …' if len(entries) > 4 else ''})"
        for kind, entries in problems.items()
        if entries
    ]
    if found:
        raise ValueError(f"checkpoint {source} does not fit the model: {'; '.join(found)}")
    model.load_state_dict(state)


@RUNNERS.register_module()
class AtomicRunner(Runner):
    """Runner whose checkpoints are complete or absent, hold only tensors and plain values, and load strictly.

    Its terminal shows warnings only, as the hooks show the progress; the log file has everything.
    """

    _config_text: str | None = None

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Logger whose terminal handler shows warnings only."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(max(handler.level, logging.WARNING))
        return logger

    @master_only
    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Write a checkpoint under a temporary name, then give it its own: a failure leaves an older file whole.

        Args:
            out_dir: A local folder.
            filename: Name of the file in it.
            file_client_args: Must be None: checkpoints are local files.
            save_optimizer: Keep what resuming needs of the optimizer.
            save_param_scheduler: Keep what resuming needs of the learning-rate schedule.
            meta: Plain values to keep; `epoch` and `iter` follow from the run where they are not given.
            by_epoch: Whether the epoch that is running counts as finished, else the step.
            backend_args: Must be None.
        """
        if file_client_args is not None or backend_args is not None:
            raise ValueError("file_client_args and backend_args must be None: checkpoints are local files")
        model = self.model.module if is_model_wrapper(self.model) else self.model
        checkpoint: dict[str, Any] = {
            "meta": {**self._run_facts(by_epoch), **(meta or {})},
            "state_dict": weights_to_cpu(model.state_dict()),
            "message_hub": {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}},
        }
        if save_optimizer:
            checkpoint["optimizer"] = self.optim_wrapper.state_dict()
        if save_param_scheduler and self.param_schedulers is not None:
            checkpoint["param_schedulers"] = [scheduler.state_dict() for scheduler in self.param_schedulers]
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        with replacing(Path(out_dir, filename)) as temporary:
            torch.save(checkpoint, temporary)

    def _run_facts(self, by_epoch: bool) -> dict[str, Any]:
        if self._config_text is None:
            self._config_text = self.cfg.pretty_text  # formatting takes half a second
        return {
            "epoch": self.epoch + by_epoch,
            "iter": self.iter + (not by_epoch),
            "cfg": self._config_text,
            "seed": self.seed,
            "experiment_name": self.experiment_name,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "mmengine_version": mmengine.__version__,
            "dataset_meta": getattr(self.train_dataloader.dataset, "metainfo", {}),
        }

    def load_checkpoint(
        self,
        filename: str,
        map_location: str | Callable = "cpu",
        strict: bool = True,
        revise_keys: list | None = None,
    ) -> dict[str, Any]:
        """Load the model's weights from a checkpoint that training wrote.

        Args:
            filename: A local file.
            map_location: As for `torch.load`.
            strict: Must be True: a checkpoint that does not fit is an error.
            revise_keys: Must be None, as the weights' names are our own.

        Returns:
            The checkpoint's content.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file cannot be read safely or does not fit the model; the message says where.
        """
        if not strict or revise_keys is not None:
            raise ValueError(f"strict={strict}, revise_keys={revise_keys}: checkpoints load strictly and as they are")
        checkpoint = read_checkpoint(filename, map_location)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        load_strictly(model, checkpoint["state_dict"], str(filename))
        self._has_loaded = True
        self.logger.info("loaded checkpoint %s", filename)
        return checkpoint
