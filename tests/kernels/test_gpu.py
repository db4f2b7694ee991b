# SPDX-License-Identifier: Apache-2.0
"""The ops on a GPU: equal to the CPU, forward and backward."""

import pytest
import torch
from test_local import CALLS, packed, split, tensors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")]


def outputs_and_gradients(call, qkv, values):
    qkv = qkv.detach().requires_grad_()
    values = {name: value.detach().requires_grad_() for name, value in values.items()}
    out, lse = call(*split(qkv), values)
    wave = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    grads = torch.autograd.grad((out * wave).sum() + lse.sin().sum(), (qkv, *values.values()), allow_unused=True)
    return [t.detach().double().cpu() for t in (out, lse, *grads) if t is not None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_gpu_agrees_with_the_cpu(call, dtype):
    qkv, values = packed(13, 9), tensors()
    exact = outputs_and_gradients(call, qkv, values)
    there = outputs_and_gradients(call, qkv.to("cuda", dtype), {n: t.to("cuda", dtype) for n, t in values.items()})
    # Rounding of the inputs, of the weights and of the sums; float32 may use TF32 nowhere, which is PyTorch's default.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    for mine, theirs in zip(exact, there, strict=True):
        assert (mine - theirs).abs().max() <= tolerance * mine.abs().max()
