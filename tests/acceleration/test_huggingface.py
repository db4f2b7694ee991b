# SPDX-License-Identifier: Apache-2.0
import types

import pytest
import torch
from equality import assert_accelerated_equals
from torch import nn

from visionattn import accelerate
from visionattn.layers import NeighborhoodAttention

transformers = pytest.importorskip("transformers")
maskformer = pytest.importorskip("transformers.models.maskformer.modeling_maskformer_swin")
clap = pytest.importorskip("transformers.models.clap.modeling_clap")
dinat = pytest.importorskip("transformers.models.dinat.modeling_dinat")

SMALL = dict(
    image_size=64,
    embed_dim=16,
    depths=[2, 2],
    num_heads=[2, 4],
    window_size=7,
    drop_path_rate=0.0,
    hidden_dropout_prob=0.0,
)


class Features(nn.Module):
    """The last features of a model whose outputs have names."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        output = self.model(x)
        return output.feature_maps if "feature_maps" in output else output.last_hidden_state


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("model", "config"),
    [
        (transformers.SwinModel, transformers.SwinConfig),
        (transformers.SwinBackbone, transformers.SwinConfig),
        (transformers.Swinv2Model, transformers.Swinv2Config),
        (transformers.DonutSwinModel, transformers.DonutSwinConfig),
        (maskformer.MaskFormerSwinModel, transformers.MaskFormerSwinConfig),
    ],
)
def test_swin_transformers(model, config, training):
    size = (64, 64) if model in (transformers.Swinv2Model, maskformer.MaskFormerSwinModel) else (64, 92)
    features = Features(model(config(**SMALL)))
    # transformers 5 takes a softmax in float32 even of float64 logits, unless torch's own attention does it.
    tolerance = 1e-9 if getattr(model, "_supports_sdpa", False) or int(transformers.__version__[0]) < 5 else 1e-6
    assert_accelerated_equals(features.train(training), size, count=4, tolerance=tolerance)


class OnMap(nn.Module):
    """A layer of tokens as a module of maps (B, C, H, W)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2), tuple(x.shape[2:]))[0]


def test_the_audio_copy_of_swin():
    config = transformers.ClapAudioConfig(window_size=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    layer = clap.ClapAudioLayer(config, 3, (9, 11), num_heads=1, shift_size=2)
    assert_accelerated_equals(OnMap(layer.eval()), (9, 11), count=1)


@pytest.mark.parametrize("asked", ["by the call", "by the config"])
def test_attention_weights_are_returned_where_asked_for(asked):
    config = transformers.SwinConfig(**SMALL, attn_implementation="eager", output_attentions=asked == "by the config")
    model = transformers.SwinModel(config).eval()
    image = torch.randn(1, 3, 64, 64)
    args = dict(output_attentions=True) if asked == "by the call" else {}
    expected = model(image, output_hidden_states=True, **args)
    assert len(accelerate(model).replaced) == 4
    output = model(image, output_hidden_states=True, **args)
    assert len(output.hidden_states) == len(expected.hidden_states)
    for ours, theirs in zip(output.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# The definition is our layer's, which golden records hold to NATTEN; transformers' own forward needs NATTEN, and does
# not run with the releases that it finds.
def test_neighborhood_attention_runs_without_natten():
    config = types.SimpleNamespace(qkv_bias=True, attention_probs_dropout_prob=0.0)
    theirs = dinat.NeighborhoodAttention(config, 16, 2, 3, 2).double()
    ours = NeighborhoodAttention(16, 2, 3, 2).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
        layers = (theirs.query, theirs.key, theirs.value)
        ours.qkv.weight.copy_(torch.cat([layer.weight for layer in layers]))
        ours.qkv.bias.copy_(torch.cat([layer.bias for layer in layers]))
        ours.rpb.copy_(theirs.rpb)
        ours.proj.weight.copy_(torch.eye(16))
        ours.proj.bias.zero_()
    assert accelerate(theirs).replaced[0].op == "neighborhood_attention"
    x = torch.randn(2, 9, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(theirs(x)[0], ours(x), rtol=1e-9, atol=1e-9)
