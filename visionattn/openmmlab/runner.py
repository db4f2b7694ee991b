# SPDX-License-Identifier: Apache-2.0
"""mmengine's Runner with checkpoints that are written atomically and read without running code from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.model import convert_sync_batchnorm, is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import Tensor, nn
from torch.utils.data import DataLoader

from visionattn._files import replacing
from visionattn.openmmlab.checkpoints import read_checkpoint
from visionattn.openmmlab.labels import check_labels
from visionattn.openmmlab.loading import guard, reproducible, why_empty
from visionattn.openmmlab.sharding import FULLY_SHARD, is_sharded, optimizer_parts, parts_like, shard, whole


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
    model.load_state_dict(parts_like(state, own))


def load_fitting(model: nn.Module, state: dict[str, Tensor], source: str) -> list[str]:
    """Load the entries of `state` that `model` has in the same shape, to fine-tune on other classes.

    Returns:
        Names of the model's entries that keep their values.

    Raises:
        ValueError: No entry fits.
    """
    own = model.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not fitting:
        raise ValueError(f"load_from={source!r}: none of its {len(state)} entries fits the model")
    model.load_state_dict(parts_like(fitting, own), strict=False)
    return [key for key in own if key not in fitting]


@RUNNERS.register_module()
class AtomicRunner(Runner):
    """Runner whose checkpoints are complete or absent, hold only tensors and plain values, and load strictly.

    Its terminal shows warnings only, as the hooks show the progress; the log file has everything.
    """

    _config_text: str | None = None
    _train_dataloader: Any

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Loader whose errors name the file; see `Runner.build_dataloader`.

        Raises:
            ValueError: The data set has no samples.
        """
        try:
            loader = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        except ValueError as error:
            # What mmengine's list of samples says when it is empty.
            if isinstance(dataloader, dict) and "need at least one array" in str(error):
                raise ValueError(f"the data set has no samples left: {why_empty(dataloader['dataset'])}") from error
            raise
        guard(loader.dataset)
        return loader

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Loop whose samples follow from the seed alone, and which resumes at its place in the data."""
        if isinstance(loop, BaseLoop):
            return loop
        loop, settings = dict(loop), self._train_dataloader
        if not loop.pop("by_epoch", True) or loop.get("type") == "IterBasedTrainLoop":
            loop["type"] = "ResumableIterLoop"
        elif loop.get("type", "EpochBasedTrainLoop") == "EpochBasedTrainLoop":
            loop["type"] = "ResumableEpochLoop"
        if isinstance(settings, dict):
            different = self._randomness_cfg.get("diff_rank_seed", False)
            self._train_dataloader = reproducible(self.build_dataloader(settings, self.seed, different), self.seed)
        try:
            return self._with_fitting_labels(super().build_train_loop(loop))
        finally:
            self._train_dataloader = settings  # mmengine reads the batch size there

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Loop whose labels the model knows."""
        return self._with_fitting_labels(super().build_val_loop(loop))

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Loop whose labels the model knows."""
        return self._with_fitting_labels(super().build_test_loop(loop))

    def _with_fitting_labels(self, loop: BaseLoop) -> BaseLoop:
        check_labels(self.model, loop.dataloader.dataset)
        return loop

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Logger whose terminal handler shows warnings only."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(max(handler.level, logging.WARNING))
        return logger

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Model for several processes; `model_wrapper_cfg.type="FullyShard"` spreads its weights over them.

        Raises:
            ValueError: The weights cannot be spread: there is one process, or they are averaged by a hook.
        """
        if (model_wrapper_cfg or {}).get("type") != FULLY_SHARD:
            return super().wrap_model(model_wrapper_cfg, model)
        if not self.distributed:
            raise ValueError("model_wrapper_cfg.type='FullyShard' needs several processes: --launcher pytorch or slurm")
        hooks = [*(self.cfg.get("custom_hooks") or ()), *(self.cfg.get("default_hooks") or {}).values()]
        if any(hook and hook.get("type") == "EMAHook" for hook in hooks):
            raise ValueError(
                "model_wrapper_cfg.type='FullyShard' and EMAHook: averaged weights are not spread over processes; "
                "take one of both, default_hooks.ema=None for instance"
            )
        model = model.to(get_device())
        initialised: Any = model
        if hasattr(initialised, "init_weights"):
            initialised.init_weights()  # whole, as one process draws them
        if self.cfg.get("sync_bn") is not None:
            model = convert_sync_batchnorm(model, self.cfg.sync_bn)
        for tensor in (*model.parameters(), *model.buffers()):
            torch.distributed.broadcast(tensor.data, 0)
        settings = {key: value for key, value in (model_wrapper_cfg or {}).items() if key != "type"}
        try:
            return shard(model, **settings)
        except TypeError as error:
            raise ValueError(f"model_wrapper_cfg: {error}; FullyShard knows min_parameters and dtype") from None

    def _init_model_weights(self) -> None:
        if not is_sharded(self.model):
            super()._init_model_weights()

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rate to the images of a step, those of all processes and accumulated steps."""
        base = (auto_scale_lr or {}).get("base_batch_size")
        if auto_scale_lr is None or not base:
            return
        accumulated = getattr(optim_wrapper, "_accumulative_counts", 1)
        super().scale_lr(optim_wrapper, {**auto_scale_lr, "base_batch_size": base / accumulated})

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

        The main process writes. Checkpoints of weights that are spread over processes hold them whole.

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
        sharded = is_sharded(model)
        if not (sharded or is_main_process()):
            return
        # What is spread over processes is gathered by all of them.
        state = whole(dict(model.state_dict())) if sharded else weights_to_cpu(model.state_dict())
        optimizer = self.optim_wrapper.state_dict() if save_optimizer else None
        optimizer = whole(optimizer) if sharded else optimizer
        if not is_main_process():
            return
        checkpoint: dict[str, Any] = {
            "meta": {**self._run_facts(by_epoch), **(meta or {})},
            "state_dict": state,
            "message_hub": {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}},
        }
        if optimizer is not None:
            checkpoint["optimizer"] = optimizer
        if save_param_scheduler and self.param_schedulers is not None:
            checkpoint["param_schedulers"] = [scheduler.state_dict() for scheduler in self.param_schedulers]
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        with replacing(Path(out_dir, filename)) as temporary:
            torch.save(checkpoint, temporary)

    def _run_facts(self, by_epoch: bool) -> dict[str, Any]:
        if self._config_text is None:
            self._config_text = self.cfg.pretty_text
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

        To fine-tune (`load_from` without `resume`), entries that do not fit are left out and named in a warning.

        Args:
            filename: A local file.
            map_location: As for `torch.load`.
            strict: Must be True: a checkpoint to resume from or to test that does not fit is an error.
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
        if isinstance(self._train_loop, BaseLoop) and not self._resume:  # training begins
            left = load_fitting(model, checkpoint["state_dict"], str(filename))
            if left:
                self.logger.warning("load_from=%s does not fill %d entries: %s", filename, len(left), ", ".join(left))
        else:
            load_strictly(model, checkpoint["state_dict"], str(filename))
            if is_sharded(model) and self._resume and "optimizer" in checkpoint:
                checkpoint["optimizer"] = optimizer_parts(checkpoint["optimizer"], self.optim_wrapper.optimizer)
        self._has_loaded = True
        self.logger.info("loaded checkpoint %s", filename)
        return checkpoint
