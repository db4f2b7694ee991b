# SPDX-License-Identifier: Apache-2.0
"""The interface that timm expects of a model, once for every host.

A host is a stem, a list of levels and a head. A level turns one map into the next; what it returns is a feature.
"""

from collections.abc import Callable, Sequence
from typing import Any

from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from visionattn.layers import HEADS, init_linear, pick


class VisionModel(nn.Module):
    """Base of the hosts: features, heads, pruning, parameter groups, checkpointing.

    A subclass sets `stem`, `norm`, `head`, `feature_info` and `levels_name`, and says in `advance` what happens
    between two levels.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
    """

    levels_name: str  # attribute that holds the levels, an nn.ModuleList
    output_fmt = "NHWC"
    pretrained_cfg: dict[str, Any]  # set by timm

    def __init__(self, in_chans: int, num_classes: int) -> None:
        super().__init__()
        if in_chans < 1:
            raise ValueError(f"in_chans={in_chans} must be at least 1")
        self.in_chans = in_chans
        self.num_classes = _checked_classes(num_classes)
        self.grad_checkpointing = False
        self.stem: nn.Module = nn.Identity()
        self.pos_embed: nn.Module = nn.Identity()
        self.pos_drop: nn.Module = nn.Identity()
        self.output_norms = nn.ModuleDict()
        self.norm: nn.Module = nn.Identity()
        self.feature_info: list[dict[str, Any]] = []
        self.num_features = 0

    def _add_head(self, num_features: int, global_pool: str, drop_rate: float, head: Any = "linear") -> None:
        self.num_features = num_features
        make: Any = pick("head", head, HEADS) if isinstance(head, str) else head
        self.head = make(num_features, self.num_classes, global_pool, drop_rate)
        self.head_hidden_size = self.head.num_features

    @property
    def levels(self) -> nn.ModuleList:
        """Modules whose outputs are the features, in order."""
        return getattr(self, self.levels_name)

    def advance(self, level: int, x: Tensor) -> Tensor:
        """Map that level + 1 starts from, made of the feature of `level`."""
        return x

    def run_level(self, level: nn.Module, x: Tensor) -> Tensor:
        """Feature of one level."""
        return self.run_block(level, x)

    def run_block(self, block: Callable[..., Tensor], x: Tensor, *more: Any) -> Tensor:
        """One block, recomputed in the backward pass where gradient checkpointing is on."""
        if self.grad_checkpointing:
            return checkpoint(block, x, *more)
        return block(x, *more)

    def embed(self, x: Tensor) -> Tensor:
        """Image `(B, C, H, W)` to the first map.

        Raises:
            ValueError: If `x` is not a batch of images with `in_chans` channels.
        """
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(f"x of shape {tuple(x.shape)} must be (B, {self.in_chans}, H, W)")
        return self.pos_drop(self.pos_embed(self.stem(x)))

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Runs levels 0..last; returns the last map and the features asked for."""
        x = self.embed(x)
        taken: dict[int, Tensor] = {}
        for i, level in enumerate(self.levels):
            if i > last:
                break
            if i > 0:
                x = self.advance(i - 1, x)
            x = self.run_level(level, x)
            if i in take:
                taken[i] = x
        return x, taken

    def _normed_feature(self, i: int, x: Tensor, norm: bool) -> Tensor:
        """Feature `i` as it is handed out."""
        if str(i) in self.output_norms:
            return self.output_norms[str(i)](x)
        return self.norm(x) if self._takes_final_norm(i, norm) else x

    def _takes_final_norm(self, i: int, norm: bool) -> bool:
        return norm

    def forward_features(self, x: Tensor) -> Tensor:
        """Image `(B, C, H, W)` to the last map `(B, H', W', C')`, normed."""
        x, _ = self._walk(x, (), len(self.levels) - 1)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last map to logits `(B, num_classes)`, or to the pooled features before the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(B, C, H, W)` of any size to logits `(B, num_classes)`."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of chosen levels.

        Args:
            x: Images `(B, C, H, W)`.
            indices: Levels to return, negative ones from the end; an int takes the last n, None all.
            norm: Apply the final norm to the features it fits.
            stop_early: Do not run levels beyond the last one asked for.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Return the features alone.

        Returns:
            The features, or `(last map, features)`. The last map has the final norm where the last level ran.

        Raises:
            ValueError: If `output_fmt` is neither layout.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} must be 'NCHW' or 'NHWC'")
        final = len(self.levels) - 1
        take, deepest = feature_take_indices(len(self.levels), _plain(indices))
        last = deepest if stop_early or intermediates_only else final
        x, taken = self._walk(x, take, last)
        features = [self._normed_feature(i, taken[i], norm) for i in take]
        if output_fmt == "NCHW":
            features = [f.permute(0, 3, 1, 2).contiguous() for f in features]
        if intermediates_only:
            return features
        return (self.norm(x) if last == final else x), features

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the levels that the features asked for do not need.

        Args:
            indices: As in `forward_intermediates`.
            prune_norm: Drop the final norm.
            prune_head: Drop pooling and classifier.

        Returns:
            The levels asked for, counted from the start.
        """
        take, deepest = feature_take_indices(len(self.levels), _plain(indices))
        shortened = deepest < len(self.levels) - 1
        setattr(self, self.levels_name, self.levels[: deepest + 1])
        if shortened:
            self._end_at(deepest)
        if prune_norm:
            self._drop_final_norm(take)
        for name in [n for n in self.output_norms if int(n) not in take]:
            del self.output_norms[name]
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def _end_at(self, level: int) -> None:
        """Adapts what follows the levels to a shortened list of them."""

    def _drop_final_norm(self, take: Sequence[int]) -> None:
        self.norm = nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits; an identity where there are no classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier.

        Args:
            num_classes: Classes of the new one; 0 for none.
            global_pool: New pooling, "" for none; None keeps it. With neither classes nor pooling the head loses
                its hidden layers too and does nothing.
        """
        self.num_classes = _checked_classes(num_classes)
        if num_classes == 0 and global_pool == "" and hasattr(self.head, "pre_logits"):
            self.head.reset(num_classes, global_pool, reset_other=True)
        else:
            self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features
        init_linear(self.head.fc)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switches recomputation of every block in the backward pass on or off."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters besides vectors that no recipe decays, such as position tables; the layers name their own."""
        layers = [(name, module) for name, module in self.named_modules() if module is not self]
        return {f"{name}.{own}" for name, m in layers if hasattr(m, "no_weight_decay") for own in m.no_weight_decay()}

    def freeze(self, levels: int) -> None:
        """Stops training of the stem and the first `levels` levels, with what joins each to the next."""
        for part in (self.stem, self.pos_embed, *self.levels[:levels]):
            part.requires_grad_(False)


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Drop-path rate of every block of every stage, rising linearly from 0 to `rate` over the network.

    Raises:
        ValueError: If `rate` is not in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path_rate={rate} must be at least 0 and less than 1")
    steps = max(sum(depths) - 1, 1)
    starts = [sum(depths[:i]) for i in range(len(depths))]
    return [[rate * (start + j) / steps for j in range(depth)] for start, depth in zip(starts, depths, strict=True)]


def _checked_classes(num_classes: int) -> int:
    if num_classes < 0:
        raise ValueError(f"num_classes={num_classes} must not be negative; 0 removes the classifier")
    return num_classes


def _plain(indices: int | Sequence[int] | None) -> int | list[int] | None:
    return indices if indices is None or isinstance(indices, int) else list(indices)
