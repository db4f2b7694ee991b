# SPDX-License-Identifier: Apache-2.0
"""A small case of each local-attention kernel under NVIDIA's compute-sanitizer: wild accesses, races, barriers.

python benchmarks/sanitize.py            # under every tool; needs compute-sanitizer
python benchmarks/sanitize.py --inside   # the cases alone, compared with the torch backend
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from visionattn.kernels import halo_attention, neighborhood_attention, use_backend, window_attention

TOOLS = ("memcheck", "racecheck", "synccheck")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative, 2-norm, of the output and of every gradient
PLACES = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")


def found_tool() -> str | None:
    """Path of compute-sanitizer, or None."""
    folders = os.pathsep.join(str(Path(p, sub)) for p in PLACES if p for sub in ("bin", "compute-sanitizer"))
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=folders)


def cases(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[list[Tensor], Callable[..., Tensor]]]:
    """Inputs and calls; together they launch every kernel with every option. Maps end inside tiles."""

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).requires_grad_()

    def split(qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.unbind(-3)

    qkv, heads, d = draw(2, 13, 9, 3, 2, 32), 2, 32
    bias5, bias4 = (draw(heads, 2 * n - 1, 2 * n - 1, dtype=torch.float32) for n in (5, 4))
    pads, extra = [draw(heads, d) for _ in range(2)], [draw(2, 5, heads, d) for _ in range(2)]
    whole, few = draw(2, 12, 8, 3, 2, 32), draw(2, 12, 8, 2, 1, 32)
    tables = [draw(2 * 8 - 1, d) for _ in range(2)]
    video, line = draw(1, 3, 6, 5, 3, 2, 16), draw(1, 70, 3, 2, 24)
    return {
        "neighborhood, bias": ([qkv, bias5], lambda x, b: neighborhood_attention(*split(x), 5, bias=b)),
        "neighborhood, dilated": ([qkv], lambda x: neighborhood_attention(*split(x), 3, dilation=(4, 3))),
        "neighborhood, extra keys": (
            [qkv, *extra], lambda x, k, v: neighborhood_attention(*split(x), 5, extra_k=k, extra_v=v)),
        "neighborhood, one key head": (
            [whole, few], lambda x, kv: neighborhood_attention(split(x)[0], *kv.unbind(-3), 5)),
        "strided, causal, 3-D": (
            [video],
            lambda x: neighborhood_attention(*split(x), (2, 4, 3), stride=(1, 2, 1), is_causal=(True, False, False))),
        "1-D": ([line], lambda x: neighborhood_attention(*split(x), 33, stride=16)),
        "windows": ([whole, bias4], lambda x, b: window_attention(*split(x), 4, bias=b)),
        "shifted windows, padded": (
            [qkv, bias4, *pads], lambda x, b, k, v: window_attention(*split(x), 4, shift=2, bias=b, pad_k=k, pad_v=v)),
        "halo, relative logits": (
            [whole, *tables], lambda x, *t: halo_attention(*split(x), 4, 2, rel_tables=t)),
    }  # fmt: skip


def results(tensors: list[Tensor], call: Callable[..., Tensor], backend: str) -> list[Tensor]:
    """Output and gradients."""
    with use_backend(backend):
        out = call(*tensors)
        wave = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out).to(out.dtype)
        return [out, *torch.autograd.grad(out, tensors, wave)]


def run_cases(device: torch.device) -> int:
    """Number of cases in which the two backends differ."""
    wrong = 0
    for dtype, allowed in TOLERANCE.items():
        if device.type == "cpu" and dtype == torch.bfloat16:
            continue  # Triton's interpreter multiplies the bits of bfloat16 numbers
        for name, (tensors, call) in cases(device, dtype).items():
            mine = results(tensors, call, "triton")
            exact = results([t.detach().float().requires_grad_() for t in tensors], call, "torch")
            off = max(float(((a.float() - b).norm() / b.norm()).detach()) for a, b in zip(mine, exact, strict=True))
            verdict = "ok" if off <= allowed else "DIFFERS"
            wrong += verdict != "ok"
            print(f"{str(dtype).removeprefix('torch.'):>9}  {name:<28} {off:.1e}  {verdict}", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inside", action="store_true", help="run the cases in this process")
    parser.add_argument("--device", default="cuda", help="cpu goes with --inside and TRITON_INTERPRET=1")
    parser.add_argument("--tool", nargs="+", default=list(TOOLS), choices=TOOLS)
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.exit("benchmarks/sanitize.py needs a CUDA device")
    if arguments.inside:
        sys.exit(1 if run_cases(torch.device(arguments.device)) else 0)
    sanitizer = found_tool()
    if sanitizer is None:
        print("skipped: compute-sanitizer is not installed; the cases run without it")
        sys.exit(1 if run_cases(torch.device(arguments.device)) else 0)
    # Each tensor an allocation of its own, so that reading past its end is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    failed = []
    for tool in arguments.tool:
        command = [sanitizer, "--tool", tool, "--error-exitcode", "99", sys.executable, __file__, "--inside"]
        print(" ".join(command), flush=True)
        if subprocess.run(command, env=environment, check=False).returncode:
            failed.append(tool)
    print(f"compute-sanitizer: {'failed: ' + ', '.join(failed) if failed else 'no faults'}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
