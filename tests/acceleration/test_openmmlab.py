# SPDX-License-Identifier: Apache-2.0
import importlib
import sys
import types

import pytest
import torch
from equality import assert_accelerated_equals


class NoOps(types.ModuleType):
    """Stands for mmcv's compiled ops, which these backbones import and never call."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return NoOps(name)


@pytest.fixture(params=["mmdet", "mmseg"])
def backbone(request, monkeypatch):
    pytest.importorskip("mmcv")
    try:
        importlib.import_module("mmcv._ext")
    except ImportError:
        monkeypatch.setitem(sys.modules, "mmcv._ext", NoOps("mmcv._ext"))
    pytest.importorskip(request.param)
    return importlib.import_module(f"{request.param}.models.backbones.swin").SwinTransformer


@pytest.mark.parametrize(("size", "args"), [((60, 93), dict(with_cp=True)), ((20, 44), dict(qk_scale=0.3))])
def test_swin_backbones(backbone, size, args):
    model = backbone(
        embed_dims=16, depths=(2, 2), num_heads=(2, 4), strides=(4, 2), out_indices=(0, 1), drop_path_rate=0.0, **args
    )
    model.train()
    assert_accelerated_equals(model, size, count=4)
    assert model(torch.randn(1, 3, *size))[1].shape[1] == 32
