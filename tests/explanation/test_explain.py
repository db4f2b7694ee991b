# SPDX-License-Identifier: Apache-2.0
"""Explanations against loops written from the definitions, graphs solved by hand, and models that are known."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import visionattn
from visionattn.explanation import attention_flow, attention_rollout, effective_receptive_field, grad_cam
from visionattn.explanation.weights import Grid, splat
from visionattn.models import FAMILIES

MICRO = {"depths": (1, 1), "embed_dim": 16, "num_heads": (2, 4), "num_classes": 5}


def pyramid(mixer, **mixer_kwargs):
    mixers = ("identity", mixer)
    return timm.create_model("va_pyramid_tiny", mixers=mixers, mixer_kwargs=({}, mixer_kwargs), **MICRO).eval()


def attention_inputs(model, image):
    """Input of the last mixer, as its class reads it."""
    found = []
    mixer = model.stages[-1].blocks[-1].attn
    handle = mixer.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    with torch.no_grad():
        model(image[None])
    handle.remove()
    return mixer, found[0]


def loop_weights(mixer, x, row, column, keys):
    """Softmax over listed keys `(row, column)` with their biases `(heads,)`, on the whole map `(heads, H, W)`."""
    q, k, _ = mixer.project_in(x)
    weights = torch.zeros(mixer.num_heads, *x.shape[1:3])
    for head in range(mixer.num_heads):
        logits = [mixer.scale * (q[0, row, column, head] @ k[0, i, j, head]) + bias[head] for i, j, bias in keys]
        for (i, j, _), weight in zip(keys, torch.stack(logits).softmax(0), strict=True):
            weights[head, i, j] = weight
    return weights.detach().numpy()


def test_neighborhood_weights_equal_a_loop():
    model, image = pyramid("neighborhood", kernel_size=3), torch.randn(3, 64, 48)
    mixer, x = attention_inputs(model, image)
    nn.init.normal_(mixer.rpb)
    row, column = 7, 2  # at the lower border of the 8 x 6 map: its window is shifted up
    keys = [(i, j, mixer.rpb[:, i - row + 2, j - column + 2]) for i in (5, 6, 7) for j in (1, 2, 3)]
    found = visionattn.explain(model, image, (row * 8 + 3, column * 8 + 5), flow=False).layers[-1]
    np.testing.assert_allclose(found.maps, loop_weights(mixer, x, row, column, keys), atol=1e-5)
    assert found.method == "weights" and found.name == "stages.1.blocks.0.attn"


def test_window_weights_equal_a_loop():
    model, image = pyramid("window", window_size=4, shift=0), torch.randn(3, 64, 64)
    mixer, x = attention_inputs(model, image)
    nn.init.normal_(mixer.rpb)
    row, column = 5, 2
    keys = [(i, j, mixer.rpb[:, i - row + 3, j - column + 3]) for i in range(4, 8) for j in range(4)]
    found = visionattn.explain(model, image, (row * 8, column * 8), flow=False).layers[-1]
    np.testing.assert_allclose(found.maps, loop_weights(mixer, x, row, column, keys), atol=1e-5)


SOFTMAX = ("window", "global", "bottleneck", "spatial_reduction", "pooled", "cross_shaped", "bilevel", "deformable",
           "hilo", "tokens", "area", "talking_heads", "gated", "sparsified", "cosine_global")  # fmt: skip


@pytest.mark.parametrize("mixer", SOFTMAX)
def test_softmax_weights_sum_to_one(mixer):
    found = visionattn.explain(pyramid(mixer), torch.randn(3, 96, 64), (3, 3), flow=False)
    layer = found.layers[-1]
    assert layer.method == "weights" and layer.maps.min() > -1e-6
    np.testing.assert_allclose(layer.maps.sum((1, 2)), 1, atol=1e-4)
    assert (layer.points is not None) == (mixer == "deformable")
    np.testing.assert_allclose(found.rollout.sum(), 1, atol=1e-4)


@pytest.mark.parametrize("mixer", ["agent", "focused_linear", "inline", "efficient"])
def test_linear_attention_has_the_weights_that_it_implies(mixer):
    layer = visionattn.explain(pyramid(mixer), torch.randn(3, 64, 64), flow=False).layers[-1]
    assert layer.method == "implied weights"
    np.testing.assert_allclose(layer.maps.sum((1, 2)), 1, atol=2e-2)


def test_a_convolution_as_mixer_sees_its_kernel():
    found = visionattn.explain(pyramid("pooling"), torch.randn(3, 96, 96), (40, 56), flow=False)
    layer = found.layers[-1]
    assert layer.method == "share of the Jacobian"
    seen = np.zeros((12, 12), bool)
    seen[4:7, 6:9] = True
    np.testing.assert_array_equal(layer.maps[0] > 0, seen)
    np.testing.assert_allclose(layer.maps.sum(), 1, atol=1e-5)


def test_class_token_leads_rollout_and_flow_of_a_vit_of_timm():
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_classes=5).eval()
    model.blocks[1].attn.fused_attn = False  # both ways in which timm computes attention are seen
    nn.init.normal_(model.head.weight)
    image = torch.randn(3, 64, 64)
    found = visionattn.explain(model, image, (5, 60), side=4)
    maps = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: maps.append(output[0]))
    with torch.no_grad():
        model(image[None])
    for layer, weights in zip(found.layers, maps, strict=True):
        np.testing.assert_allclose(layer.maps.reshape(3, 16), weights[:, 1 + 3, 1:], atol=1e-5)
        np.testing.assert_allclose(layer.prefix[:, 0], weights[:, 1 + 3, 0], atol=1e-5)
    means = torch.stack([weights.mean(0) for weights in maps])
    np.testing.assert_allclose(found.rollout.ravel(), attention_rollout(means)[0, 1:], atol=1e-5)
    source = torch.zeros(17)
    source[0] = 1
    np.testing.assert_allclose(found.flow.ravel(), attention_flow(means, source)[1:], atol=1e-4)
    assert found.grad_cam.max() == pytest.approx(1)


def test_windows_of_timms_swin_are_found_on_the_map():
    kwargs = {"img_size": 64, "window_size": 4, "depths": (2,), "embed_dim": 16, "num_heads": (2,), "num_classes": 3}
    found = visionattn.explain(
        timm.create_model("swin_tiny_patch4_window7_224", **kwargs), torch.randn(3, 64, 64), (21, 42)
    )
    plain, shifted = (layer.maps for layer in found.layers)
    rows, columns = np.nonzero(plain[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 7, 8, 11)  # around (5, 10)
    rows, columns = np.nonzero(shifted[0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 5, 10, 13)
    np.testing.assert_allclose([plain.sum((1, 2)), shifted.sum((1, 2))], 1, atol=1e-5)


def test_rollout_of_identity_attention_is_the_identity():
    eye = torch.eye(5).expand(3, 5, 5)
    torch.testing.assert_close(attention_rollout(eye), torch.eye(5))


def test_rollout_is_the_product_with_residuals():
    weights = torch.rand(2, 4, 4).softmax(-1)
    first, second = (0.5 * w + 0.5 * torch.eye(4) for w in weights)
    torch.testing.assert_close(attention_rollout(weights), second @ first)


def test_flow_on_a_graph_solved_by_hand():
    # Layer 1 swaps nothing; in layer 2 token 0 reads token 1 alone, token 1 itself. With residuals: from token 0 of the
    # last layer half of the flow goes to token 0, half to token 1 of the layer below, and straight down from there.
    weights = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    flow = attention_flow(weights, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(flow, torch.tensor([0.5, 0.5]), atol=1e-5, rtol=0)
    # Where layer 1 sends a quarter of token 1 to token 0, token 0 can be reached by 0.5 + min(0.5, 0.25).
    weights[0, 1] = torch.tensor([0.5, 0.5])
    flow = attention_flow(weights, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(flow, torch.tensor([0.75, 0.5]), atol=1e-5, rtol=0)


def test_grad_cam_peaks_where_the_channel_that_speaks_for_the_class_does():
    features, gradients = torch.rand(49, 6), torch.zeros(49, 6)
    gradients[:, 2], gradients[:, 4] = 0.3, -0.1
    features[17, 2], features[17, 4] = 5.0, 0.0
    cam = grad_cam(features, gradients)
    assert int(cam.argmax()) == 17 and float(cam.max()) == pytest.approx(1) and float(cam.min()) >= 0
    with pytest.raises(ValueError, match="must both be"):
        grad_cam(features, gradients[:4])


def test_receptive_field_of_a_convolution_is_its_kernel():
    image = torch.randn(1, 3, 21, 17, requires_grad=True)
    features = nn.Conv2d(3, 8, 3, padding=2, dilation=2)(image)
    field = effective_receptive_field(features[0, :, 10, 6], image)
    seen = torch.zeros(21, 17, dtype=torch.bool)
    seen[8:13:2, 4:9:2] = True
    assert torch.equal(field > 0, seen)
    assert float(field.max()) == pytest.approx(1)


def test_points_between_pixels_are_shared_out_bilinearly():
    grid = Grid(1, 3, 5)
    points = torch.tensor([[[0.0, 0.25], [1.0, 1.0]]])  # row 1, column 2.5; the last corner
    shares = splat(points, grid)[0]
    assert shares[0].nonzero().flatten().tolist() == [1 + 5 + 2, 1 + 5 + 3]
    torch.testing.assert_close(shares[0, [8, 9]], torch.tensor([0.5, 0.5]))
    assert float(shares[1, 15]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixel": (64, 3)}, ValueError, r"pixel=\(64, 3\) lies outside .* rows 0 to 63"),
        ({"target": 5}, ValueError, "target=5 must be a class, 0 to 4"),
        ({"side": 0}, ValueError, "side=0"),
        ({"image": torch.randn(2, 3, 64, 64)}, ValueError, "must be one image"),
        ({"image": np.zeros((64, 64, 3))}, TypeError, "image=ndarray"),
    ],
)
def test_bad_input_is_named(change, error, message):
    given = {"image": torch.randn(3, 64, 64), **change}
    with pytest.raises(error, match=message):
        visionattn.explain(pyramid("tokens"), **given)


def test_halo_attention_between_convolutions_is_found():
    name, args = next(iter(FAMILIES["halonet"].micros.items()))
    found = visionattn.explain(timm.create_model(name, **args), torch.randn(3, 128, 128))
    assert found.layers[0].maps.shape[1:] == (16, 16) and found.flow.shape == (7, 7)  # 8 x 8 queries
    assert all(layer.method == "weights" for layer in found.layers)
    assert all(0 < total <= 1 + 1e-4 for layer in found.layers for total in layer.maps.sum((1, 2)))


def test_a_model_without_attention_has_gradients_alone():
    model = timm.create_model("resnet18", num_classes=2)
    found = visionattn.explain(model, torch.randn(3, 64, 64))
    assert not found.layers and found.rollout is None and found.flow is None
    assert found.grad_cam.shape == (2, 2) and found.receptive_field.shape == (64, 64)
    assert model.training  # as it was
