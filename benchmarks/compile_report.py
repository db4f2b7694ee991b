"""Compile every kind of local-attention kernel for GPUs that need not be there, and report what it uses.

    python benchmarks/compile_report.py                       # table and benchmarks/results/compile_report.json
    python benchmarks/compile_report.py --check --arch sm_90  # exit status 1 on a spill or too much shared memory

Registers and spills are the assembler's (`ptxas`), shared memory is the compiler's. Problems are those of the zoo and
of the benchmark lists; tiles are the ones that the dispatcher picks on each device. Head dims above 128 may spill.
"""

import argparse
import concurrent.futures
import contextlib
import io
import json
import os
import re
import sys
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from visionattn.kernels import LocalPattern, local_triton
from visionattn.kernels.tiles import DEVICES

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
SPILLS_ALLOWED_ABOVE = 128  # head dim
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
HERE = Path(__file__).parent
ALL_KERNELS = ("forward", "backward_query", "backward_key", "backward_extra")


class Case(NamedTuple):
    """A problem and what of the op it uses."""

    name: str
    pattern: LocalPattern
    size: tuple[int, ...]
    head_dim: int
    bias: bool = False
    relative: bool = False
    extra: int = 0
    kv_heads: int = 4
    pads: bool = False


def window(side: int, size: int, shift: bool = False, **more: Any) -> Case:
    pattern = LocalPattern(side, side, boundary="pad", shift=side // 2 if shift else 0)
    return Case(f"window{side}{'-shifted' if shift else ''}", pattern, (size, size), **more)


def cases(head_dims: tuple[int, ...]) -> list[Case]:
    """Problems for each head dim; every option of the kernels appears."""
    found = []
    for d in head_dims:
        found += [
            Case("neighborhood7", LocalPattern(7), (56, 56), d, bias=True),
            Case("neighborhood7-small", LocalPattern(7), (14, 14), d, bias=True),
            Case("neighborhood7-dilated", LocalPattern(7, dilation=8), (56, 56), d),
            Case("neighborhood13", LocalPattern(13), (64, 64), d),
            Case("neighborhood-1d", LocalPattern(63, dilation=4), (4096,), d),
            Case("neighborhood-3d", LocalPattern((3, 7, 7), causal=(True, False, False)), (8, 28, 28), d),
            Case("block-sparse", LocalPattern(80, 16), (256, 256), d),
            Case("strided-3d", LocalPattern((18, 24, 24), (16, 8, 8)), (30, 48, 80), d),
            window(7, 56, head_dim=d, bias=True),
            window(7, 50, shift=True, head_dim=d, bias=True, pads=True),
            window(8, 64, shift=True, head_dim=d, bias=True),
            window(12, 96, shift=True, head_dim=d, bias=True),
            window(16, 64, shift=True, head_dim=d, bias=True),
            window(24, 48, shift=True, head_dim=d, bias=True),
            Case("halo8-3", LocalPattern(14, 8, boundary="pad"), (64, 64), d, relative=True),
            Case("halo8-2-strided", LocalPattern(12, 8, boundary="pad", query_stride=2), (64, 64), d, relative=True),
            Case("neighborhood7-extra-gqa", LocalPattern(7), (56, 56), d, extra=49, kv_heads=2),
        ]
    return found


def launches(case: Case, dtype: torch.dtype, arch: str) -> list[local_triton.Launch]:
    """All launches of a forward and a backward, on tensors without memory."""
    pattern, batch, heads, d = case.pattern, 8, 4, case.head_dim
    query_size = tuple(n // axis.query_stride for n, axis in zip(case.size, pattern.axes(len(case.size)), strict=True))

    def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    if query_size == case.size and case.kv_heads == heads:
        q, k, v = tensor(batch, *case.size, 3, heads, d).unbind(len(case.size) + 1)
    else:
        q, k, v = tensor(batch, *query_size, heads, d), *(tensor(batch, *case.size, case.kv_heads, d) for _ in range(2))
    axes = pattern.axes(len(case.size))
    tables = [2 * axis.kernel_size - 1 for axis in axes]
    bias = tensor(heads, *tables, dtype=torch.float32) if case.bias else None
    rel = tensor(*q.shape[:-1], 3 - len(axes) + sum(tables)) if case.relative else None
    extra = [tensor(batch, case.extra, case.kv_heads, d) if case.extra else None] * 2
    pads = [tensor(case.kv_heads, d) if case.pads else None] * 2
    call = local_triton.Call(q, k, v, bias, rel, *extra, *pads)
    plan = local_triton.plan_of(call, pattern, DEVICES[arch])
    out, lse = tensor(*q.shape), tensor(*q.shape[:-1], dtype=torch.float32)
    saved = local_triton.Saved(out, lse, out, None, lse)
    grads = local_triton.empty_gradients(call)
    found = [
        local_triton.forward_launch(call, plan, 0.1, out, lse, True),
        local_triton.query_launch(call, plan, 0.1, saved, grads, case.bias)[0],
    ]
    if not local_triton.fuses(call, plan):
        found.append(local_triton.key_launch(call, plan, 0.1, saved, grads)[0])
    if case.extra:
        found.append(local_triton.extra_launch(call, plan, 0.1, saved)[0])
    return found


POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


def describe(value: Any, path: tuple[int, ...], known: dict, attributes: dict) -> Any:
    """Signature entry of an argument, as the just-in-time compiler would specialise it."""
    if isinstance(value, tuple):
        return tuple(describe(v, (*path, i), known, attributes) for i, v in enumerate(value))
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value == 1:
        known[path] = 1
        return "constexpr"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if abs(value) < 2**31 else "i64"


def compiled(launch: local_triton.Launch, arch: str) -> dict[str, Any]:
    """Registers, spilled bytes and shared bytes of a launch's kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from visionattn.kernels import _triton_kernels

    kernel = getattr(_triton_kernels, launch.kernel)
    names = kernel.arg_names
    known: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    signature = {
        names[i]: describe(value, (i,), known, attributes) for i, value in enumerate(launch.arguments)
    } | dict.fromkeys(launch.constants, "constexpr")
    known |= {(names.index(name),): value for name, value in launch.constants.items()}
    source = ASTSource(kernel, signature, known, attributes)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    done, registers, spills = assembled(source, target, launch.options)
    if spills:  # as `Launch.run` does
        done, registers, spills = assembled(source, target, {**launch.options, **local_triton.ALL_REGISTERS})
    return {
        "registers": registers,
        "spills": spills,
        "shared": done.metadata.shared,
        "instructions": matrix_units(done),
    }


def assembled(source: Any, target: Any, options: dict[str, int]) -> tuple[Any, int, int]:
    """The kernel, its registers and its spilled bytes."""
    import triton

    log = io.StringIO()
    # A kernel from the cache would come without the assembler's log.
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.compilation.always_compile = True
        triton.knobs.nvidia.dump_ptxas_log = True
        done = triton.compile(source, target=target, options=options)
    return done, *resources(log.getvalue())


def resources(log: str) -> tuple[int, int]:
    """Registers, and bytes of spill stores and loads, as the assembler that Triton ran reports them."""
    used = re.search(r"Used (\d+) registers", log)
    if used is None:
        raise RuntimeError(f"the assembler's log names no registers: {log!r}")
    return int(used[1]), sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))


def matrix_units(done: Any) -> str:
    """Which matrix instructions the kernel has."""
    ptx = done.asm["ptx"]
    for name in ("wgmma.mma_async", "tcgen05.mma", "mma.sync"):
        if name in ptx:
            return name
    return "none"


def row(case: Case, dtype: str, arch: str, launch: local_triton.Launch) -> dict[str, Any]:
    """One line of the report."""
    c = launch.constants
    size = "x".join(map(str, case.size))
    return {
        "arch": arch, "case": case.name, "pattern": str(case.pattern), "size": size, "dtype": dtype,
        "head_dim": case.head_dim, "kernel": launch.kernel, "rows": c["BM"], "columns": c["BN"],
        "warps": launch.warps, "stages": launch.stages,
    }  # fmt: skip


def measure(job: tuple[Case, str, str, int]) -> dict[str, Any]:
    case, dtype, arch, index = job
    launch = launches(case, DTYPES[dtype], arch)[index]
    line = row(case, dtype, arch, launch)
    return line | compiled(launch, arch)


def jobs(architectures: list[str], dtypes: list[str], head_dims: tuple[int, ...], only: str) -> list[tuple]:
    """Distinct kernels: what differs only in a size that is not compiled in is compiled once."""
    seen, found = set(), []
    for arch in architectures:
        for dtype in dtypes:
            for case in cases(head_dims):
                if not any(only in f"{case.name}/{kernel}" for kernel in ALL_KERNELS):
                    continue
                for index, launch in enumerate(launches(case, DTYPES[dtype], arch)):
                    key = (
                        arch,
                        dtype,
                        launch.kernel,
                        launch.warps,
                        launch.stages,
                        *sorted(map(str, launch.constants.items())),
                    )
                    if only in f"{case.name}/{launch.kernel}" and key not in seen:
                        seen.add(key)
                        found.append((case, dtype, arch, index))
    return found


def faults(lines: list[dict[str, Any]]) -> list[str]:
    """What `--check` does not accept."""
    found = []
    for line in lines:
        where = " ".join(f"{line[key]}" for key in ("arch", "case", "dtype", "head_dim", "kernel"))
        if line["spills"] and line["head_dim"] <= SPILLS_ALLOWED_ABOVE:
            found.append(f"{where}: {line['spills']} bytes spilled")
        if line["shared"] > DEVICES[line["arch"]].shared:
            found.append(
                f"{where}: {line['shared']} bytes of shared memory, the device has {DEVICES[line['arch']].shared}"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--head-dim", nargs="+", type=int, default=[8, 16, 24, 32, 64, 128, 256])
    parser.add_argument("--only", default="", help="part of 'case/kernel'")
    parser.add_argument("--check", action="store_true", help="exit with 1 on a spill or too much shared memory")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=HERE / "results" / "compile_report.json")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 is set; the interpreter compiles nothing")
    work = jobs(options.arch, options.dtype, tuple(options.head_dim), options.only)
    lines = []
    with concurrent.futures.ProcessPoolExecutor(options.workers) as pool:
        for line in pool.map(measure, work):
            lines.append(line)
            print(" ".join(f"{str(v):>{w}}" for v, w in zip(line.values(), WIDTHS, strict=True)), flush=True)
    wrong = faults(lines)
    print(f"{len(lines)} kernels, {len(wrong)} faults", *wrong, sep="\n")
    if options.output and not (options.check or options.only):
        import triton

        content = {"triton": triton.__version__, "date": str(date.today()), "kernels": lines}
        temporary = options.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=0) + "\n")
        temporary.replace(options.output)
    sys.exit(1 if options.check and wrong else 0)


WIDTHS = (6, 24, 22, 9, 5, 4, 15, 4, 4, 2, 2, 4, 6, 7, 16)

if __name__ == "__main__":
    main()
