# SPDX-License-Identifier: Apache-2.0
"""NATTEN's switches, which choose among its kernels and change nothing here, and its questions about the build.

A question is answered for what runs here: no switch turns anything on or off.
"""

from __future__ import annotations

import torch

HAS_LIBNATTEN = False
MEMORY_USAGE = ("default", "strict", "unrestricted")


def _ignored(*args: object, **settings: object) -> None:
    """Accepts any setting of NATTEN's kernels, which are not used, and does nothing."""


use_fna = use_fused_na = enable_fna = enable_fused_na = disable_fna = disable_fused_na = _ignored
use_kv_parallelism_in_fused_na = _ignored
use_autotuner = enable_autotuner = disable_autotuner = _ignored
use_tiled_na = enable_tiled_na = disable_tiled_na = _ignored
use_gemm_na = enable_gemm_na = disable_gemm_na = _ignored
use_tf32_in_gemm_na = enable_tf32 = disable_tf32 = _ignored
allow_flex_compile = allow_flex_compile_backprop = disable_flex_compile = disable_flex_compile_backprop = _ignored


def _yes(*_: object) -> bool:
    """True: it works here."""
    return True


def _no(*_: object) -> bool:
    """False: there is no such kernel here, hence nothing to turn on."""
    return False


is_fna_enabled = is_fused_na_enabled = _yes
has_fna = has_fused_na = has_half = has_bfloat = has_double = _yes
is_kv_parallelism_in_fused_na_enabled = _no
is_autotuner_enabled = is_autotuner_enabled_for_forward = is_autotuner_enabled_for_backward = _no
is_tiled_na_enabled = is_gemm_na_enabled = is_tf32_in_gemm_na_enabled = _no
has_gemm = has_tf32_gemm = has_fp32_gemm = has_fp64_gemm = _no
is_flex_compile_allowed = is_flex_compile_backprop_allowed = _no


def has_cuda() -> bool:
    """Whether the ops can run on a CUDA or ROCm device of this machine."""
    return torch.cuda.is_available()


def set_memory_usage_preference(pref: str = "default") -> None:
    """Accepts NATTEN's preferences and does nothing: the ops keep no more than their inputs for the backward.

    Raises:
        ValueError: The preference is none of NATTEN's.
    """
    if pref not in MEMORY_USAGE:
        raise ValueError(f"pref={pref!r} is not allowed; use one of {', '.join(MEMORY_USAGE)}")


def get_memory_usage_preference() -> str:
    """The preference, which is always the default."""
    return "default"


is_memory_usage_default = _yes
is_memory_usage_strict = is_memory_usage_unrestricted = _no
