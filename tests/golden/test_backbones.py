# SPDX-License-Identifier: Apache-2.0
"""The authors' backbones of detectors and segmentors agree with what `TimmBackbone` hands to necks and heads."""

import functools

import pytest
import records
import test_models as models
import torch

pytest.importorskip("mmengine")

from visionattn.openmmlab import TimmBackbone  # noqa: E402

# Published backbones by name alone: what a config says, and what follows from the name, make the authors' model.
BY_NAME = {
    "swin/dense_swin_tiny": ("va_swin_tiny", {}),
    "twins/dense_alt_gvt_small": ("va_twins_svt_small", {}),
    "biformer/det_small": ("va_biformer_small", {"num_regions": 16}),
    "biformer/seg_small": ("va_biformer_small", {"num_regions": 8}),
    "biformer/det_base": ("va_biformer_base", {"num_regions": 16}),
    "biformer/seg_base": ("va_biformer_base", {"num_regions": 8}),
    **{f"agent_attention/dense_agent_swin_{s}": (f"va_agent_swin_{s}", {}) for s in ("tiny", "small", "base")},
    **{f"agent_attention/dense_agent_pvt_{s}": (f"va_agent_pvt_{s}", {}) for s in ("tiny", "small", "medium", "large")},
}
load = functools.cache(records.load)


def key(path):
    return f"{path.parent.name}/{path.name.removesuffix('.json.gz')}"


def is_dense(path):
    """Whether a record is of a backbone that hands out feature maps for other networks."""
    return "_dense" in path.name or path.name.startswith(("dense_", "seg_", "det_"))


def pytest_generate_tests(metafunc):
    paths = [p for p in records.paths(metafunc.config) if is_dense(p) and models.families_of(load(p))]
    if metafunc.function is test_a_name_makes_the_authors_backbone:
        paths = [p for p in paths if key(p) in BY_NAME]
    marks = [[pytest.mark.slow] if models.is_large(load(p)) else [] for p in paths]
    metafunc.parametrize("path", [pytest.param(p, marks=m, id=key(p)) for p, m in zip(paths, marks, strict=True)])


class Outputs:
    """Stands for a family whose outputs are a backbone's maps."""

    @staticmethod
    def outputs(model, x):
        return {f"features.{i}": feature for i, feature in zip(model.out_indices, model(x), strict=True)}


def check(record, backbone):
    """In float64 alone: the models themselves are checked in float32 too, elsewhere."""
    for run in record["runs"]:
        models.check_run(Outputs, backbone, run, torch.float64, models.TOLERANCES[torch.float64])


def test_maps_and_gradients_agree(path):
    record = load(path)
    _, model = models.loaded(record)
    runs = record["runs"] or [{"outputs": {}}]
    levels = [int(name.split(".")[1]) for name in runs[0]["outputs"]]
    check(record, TimmBackbone(model, levels or None).eval())


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_name_makes_the_authors_backbone(path, tmp_path, double):
    record = load(path)
    name, args = BY_NAME[key(path)]
    torch.save(records.state_dict(record, constants=True), tmp_path / "authors.pth")
    backbone = TimmBackbone(name, checkpoint=tmp_path / "authors.pth", **args).eval()
    backbone.init_weights()
    check(record, backbone)
    for run in record["runs"]:
        assert backbone.channels == [digest["shape"][1] for digest in run["outputs"].values()]
