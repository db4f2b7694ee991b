# SPDX-License-Identifier: Apache-2.0
"""Models agree with what their references computed: weights through the key map, outputs, gradients, counts."""

import functools
import math

import pytest
import records
import torch

import visionattn
from visionattn.layers import ContentAttention, DeformableAttention, DeformableMerging, SparsifiedAttention
from visionattn.models import FAMILIES, SERVED, convert

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
CHOOSING = (SparsifiedAttention, ContentAttention)


@functools.cache
def load(path):
    return records.load(path)


def pytest_generate_tests(metafunc):
    found = {p: load(p) for p in records.paths(metafunc.config)}
    found = {p: r for p, r in found.items() if "state" in r and p.parent.name != "ops"}
    if "family" in metafunc.fixturenames:
        others = {r["family"] for r in found.values() if not families_of(r)} - set(SERVED)
        metafunc.parametrize("family", sorted(others))
    if "path" not in metafunc.fixturenames:
        return
    wanted = {test_outputs_and_gradients_agree: has_runs, test_published_weights_have_one_name: is_published}
    condition = wanted.get(metafunc.function, lambda record: True)
    paths = [p for p, record in found.items() if families_of(record) and condition(record)]
    is_run = metafunc.function is test_outputs_and_gradients_agree
    marks = [[pytest.mark.slow] if is_run and is_large(found[p]) else [] for p in paths]
    ids = [f"{p.parent.name}-{p.name.removesuffix('.json.gz')}" for p in paths]
    metafunc.parametrize("path", [pytest.param(p, marks=m, id=i) for p, m, i in zip(paths, marks, ids, strict=True)])


def has_runs(record):
    """Large variants have names and counts only."""
    return bool(record["runs"])


def is_large(record):
    """Whether it is slow: large models and images; micro models have the same layers, and counts are always checked."""
    if "host" in record["config"] and record["num_params"] > 7e6:  # one mixer in several hosts has 30 such records
        return True
    if record["num_params"] > 1e6 and record["config"].get("stride") == 8:  # isotropic, four times the tokens
        return True
    if max((math.prod(run["input"]) for run in record["runs"]), default=0) > 3 * 2 * 200**2:  # several large images
        return True
    sizes = [math.prod(run["input"][-2:]) for run in record["runs"]]
    kernels = record["config"].get("kernel_size")
    if isinstance(kernels, list) and max(kernels) > 9 and max(sizes, default=0) > 150**2:
        return True  # large depth-wise kernels have no fast implementation in float64
    return record["num_params"] > 2e7 or max(sizes, default=0) > 400**2


def families_of(record):
    return [f for f in FAMILIES.values() if f.records == record["family"]]


def is_published(record):
    """Whether its weights have a name; backbones inside published detectors have none of their own."""
    config = record["config"]
    is_dense = "pretrain_img_size" in config or "dense" in str(config.get("host"))
    return bool(record["checkpoints"]) and not is_dense


def build(record):
    """Model of a record and its family; a record that no family of that name can build is a failure."""
    families = families_of(record)
    built = [(f, model) for f in families if (model := f.from_reference(record)) is not None]
    assert len(built) == 1, f"{len(built)} families of {[f.name for f in families]} built {record['source']}"
    return built[0]


def build_on_meta(record):
    with torch.device("meta"):
        return build(record)


def loaded(record):
    """Family and the model with the record's weights; the key map accounts for every entry and every parameter."""
    family, model = build_on_meta(record)
    entries = records.state_dict(record, constants=True)
    for name in [name for name in entries if name.endswith(".one_channel")]:  # the one that counts has its first value
        entries[name] += len(entries[name.replace("one_channel", "conv.weight")]) // 4
    model.load_state_dict(convert(entries, model, family.key_maps), strict=True, assign=True)
    return family, model.eval()


def outputs_of(family, model, x, keys):
    """The record's outputs: logits, raw stage maps, or the features that a dense head gets."""
    if family.outputs is not None:
        found = family.outputs(model, x)
        return {key: found[key] for key in keys}
    maps = [key for key in keys if key != "logits"]
    stages = [int(key.split(".")[1]) for key in maps]
    indices = stages if family.features is None else [family.features[i] for i in stages]
    features = model.forward_intermediates(x, indices=indices, intermediates_only=True) if stages else []
    named = dict(zip(maps, features, strict=True))
    return named | ({"logits": model(x)} if "logits" in keys else {})


