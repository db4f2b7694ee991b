# SPDX-License-Identifier: Apache-2.0
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("cv2")
pytest.importorskip("albumentations")
pytest.importorskip("skimage")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"


def test_every_loader_is_timed_beside_timms(tmp_path, monkeypatch):
    out = tmp_path / "data.json"
    arguments = ("--images", "6", "--rounds", "2", "--size", "60x80", "--out", str(out))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    content = json.loads(out.read_text())
    assert content["machine"]["torch"] == torch.__version__
    records = content["records"]
    assert len({(row["recipe"], row["contender"]) for row in records}) == len(records) == 4 * 4
    assert all(row["ms"] > 0 and row["rounds"] == 2 for row in records)
    assert all(row["times_timm"] == 1 for row in records if row["contender"] == "timm's loader")
