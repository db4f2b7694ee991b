# SPDX-License-Identifier: Apache-2.0
"""timm's models agree with what their authors' code computed, once our key maps have read the authors' names."""

import functools
import math

import pytest
import records
import timm
import torch

import visionattn
from visionattn.models import SERVED, convert

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
load = functools.cache(records.load)


def pytest_generate_tests(metafunc):
    found = {p: r for p in records.paths(metafunc.config) if (r := load(p)).get("family") in SERVED}
    wanted = [p for p, r in found.items() if metafunc.function is not test_outputs_and_gradients_agree or r["runs"]]
    # The micro models have the same layers; names and counts are checked for all.
    slow = [metafunc.function is test_outputs_and_gradients_agree and found[p]["num_params"] > 1e6 for p in wanted]
    marks = [[pytest.mark.slow] if s else [] for s in slow]
    ids = [f"{p.parent.name}-{p.name.removesuffix('.json.gz')}" for p in wanted]
    metafunc.parametrize("path", [pytest.param(p, marks=m, id=i) for p, m, i in zip(wanted, marks, ids, strict=True)])


def built(path):
    record = load(path)
    family = SERVED[record["family"]]
    return record, family, family.from_reference(record)


def test_outputs_and_gradients_agree(path):
    record, family, model = built(path)
    model = model.eval()
    model.load_state_dict(convert(records.state_dict(record, constants=True), model.double(), family.key_maps))
    for dtype, tolerance in TOLERANCES.items():
        model.to(dtype).train().eval()  # LeViT keeps the biases that it gathered in evaluation, of the dtype before
        for run in record["runs"]:
            check_run(model, run, dtype, tolerance)


def check_run(model, run, dtype, tolerance):
    x = records.image(run["input"], dtype).requires_grad_(run["grad_input"] is not None)
    logits = model(x)
    assert records.error(logits, run["outputs"]["logits"]) <= tolerance
    if run["grad_input"] is None:
        return
    model.zero_grad()
    (logits * records.cotangent(logits.shape, dtype)).sum().backward()
    assert records.error(x.grad, run["grad_input"], 0.9 if dtype == torch.float32 else 1.0) <= tolerance
    # The reference's biases have no gradient in evaluation.
    named = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
    total = sum(g.double().pow(2).sum().item() for n, g in named if not n.endswith("attention_biases"))
    assert math.sqrt(total) == pytest.approx(run["grad_total_l2"], rel=tolerance, abs=1e-12)


def test_counts_and_names_agree(path):
    record, family, model = built(path)
    with torch.device("meta"):
        entries = {name: torch.empty(shape) for name, shape, _ in record["state"]}
    converted = convert(entries, model, family.key_maps)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == record["num_params"]


def test_published_figures_are_the_records(path):
    record = load(path)
    rows = [visionattn.info(name) for name in visionattn.list_models(tags=True, served=True)]
    rows = [row for row in rows if row.reference == record["variant"]]
    assert len(rows) == bool(record["checkpoints"])
    for row in rows:
        assert row.library == "timm" and row.family == record["family"]
        assert timm.get_pretrained_cfg(row.name).tag == row.tag and row.urls[0] == record["checkpoints"][0]["url"]
        published = {"params_m": row.params_m, "gflops": row.gflops, "top1": row.top1}
        reported = {k.replace("flops_g", "gflops"): v for k, v in record["reported"].items()}
        assert all(published[k] == v for k, v in reported.items() if k in published)
