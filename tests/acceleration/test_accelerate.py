# SPDX-License-Identifier: Apache-2.0
import copy
import io
import pickle

import pytest
import timm
import torch
from equality import stir
from torch import nn

from visionattn import accelerate
from visionattn.acceleration import restore


@pytest.fixture
def model():
    args = dict(img_size=56, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=5)
    return stir(timm.create_model("swin_tiny_patch4_window7_224", **args)).eval()


def test_weights_names_and_objects_stay(model):
    before = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    state = copy.deepcopy(model.state_dict())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    accelerate(model)
    assert {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]} == before
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert model.load_state_dict(state) == ([], [])
    assert isinstance(model.layers[0].blocks[0], timm.models.swin_transformer.SwinTransformerBlock)


def test_it_is_undone(model):
    kinds = [type(module) for module in model.modules()]
    report = accelerate(model)
    again = accelerate(model)
    assert {entry.reason for entry in again.left} == {"accelerated before"}
    again.undo()
    assert [type(module) for module in model.modules()] != kinds
    report.undo()
    assert [type(module) for module in model.modules()] == kinds
    accelerate(model)
    restore(model)
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_stay_accelerated(model, way):
    accelerate(model)
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
    image = torch.randn(1, 3, 56, 56)
    assert torch.equal(other(image), model(image))
    assert other.layers[0].blocks[0].attn.qkv.weight is not model.layers[0].blocks[0].attn.qkv.weight


def test_the_report_says_what_was_done(model):
    for block in model.layers[1].blocks:
        block.attn.attn_drop.p = 0.2
    model.layers[1].train()
    text = str(accelerate(model))
    block = "timm.models.swin_transformer.SwinTransformerBlock"
    assert text.splitlines() == [
        "accelerated 2 modules",
        f"  2 x {block} by window_attention (layers.0.blocks.0 … layers.0.blocks.1)",
        "left 2 modules",
        f"  2 x {block}: attention dropout 0.2 in training (layers.1.blocks.0 … layers.1.blocks.1)",
    ]
    assert "nothing to accelerate" in str(accelerate(nn.Linear(2, 2)))
    # Ours are fast already.
    assert not accelerate(timm.create_model("va_swin_tiny", depths=(1, 1, 1, 1), num_classes=0)).replaced


def test_other_things_than_modules_are_refused():
    with pytest.raises(TypeError, match="model is list"):
        accelerate([nn.Linear(2, 2)])
