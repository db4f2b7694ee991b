# SPDX-License-Identifier: Apache-2.0
"""What the package promises as a whole: its layers, what importing it costs, its public names."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import visionattn
from visionattn import kernels

ROOT = Path(visionattn.__file__).parent
EXTRAS = ("mmengine", "mmdet", "mmseg", "mmcv", "albumentations", "cv2", "onnx", "onnxscript", "onnxruntime",
          "matplotlib", "sklearn", "skimage", "transformers", "typer", "rich")  # fmt: skip
# Each part may import those before it (and itself); `data`, `export`, `viz` and `openmmlab` are on one level.
OUTER = {"_files", "_index", "kernels", "layers", "models", "acceleration", "data", "export", "viz", "openmmlab",
         "explanation"}  # fmt: skip
MAY_IMPORT = {
    "_files": set(),
    "_index": {"_files"},
    "kernels": set(),
    "layers": {"kernels"},
    "compat": {"kernels"},
    "models": {"_files", "_index", "kernels", "layers"},
    "acceleration": {"kernels", "layers", "models"},
    "data": {"_files", "models", ""},
    "export": {"_files", "layers", "models", ""},
    "explanation": {"kernels", "layers"},
    "viz": {"_files", "models", "data", "explanation", ""},
    "openmmlab": OUTER | {"benchmarking", "_memory", ""},
    "benchmarking": {"_files", "layers", "models", "acceleration", ""},
    "imagenet": {"_files", "imagenet_sets", "layers", "models", ""},
    "imagenet_sets": {"data"},
    "_timing": set(),
    "_memory": set(),
    "tuning": {"_files", "_timing", "kernels", "acceleration", "benchmarking"},
    "cli": OUTER | {"benchmarking", "imagenet", "tuning", ""},
    "": {"models", "acceleration", "explanation"},
}


def part_of(path: Path) -> str:
    name = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if name == "__init__" else name


def imported_parts(path: Path) -> set[str]:
    """Parts of visionattn that a file imports anywhere in it, functions included."""
    package = ["visionattn", *path.relative_to(ROOT).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "visionattn":
                part = name.split(".")[1] if "." in name else ""
                found.add(part if (ROOT / part).is_dir() or (ROOT / f"{part}.py").is_file() else "")
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = part_of(path)
    wrong = imported_parts(path) - MAY_IMPORT[part] - {part}
    assert not wrong, f"visionattn/{part} must not import {', '.join(sorted(wrong)) or 'the package'}"


def in_new_interpreter(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_extra():
    code = f"import sys, timm, visionattn; print([name for name in {EXTRAS!r} if name in sys.modules])"
    assert in_new_interpreter(code).strip() == "[]"


def test_import_costs_little_beside_timm():
    code = """
import json, time
start = time.process_time()
import timm
middle = time.process_time()
import visionattn
print(json.dumps([middle - start, time.process_time() - middle]))
"""
    runs = [json.loads(in_new_interpreter(code)) for _ in range(2)]
    assert min((timm + ours) / timm for timm, ours in runs) < 1.5


def test_public_names_are_the_documented_ones():
    assert set(visionattn.__all__) == {
        "ModelInfo", "__version__", "accelerate", "create_model", "explain", "info", "list_models",
        "load_checkpoint"}  # fmt: skip
    assert set(kernels.__all__) == {
        "LocalPattern", "agent_attention", "aggregated_attention", "available_backends", "clustered_attention",
        "deformable_attention", "dynamic_convolution", "explain", "flow_attention", "focused_linear_attention",
        "halo_attention", "indexed_attention", "inline_attention", "local_attention", "ms_deform_attn",
        "neighborhood_attention", "relative_attention", "routed_attention", "sample_points", "selected_attention",
        "selective_scan", "use_backend", "window_attention"}  # fmt: skip
    for module in (visionattn, kernels):
        assert all(hasattr(module, name) for name in module.__all__)
