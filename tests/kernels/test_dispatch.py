# SPDX-License-Identifier: Apache-2.0
"""Which backend runs a call: the switch, the environment variable, the explanation, and refusals."""

import os
import subprocess
import sys

import pytest
import torch

from visionattn.kernels import available_backends, dispatch, explain, neighborhood_attention, use_backend


@pytest.fixture
def picky(monkeypatch):
    """Another backend, which takes float32 only and answers with ones."""
    monkeypatch.setattr(dispatch, "_backends", dict(dispatch._backends))
    monkeypatch.setattr(dispatch, "_choice", "auto")
    dispatch.register_backend(
        dispatch.Backend(
            "picky",
            usable=lambda: None,
            supports=lambda problem: None if problem.dtype == torch.float32 else f"it does not take {problem.dtype}",
            ops={"local_attention": lambda inputs, options: (torch.ones_like(inputs.q),)},
        )
    )


def attend(dtype=torch.float32):
    q = torch.randn(1, 5, 6, 2, 4, dtype=dtype)
    return neighborhood_attention(q, q, q, 3)


def is_picky(out):
    return bool((out == 1).all())


def test_auto_takes_the_later_backend_that_can(picky):
    assert is_picky(attend())
    assert not is_picky(attend(torch.float64))


def test_choice_holds_for_a_block_or_for_good(picky):
    with use_backend("torch"):
        assert not is_picky(attend())
    assert is_picky(attend())
    use_backend("torch")
    assert not is_picky(attend())


def test_nested_choices_restore_the_outer_one(picky):
    with use_backend("torch"):
        with use_backend("picky"):
            assert is_picky(attend())
        assert not is_picky(attend())


def test_explicit_choice_never_falls_back(picky):
    with (
        use_backend("picky"),
        pytest.raises(RuntimeError, match="'picky' was asked for, but it does not take torch.float64"),
    ):
        attend(torch.float64)


def test_explain_names_backend_and_reason_without_computing(picky):
    q = torch.empty(1, 64, 64, 2, 4)
    assert explain(neighborhood_attention, q, q, q, 3) == "picky (the first choice)"
    said = explain(neighborhood_attention, *[q.double()] * 3, 3)
    assert said.startswith("torch (not picky: it does not take torch.float64; not triton: ")
    with use_backend("torch"):
        assert explain(neighborhood_attention, q, q, q, 3) == "torch (asked for)"
    with pytest.raises(ValueError, match="kernel_size=99 exceeds"):
        explain(neighborhood_attention, q, q, q, 99)


def test_explain_leaves_the_next_call_alone():
    q = torch.randn(1, 5, 6, 2, 4)
    explain(neighborhood_attention, q, q, q, 3)
    assert attend().shape == (1, 5, 6, 2, 4)


def test_available_backends_say_what_works():
    found = available_backends()
    assert found["torch"] is None
    # The tests choose the interpreter where there is no GPU.
    assert list(found) == ["torch", "triton"] and found["triton"] is None


def test_triton_says_what_it_lacks(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is no CUDA or ROCm device" in available_backends()["triton"]
    q = torch.randn(1, 5, 6, 2, 4)
    assert explain(neighborhood_attention, q, q, q, 3).startswith("torch (not triton: there is no CUDA")
    with use_backend("triton"), pytest.raises(RuntimeError, match="'triton' was asked for, but there is no CUDA"):
        attend()


def test_unknown_backend_offers_the_nearest():
    with pytest.raises(
        ValueError, match="backend='tourch' is not a backend; use one of auto, torch, triton. Did you mean 'torch'"
    ):
        use_backend("tourch")


@pytest.mark.parametrize(
    ("value", "expected"), [("torch", "torch (asked for)"), ("tritn", "VISIONATTN_BACKEND='tritn' is not")]
)
def test_environment_variable_chooses(value, expected):
    code = """
import torch
from visionattn.kernels import explain, neighborhood_attention
q = torch.randn(1, 5, 6, 2, 4)
print(explain(neighborhood_attention, q, q, q, 3))
"""
    environment = {**os.environ, dispatch.ENVIRONMENT_VARIABLE: value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert expected in done.stdout + done.stderr
    assert (done.returncode == 0) == (value == "torch")
