# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from equality import assert_accelerated_equals, stir

from visionattn import accelerate

swin = pytest.importorskip("torchvision.models.swin_transformer")
feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")

V1 = {}
V2 = dict(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)


def build(window=(7, 7), **args):
    return swin.SwinTransformer([4, 4], 16, [2, 2], [2, 4], list(window), num_classes=5, **args).eval()


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize(("size", "window"), [((60, 92), (7, 7)), ((20, 64), (7, 4)), ((64, 32), (4, 4))])
def test_swin_transformers(version, size, window):
    assert_accelerated_equals(build(window, **version), size, count=4)


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_attention_dropout_in_training_is_torchvisions(version):
    model = build(attention_dropout=0.4, **version)
    assert len(accelerate(model).replaced) == 4
    image = torch.randn(1, 3, 56, 56)
    assert torch.equal(model(image), model(image))
    for module in model.modules():
        if isinstance(module, swin.ShiftedWindowAttention):
            module.train()
    assert not torch.equal(model(image), model(image))


# Detectors take features by tracing the model.
@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_features_are_traced(version):
    model = stir(build(**version))
    fast = copy.deepcopy(model)
    accelerate(fast)
    image = torch.randn(1, 3, 60, 92)
    ours, theirs = (
        feature_extraction.create_feature_extractor(each, ["features.1", "features.3"])(image) for each in (fast, model)
    )
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-5)
