# SPDX-License-Identifier: Apache-2.0
"""Classification with any timm model on mmengine's Runner: the model and its metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import METRICS, MODELS
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn import create_model
from visionattn.layers import watch_imbalance


@MODELS.register_module()
class TimmClassifier(BaseModel):
    """Classifier around any timm model, ours (`va_*`) or timm's own.

    Args:
        name: timm model name.
        num_classes: Number of classes.
        kwargs: Further arguments of the model.
        pretrained: Start from the published weights.
        label_smoothing: Weight that is spread over all classes.
        aux_weight: Weight of the loss of auxiliary logits, of a model that has them (`set_aux_training`); 0 for none.
        branch_weight: Weight of how far the branches of a model that has some (`set_branch_training`) are from their
            mean; negative pushes them apart, 0 learns their sum alone.
        binary: Learn each class by itself (binary cross-entropy), instead of one among all.
        mixup: Arguments of `timm.data.Mixup` (`mixup_alpha`, `cutmix_alpha`, `prob`, …); None trains on images as
            they are.
        grad_checkpointing: Recompute blocks in the backward pass, in place of keeping what they computed.
        channels_last: Keep images and convolutions' weights with their channels last in memory.
        compile: Compile the model with `torch.compile`; a mapping holds its arguments.
        data_preprocessor: As for mmengine's BaseModel.

    Raises:
        ValueError: The model's name is unknown, `label_smoothing` lies outside [0, 1), or the model cannot recompute
            its blocks or has no auxiliary logits or branches.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        kwargs: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        label_smoothing: float = 0.0,
        mixup: Mapping[str, Any] | None = None,
        grad_checkpointing: bool = False,
        channels_last: bool = False,
        compile: bool | Mapping[str, Any] = False,
        data_preprocessor: dict | nn.Module | None = None,
        aux_weight: float = 0.0,
        branch_weight: float = 0.0,
        binary: bool = False,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1)")
        super().__init__(data_preprocessor)
        self.model = create_model(name, pretrained=pretrained, num_classes=num_classes, **(kwargs or {}))
        self.label_smoothing = label_smoothing
        self.binary = BinaryCrossEntropy(label_smoothing) if binary else None
        self.aux_weight, self.branch_weight = aux_weight, branch_weight
        for option, weight, method in (
            ("aux_weight", aux_weight, "set_aux_training"),
            ("branch_weight", branch_weight, "set_branch_training"),
        ):
            if weight and not hasattr(self.model, method):
                raise ValueError(f"model.{option}={weight}: {name} has no such logits; it must be 0")
            if weight:
                getattr(self.model, method)()
        self.mixup = None
        if mixup is not None:
            self.mixup = Mixup(**mixup, num_classes=num_classes, label_smoothing=label_smoothing)
        if grad_checkpointing:
            self._recompute(name)
        self.memory_format = torch.channels_last if channels_last else torch.preserve_format
        self.model.to(memory_format=self.memory_format)
        if compile is not False:
            self.model.compile(**({} if compile is True else compile))

    def _recompute(self, name: str) -> None:
        network: Any = self.model
        try:
            network.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, TypeError):  # what timm's models do that do not know it
            raise ValueError(f"model.grad_checkpointing=True: {name} cannot recompute its blocks") from None

    def init_weights(self) -> None:
        """Nothing: timm's models begin with their weights, which mmengine would draw anew where they know how."""

    def forward(self, inputs: Tensor, label: Tensor | None = None, mode: str = "tensor") -> Any:
        """Logits, losses or predictions.

        Args:
            inputs: Normalised images, `(B, 3, H, W)`.
            label: Class indices, `(B,)`; needed for "loss" and by metrics.
            mode: "tensor" for logits `(B, classes)`, "loss" for a dict of losses, "predict" for one
                `dict(scores=(classes,), label=int)` an image.

        Raises:
            ValueError: `mode` is none of these.
        """
        inputs = inputs.to(memory_format=self.memory_format)
        if mode == "tensor":
            return self.model(inputs)
        if mode == "predict":
            scores = self.model(inputs).float().softmax(-1)
            labels = [-1] * len(inputs) if label is None else label.tolist()
            return [{"scores": s, "label": truth} for s, truth in zip(scores, labels, strict=True)]
        if mode == "loss":
            return self.loss(inputs, label)
        raise ValueError(f"mode={mode!r} must be 'tensor', 'loss' or 'predict'")

    def loss(self, inputs: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        """Cross-entropy of a batch, and its top-1 accuracy in percent where images are not mixed."""
        if label is None:
            raise ValueError("label=None: the loss needs class indices")
        if self.mixup is not None:
            even = len(inputs) - len(inputs) % 2  # images are mixed in pairs
            inputs, target = self.mixup(inputs[:even], label[:even])
            output, more = self._logits(inputs)
            return {**self._losses(output, target)[1], **more}
        output, more = self._logits(inputs)
        logits, losses = self._losses(output, label, label_smoothing=self.label_smoothing)
        return {
            **losses,
            **more,
            "top1": 100 * (logits.argmax(-1) == label).float().mean(),
        }

    def _logits(self, inputs: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Logits; and for models that route to attention heads the loss that spreads the choice, as MoH has it."""
        with watch_imbalance(self.model) as imbalances:
            logits = self.model(inputs)
        return logits, {"loss_heads": 0.01 * torch.stack(imbalances).mean()} if imbalances else {}

    def _losses(self, output: Any, target: Tensor, **how: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits of a model's output, and the cross-entropies of them and of auxiliary ones or branches."""
        if isinstance(output, Tensor):
            return output, {"loss": self._entropy(output, target, **how)}
        if isinstance(output, list):
            losses = {"loss": torch.stack([self._entropy(branch, target, **how) for branch in output]).sum()}
            return torch.stack(output).sum(0), {**losses, "loss_branches": self.branch_weight * divergence(output)}
        logits, auxiliary = output
        losses = {"loss": self._entropy(logits, target, **how)}
        return logits, {**losses, "loss_aux": self.aux_weight * self._entropy(auxiliary, target, **how)}

    def _entropy(self, logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of logits `(B, classes)` and classes `(B,)` or their shares `(B, classes)`."""
        if self.binary is not None:  # smooths by itself what is not mixed
            return self.binary(logits, target)
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


def divergence(branches: Sequence[Tensor]) -> Tensor:
    """Sum of the divergences of branches' predictions from that of their mean, which is a constant.

    Args:
        branches: Logits `(B, classes)` of each; the divergence is averaged over images and classes.

    Paper: Gramian Attention Heads are Strong yet Efficient Vision Learners, arXiv 2310.16483.
    """
    mean = torch.stack(list(branches)).mean(0).detach().log_softmax(1)
    each = [F.kl_div(logits.log_softmax(1), mean, reduction="none", log_target=True) for logits in branches]
    return torch.stack(each).mean((1, 2)).sum()


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Top-k accuracies in percent, `top1`, `top5`, …, and the mean negative log-likelihood, `nll`.

    Args:
        topk: The k's; one above the number of classes is 100 %.
        collect_device: As for mmengine's BaseMetric.
        prefix: As for mmengine's BaseMetric.
    """

    default_prefix = ""  # the metrics' names are clear without one

    def __init__(self, topk: Sequence[int] = (1, 5), collect_device: str = "cpu", prefix: str | None = None) -> None:
        if not topk or min(topk) < 1:
            raise ValueError(f"topk={topk} must be positive numbers")
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep each image's rank of the true class, and its score."""
        for sample in data_samples:
            scores, label = sample["scores"], sample["label"]
            # Ties, and scores that are no numbers, count against the model.
            rank = int((scores >= scores[label]).sum()) - 1 if scores.isfinite().all() else len(scores)
            self.results.append((rank, float(scores[label].clamp(min=1e-12).log())))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Metrics of all images."""
        ranks, logs = torch.tensor([r for r, _ in results]), torch.tensor([s for _, s in results], dtype=torch.float64)
        metrics = {f"top{k}": 100 * (ranks < k).double().mean().item() for k in self.topk}
        return {**metrics, "nll": -logs.mean().item()}