def check_run(family, model, run, dtype, tolerance):
    has_gradients = run["grad_input"] is not None
    x = records.image(run["input"], dtype).requires_grad_(has_gradients)
    with torch.set_grad_enabled(has_gradients):
        outputs = outputs_of(family, model, x, list(run["outputs"]))
    errors = {key: records.error(outputs[key], digest) for key, digest in run["outputs"].items()}
    assert max(errors.values()) <= tolerance, errors
    if not has_gradients:
        return
    key = "logits" if "logits" in outputs else max(outputs)
    model.zero_grad()
    (outputs[key] * records.cotangent(outputs[key].shape, dtype)).sum().backward()
    share = 0.9 if dtype == torch.float32 and has_kinks(model) else 1.0
    assert records.error(x.grad, run["grad_input"], share) <= tolerance
    total = math.sqrt(sum(p.grad.double().pow(2).sum().item() for p in model.parameters() if p.grad is not None))
    assert total == pytest.approx(run["grad_total_l2"], rel=tolerance, abs=1e-12)


def has_kinks(model):
    """Whether rounding can move a value to the other side of a kink, which changes parts of the gradient by more."""
    # A map read between its pixels has a kink at every pixel.
    kinds = (torch.nn.ReLU, torch.nn.ReLU6, DeformableAttention, DeformableMerging)
    return any(isinstance(m, kinds) for m in model.modules())


def test_records_of_other_families_are_not_checked(family):
    pytest.skip(f"family {family} is not in the zoo")


def test_outputs_and_gradients_agree(path):
    record = load(path)
    family, model = loaded(record)
    for dtype, tolerance in TOLERANCES.items():
        # Rounding chooses other keys where scores are nearly equal, which a dozen blocks in turn make visible.
        is_choice = dtype == torch.float32 and any(isinstance(m, CHOOSING) for m in model.modules())
        for run in record["runs"]:
            check_run(family, model.to(dtype), run, dtype, 1e-2 if is_choice else tolerance)


def used_params(family, record):
    """Parameters of the record, but for those that the reference carries without use."""
    params = [(name, shape) for name, shape, kind in record["state"] if kind == "param"]
    unused = [math.prod(shape) for name, shape in params if any(m.is_constant(name) for m in family.key_maps)]
    return record["num_params"] - sum(unused)


def test_counts_and_names_agree(path):
    record = load(path)
    family, model = build_on_meta(record)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == used_params(family, record)
    with torch.device("meta"):
        entries = {name: torch.empty(shape) for name, shape, _ in record["state"]}
        converted = convert(entries, model, family.key_maps)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_published_weights_have_one_name(path):
    record = load(path)
    rows = [visionattn.info(name) for name in visionattn.list_models(tags=True)]
    # Repositories that began as copies of another have its names.
    families = [f.name for f in families_of(record)]
    rows = [row for row in rows if row.reference == record["variant"] and row.family in families]
    assert len(rows) == 1
    row = rows[0]
    family, reference = build_on_meta(record)
    assert row.family == family.name
    with torch.device("meta"):
        ours = visionattn.create_model(row.name)
    assert shapes(ours) == shapes(reference)
    assert sum(p.numel() for p in ours.parameters()) == used_params(family, record)
    assert drop_paths(ours) == drop_paths(reference)
    assert mixers(ours) == mixers(reference)
    assert row.urls[0] == record["checkpoints"][0]["url"]
    published = {"params_m": row.params_m, "gflops": row.gflops, "top1": row.top1, "top5": row.top5}
    reported = {k.replace("flops_g", "gflops"): v for k, v in record["reported"].items()}
    assert all(published[k] == v for k, v in reported.items() if k in published)


def shapes(model):
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def drop_paths(model):
    return [getattr(block.drop_path, "drop_prob", 0.0) for block in model.modules() if hasattr(block, "drop_path")]


def mixers(model):
    """What no shape shows: dilations, shifts, scales."""
    names = ("kernel_size", "dilation", "window_size", "shift", "shift_small_maps", "map_size", "scale",
             "pretrained_window", "grid", "offset_range", "bound")  # fmt: skip
    return [[getattr(b.attn, n, None) for n in names] for b in model.modules() if hasattr(b, "attn")]
