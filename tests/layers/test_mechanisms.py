# SPDX-License-Identifier: Apache-2.0
"""Mechanisms of attention as mixers: against loops written from their definitions, and what each of them promises."""

import cmath
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from visionattn.layers import MIXERS, create_mixer
from visionattn.layers.taylor import taylor_attention
from visionattn.layers.token_pooling import pool_tokens


def projections(layer, x):
    """Queries, keys, values `(B, heads, N, D)` of a map."""
    qkv = layer.qkv(x.flatten(1, 2)).reshape(x.shape[0], -1, 3, layer.num_heads, x.shape[3] // layer.num_heads)
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def joined(layer, heads, x):
    return layer.proj(heads.transpose(1, 2).reshape(x.shape))


def by_weights(weigh):
    """Mixer each of whose results is a sum of values with weights `weigh(layer, q, keys, head)`."""

    def mix(layer, x):
        q, k, v = projections(layer, x)
        out = torch.zeros_like(v)
        for b in range(x.shape[0]):
            for h in range(layer.num_heads):
                for i in range(q.shape[2]):
                    weights = weigh(layer, q[b, h, i], k[b, h], h)
                    out[b, h, i] = sum(w * row for w, row in zip(weights, v[b, h], strict=True))
        return joined(layer, out, x)

    return mix


def softmax(logits):
    exponentials = [math.exp(value) for value in logits]
    return [e / sum(exponentials) for e in exponentials]


def dots(q, keys):
    return [float(q @ k) for k in keys]


def unit(vector):
    return vector / vector.norm()


def sigmoid(layer, q, keys, head):
    shift = math.log(len(keys))
    return [1 / (1 + math.exp(shift - t / math.sqrt(len(q)))) for t in dots(q, keys)]


def taylor(layer, q, keys, head):
    products = [float(layer.temperature[head] * (unit(q) @ unit(k))) for k in keys]
    terms = [t * t / 2 + t + 1 for t in products]
    return [math.sqrt(len(keys) / len(q)) * t / sum(terms) for t in terms]


def clipped(layer, q, keys, head):
    lower = -layer.alpha / len(keys)
    weights = softmax([t / math.sqrt(len(q)) for t in dots(q, keys)])
    return [min(max((layer.upper - lower) * w + lower, 0), 1) for w in weights]


def normalized(layer, q, keys, head):
    return softmax([float(layer.gain * (unit(q) @ unit(k))) for k in keys])


def plain(q, k):
    """Softmax weights of every query, `(N, n)`."""
    return torch.tensor([softmax([t * len(row) ** -0.5 for t in dots(row, k)]) for row in q], dtype=q.dtype)


def weights_of(q, k):
    """Softmax weights of every image and head, `(B, heads, N, n)`."""
    images = [[plain(*head) for head in zip(*image, strict=True)] for image in zip(q, k, strict=True)]
    return torch.stack([torch.stack(heads) for heads in images])


def gated(layer, x):
    q, k, v = projections(layer, x)
    out = weights_of(q, k) @ v
    gate = 1 / (1 + (-layer.gate(x.flatten(1, 2))).exp())
    return layer.proj((out.transpose(1, 2).flatten(2) * gate).reshape(x.shape))


def memory(layer, x):
    both = torch.cat([x.flatten(1, 2), layer.memory.expand(x.shape[0], -1, -1)], 1)
    _, k, v = projections(layer, both[:, None])
    q = projections(layer, x)[0]
    out = weights_of(q, k) @ v
    return joined(layer, out, x)


def efficient(layer, x):
    q, k, v = projections(layer, x)
    out = torch.zeros_like(v)
    for index in torch.cartesian_prod(*map(torch.arange, q.shape[:2])).tolist():
        queries, keys, values = (t[tuple(index)] for t in (q, k, v))
        maps = [torch.tensor(softmax(keys[:, c].tolist()), dtype=x.dtype) for c in range(keys.shape[1])]
        summary = [m @ values for m in maps]
        for i, row in enumerate(queries):
            shares = softmax(row.tolist())
            out[tuple(index)][i] = sum(share * s for share, s in zip(shares, summary, strict=True))
    return joined(layer, out, x)


def sinkhorn(layer, x):
    q, k, v = projections(layer, x)
    matrix = (q @ k.transpose(2, 3) * layer.scale / layer.eps).exp()
    for i in range(layer.iterations):
        matrix = matrix / matrix.sum(3 - i % 2, keepdim=True)
    return joined(layer, matrix @ v, x)


def circular(layer, x):
    tokens = x.flatten(1, 2)
    count = tokens.shape[1]
    a = layer.score(tokens).exp()
    a = a / a.sum(1, keepdim=True)
    v = layer.v(tokens).unflatten(2, (layer.num_heads, -1))
    out = torch.zeros_like(v)
    for i in range(count):
        for t in range(count):
            out[:, i] += a[:, t, :, None] * v[:, (i + t) % count]
    return layer.proj(out.reshape(x.shape))


def spectral(layer, x):
    batch, heads = x.shape[0], layer.num_heads
    tokens = x.flatten(1, 2).reshape(batch, -1, heads, x.shape[3] // heads)
    count = tokens.shape[1]
    frequencies = count // 2 + 1
    change = layer.context(x.flatten(1, 2).mean(1)).reshape(batch, heads, frequencies, 2)
    wave = lambda sign, f, n: cmath.exp(sign * 2j * math.pi * f * n / count) / math.sqrt(count)  # noqa: E731
    out = torch.zeros_like(tokens)
    for f in range(frequencies):
        z = sum(wave(-1, f, n) * tokens[:, n] for n in range(count))
        z = z * (layer.filter[:, f] * (1 + change[:, :, f, 0]))[..., None]
        z = z + (layer.bias[:, f] + change[:, :, f, 1])[..., None]
        z = z * F.gelu(z.abs()) / (z.abs() + 1e-6)
        own_mirror = f == 0 or 2 * f == count
        for n in range(count):
            out[:, n] += (1 if own_mirror else 2) * (wave(1, f, n) * z).real
    return out.reshape(x.shape)


def area(layer, x):
    planes = x.permute(0, 3, 1, 2)
    v = layer.v(planes)
    q, k = layer.qk(planes).chunk(2, 1)
    flat = [t.flatten(2).transpose(1, 2).unflatten(2, (layer.num_heads, -1)) for t in (q, k, v)]
    count = flat[0].shape[1]
    length = -(-count // layer.num_areas)
    out = torch.zeros_like(flat[2])
    for b in range(x.shape[0]):
        for h in range(layer.num_heads):
            for start in range(0, count, length):
                q, k, values = (t[b, start : start + length, h] for t in flat)
                out[b, start : start + length, h] = plain(q, k) @ values
    out = out.flatten(2).transpose(1, 2).reshape(planes.shape)
    return layer.proj(out + layer.pe(v)).permute(0, 2, 3, 1)


def token_pooling(layer, x):
    q, k, v = projections(layer, x)
    weights = weights_of(q, k)
    tokens = joined(layer, weights @ v, x).flatten(1, 2)
    received = weights.sum((1, 2))
    out = torch.empty_like(tokens)
    for b, image in enumerate(tokens):
        first = sorted(range(len(image)), key=lambda i: -received[b, i])[: -(-len(image) // layer.cluster_size)]
        centres = [image[i] for i in first]
        nearest = lambda token: min(range(len(centres)), key=lambda c: (token - centres[c]).square().sum())  # noqa: E731, B023
        for _ in range(layer.iterations):
            members = [nearest(token) for token in image]
            for c in set(members):
                own = [i for i, m in enumerate(members) if m == c]
                centres[c] = sum(received[b, i] * image[i] for i in own) / sum(received[b, i] for i in own)
        out[b] = torch.stack([centres[nearest(token)] for token in image])
    return out.reshape(x.shape)


def polarized(layer, x):
    channel, spatial = layer.gate.channel, layer.gate.spatial
    planes = x.permute(0, 3, 1, 2)
    weights = channel.query(planes).flatten(2).exp()
    pooled = (channel.value(planes).flatten(2) * weights / weights.sum(2, keepdim=True)).sum(2)
    channels = 1 / (1 + (-channel.up(pooled[..., None, None])).exp())
    q = spatial.query(planes).mean((2, 3))
    places = (q[..., None, None] * spatial.value(planes)).sum(1, keepdim=True).exp()
    places = 1 / (1 + (-places / places.sum((2, 3), keepdim=True)).exp())
    return (planes * channels + planes * places).permute(0, 2, 3, 1)


def talking_heads(layer, x):
    q, k, v = projections(layer, x)
    logits = q @ k.transpose(2, 3) * layer.scale
    mixed = sum(layer.mix_logits[h, :, None, None] * logits[:, h, None] for h in range(layer.num_heads))
    weights = mixed.exp() / mixed.exp().sum(3, keepdim=True)
    weights = sum(layer.mix_weights[h, :, None, None] * weights[:, h, None] for h in range(layer.num_heads))
    return joined(layer, weights @ v, x)


def composed(part, matrix, queries, keys):
    """Each entry of a matrix `(B, heads, N, N)` by itself."""
    out = torch.empty_like(matrix)
    heads = part.num_heads
    for b, i, j in torch.cartesian_prod(*map(torch.arange, (matrix.shape[0], *matrix.shape[2:]))).tolist():
        entry = matrix[b, :, i, j]
        total = entry @ part.mix
        for side, token in (("query", queries[b, i]), ("key", keys[b, j])):
            w = part.factors[side](token).reshape(2, part.rank, heads)
            for r in range(part.rank):
                down = w[0, r] / (w[0, r].square().mean() + part.norms[side].eps).sqrt() * part.norms[side].weight
                total = total + (entry @ down) * w[1, r]
            total = total + entry * part.gates[side](token).tanh()
        out[b, :, i, j] = total
    return out


def composed_heads(layer, x):
    q, k, v = projections(layer, x)
    tokens = [t.transpose(1, 2).flatten(2) for t in (q, k)]
    weights = composed(layer.compose_logits, q @ k.transpose(2, 3) * layer.scale, *tokens).softmax(3)
    return joined(layer, composed(layer.compose_weights, weights, *tokens) @ v, x)


def recurrent_cache(layer, x):
    q, k, v = projections(layer, x)
    tokens, width, slots = x.flatten(1, 2), layer.width, layer.num_slots
    out = torch.zeros_like(v)
    for b in range(x.shape[0]):
        cache = layer.cache.clone()
        for s in range(slots):
            place = min(max((s + 0.5) * tokens.shape[1] / slots - 0.5, 0), tokens.shape[1] - 1)
            low, share = int(place), place - int(place)
            high = min(low + 1, tokens.shape[1] - 1)
            seen = (1 - share) * tokens[b, low, :width] + share * tokens[b, high, :width]
            update, reset = layer.gates(torch.cat([seen, cache[s]])).sigmoid().chunk(2)
            change = layer.update(torch.cat([seen, reset * cache[s]])).tanh()
            cache[s] = (1 - update) * cache[s] + update * change
        keys, values = layer.cache_kv(cache).reshape(slots, 2, layer.num_heads, -1).permute(1, 2, 0, 3)
        for h in range(layer.num_heads):
            share = layer.share[h].sigmoid()
            out[b, h] = share * plain(q[b, h], keys[h]) @ values[h] + (1 - share) * plain(q[b, h], k[b, h]) @ v[b, h]
    return joined(layer, out, x)


def glu(layer, x):
    half = layer.fc2.in_features
    gate, value = F.linear(x, layer.fc1.weight[:half], layer.fc1.bias[:half]), F.linear(
        x, layer.fc1.weight[half:], layer.fc1.bias[half:])  # fmt: skip
    return layer.fc2(gate * (1 + torch.erf(gate / math.sqrt(2))) / 2 * value)


def network_gate(layer, x):
    cells = x.flatten(1, 2)  # a map of the inner network's size
    cells = cells + layer.mix_tokens(layer.norm1(cells).mT).mT
    cells = cells + layer.mix_channels(layer.norm2(cells))
    return layer.value(x) * cells.reshape(x.shape)


# Name, arguments, size of the map, definition.
CASES = [
    ("sigmoid", {}, (3, 4), by_weights(sigmoid)),
    ("taylor", {"crossover": 100}, (3, 4), by_weights(taylor)),
    ("taylor", {"crossover": 1}, (3, 4), by_weights(taylor)),
    ("clipped", {"alpha": 0.7, "upper": 1.03}, (3, 4), by_weights(clipped)),
    ("normalized", {"num_tokens": 5}, (3, 4), by_weights(normalized)),
    ("gated", {}, (3, 4), gated),
    ("memory", {"num_memories": 3}, (3, 4), memory),
    ("efficient", {}, (3, 4), efficient),
    ("sinkhorn", {"iterations": 4, "eps": 0.7}, (3, 4), sinkhorn),
    ("circular", {}, (3, 5), circular),
    ("spectral", {"num_tokens": 15}, (3, 5), spectral),
    ("spectral", {"num_tokens": 12}, (3, 4), spectral),
    ("area", {"num_areas": 2}, (4, 3), area),
    ("area", {"num_areas": 4}, (3, 3), area),
    ("token_pooling", {"cluster_size": 3}, (3, 5), token_pooling),
    ("polarized", {}, (3, 4), polarized),
    ("talking_heads", {}, (3, 4), talking_heads),
    ("composed_heads", {}, (2, 3), composed_heads),
    ("recurrent_cache", {"num_slots": 5, "cache_ratio": 0.75}, (3, 4), recurrent_cache),
    ("glu", {}, (3, 4), glu),
    ("network_gate", {"map_size": 3}, (3, 3), network_gate),
]  # fmt: skip
NAMES = list(dict.fromkeys(case[0] for case in CASES))


def drawn(name, dim=8, heads=2, **kwargs):
    """Mixer in evaluation with every parameter and buffer drawn afresh."""
    layer = create_mixer(name, dim, heads, **kwargs).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for buffer_name, buffer in layer.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + 0.5 if "var" in buffer_name else torch.randn_like(buffer))
    return layer


@pytest.mark.parametrize(("name", "kwargs", "size", "definition"), CASES, ids=lambda v: v if isinstance(v, str) else "")
def test_mixers_do_what_is_defined(name, kwargs, size, definition):
    layer = drawn(name, **kwargs)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(layer(x), definition(layer, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_mixers_learn(name):
    torch.manual_seed(5)
    args = {"spectral": {"num_tokens": 16}, "network_gate": {"map_size": 4}}.get(name)
    model = timm.create_model(
        "va_vit_tiny",
        depth=1,
        embed_dim=16,
        num_heads=2,
        img_size=16,
        patch_size=4,
        num_classes=4,
        mixer=name,
        mixer_args=args,
    )
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    assert all(p.grad.abs().max() > 0 for p in model.blocks[0].attn.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", MIXERS)
def test_mixers_say_what_they_cost(name):
    assert MIXERS[name].cost in ("O(1)", "O(N)", "O(N log N)", "O(N√N)", "O(N²)")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("area", "polarized", "network_gate")])
def test_mixers_take_a_class_token(name):
    model = timm.create_model("va_vit_tiny", depth=1, embed_dim=16, num_heads=2, mixer=name, class_token=True)
    assert model.eval()(torch.randn(1, 3, 40, 50)).isfinite().all()


def test_mixers_of_maps_take_no_class_token():
    with pytest.raises(ValueError, match="class_token=True must go with mixers that take tokens; mixer='area' takes"):
        timm.create_model("va_vit_tiny", mixer="area", class_token=True)
    with pytest.raises(ValueError, match="unknown mixer 'sigmod'; did you mean sigmoid"):
        timm.create_model("va_vit_tiny", mixer="sigmod")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("circular", {"direction": "left"}, "direction='left' must be one of"),
        ("spectral", {"num_tokens": 0}, "num_tokens=0 must be at least 1"),
        ("sinkhorn", {"iterations": 0}, "iterations=0 must be at least 1"),
        ("sinkhorn", {"eps": 0.0}, "eps=0.0 must be positive"),
        ("area", {"num_areas": 0}, "num_areas=0 must be at least 1"),
        ("area", {"num_heads": 3}, "num_heads=3 must be a positive divisor of dim=8"),
        ("token_pooling", {"cluster_size": 0}, "cluster_size=0 must be at least 1"),
        ("token_pooling", {"iterations": 0}, "iterations=0 must be at least 1"),
        ("clipped", {"alpha": -1.0}, "alpha=-1.0 must not be negative"),
        ("clipped", {"upper": 0.5}, "upper=0.5 must be at least 1"),
        ("normalized", {"num_tokens": 1}, "num_tokens=1 must be at least 2"),
        ("composed_heads", {"rank": 0}, "rank=0 must be at least 1"),
        ("memory", {"num_memories": 0}, "num_memories=0 must be at least 1"),
        ("recurrent_cache", {"num_slots": 0}, "num_slots=0 must be at least 1"),
        ("recurrent_cache", {"cache_ratio": 2.0}, "cache_ratio=2.0 makes 16 of 8 channels"),
        ("glu", {"expansion_ratio": 0.0}, "expansion_ratio=0.0 leaves no channel of dim=8"),
        ("network_gate", {"map_size": 0}, "map_size=0 must be at least 1"),
        ("network_gate", {"mlp_ratio": 0.0}, "mlp_ratio=0.0 must be positive"),
        ("polarized", {"sequential": True, "dim": 4}, "channels=4 must be at least 8"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_mixer(name, **{"dim": 8, "num_heads": 2, **kwargs})


def test_taylor_needs_a_positive_polynomial():
    q = torch.randn(1, 3, 4)
    with pytest.raises(ValueError, match=r"coefficients=\(0.5, 2.0, 1.0\) must make a t² \+ b t \+ c positive"):
        taylor_attention(q, q, q, (0.5, 2.0, 1.0))


def test_taylor_switches_where_the_efficient_form_computes_less(monkeypatch):
    forms = []

    def attend(q, k, v, efficient):
        forms.append((k.shape[-2], efficient))
        return taylor_attention(q, k, v, efficient=efficient)

    monkeypatch.setattr("visionattn.layers.taylor.taylor_attention", attend)
    layer = drawn("taylor", 8, 2)  # heads of 4 channels
    for count in (21, 22):
        layer(torch.randn(1, count, 1, 8, dtype=torch.float64))
    assert forms == [(21, False), (22, True)]


def test_circular_directions_differ_by_the_order_of_scores():
    layer = drawn("circular", direction="convolution", averaged_key=True)
    x = torch.randn(1, 3, 3, 8, dtype=torch.float64)
    q, k = layer.qk(x.flatten(1, 2)).unflatten(2, (2, 2, 4)).unbind(2)
    a = ((q * k.mean(1, keepdim=True)).sum(3) * layer.scale).softmax(1)
    v = layer.v(x.flatten(1, 2)).unflatten(2, (2, 4))
    out = torch.stack([sum(a[:, t, :, None] * v[:, (i - t) % 9] for t in range(9)) for i in range(9)], 1)
    assert torch.allclose(layer(x), layer.proj(out.reshape(x.shape)))


def test_a_filter_of_another_size_is_resized():
    layer = drawn("spectral", num_tokens=16, adaptive=False)
    torch.nn.init.constant_(layer.filter, 0.3)
    torch.nn.init.constant_(layer.bias, 0.1)
    other = drawn("spectral", num_tokens=35, adaptive=False)
    torch.nn.init.constant_(other.filter, 0.3)
    torch.nn.init.constant_(other.bias, 0.1)
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    assert torch.allclose(layer(x), other(x))


def test_a_cluster_without_tokens_keeps_its_centre():
    x = torch.tensor([[[0.0], [1.0], [1.0], [4.0]]])
    centres, nearest = pool_tokens(x, torch.tensor([[1, 2, 3]]), 1)
    assert torch.allclose(centres.flatten(), torch.tensor([2 / 3, 1, 4])) and nearest.tolist() == [[0, 1, 1, 2]]


def test_the_cache_follows_training_and_rests_in_evaluation():
    layer = create_mixer("recurrent_cache", 8, 2, num_slots=4)
    x = torch.randn(3, 5, 5, 8)
    before = layer.cache.clone()
    layer(x)
    after = layer.cache.clone()
    assert not torch.equal(before, after) and not layer.cache.requires_grad
    layer.eval()(x)
    assert torch.equal(layer.cache, after)
    again = create_mixer("recurrent_cache", 8, 2, num_slots=4)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.eval()(x), layer(x))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an op returns."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.count = max(self.count, tensor.numel())
        return out


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("sigmoid", {}),
        ("clipped", {}),
        ("talking_heads", {}),
        ("taylor", {"crossover": 999}),
        ("taylor", {"crossover": 1}),
    ],
)
def test_chunks_bound_the_memory_and_change_nothing(name, kwargs, monkeypatch):
    layer = drawn(name, 16, 2, **kwargs)
    x = torch.randn(2, 9, 11, 16, dtype=torch.float64, requires_grad=True)
    variables = [x, *layer.parameters()]
    cotangent = torch.randn_like(x)
    whole = layer(x)
    expected = torch.autograd.grad((whole * cotangent).sum(), variables)
    monkeypatch.setattr("visionattn.layers.tokens.CHUNK_ELEMENTS", 3000)
    with Largest() as largest:
        out = layer(x)
        found = torch.autograd.grad((out * cotangent).sum(), variables)
    assert torch.allclose(out, whole) and all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    # At most the packed projection, not 2 x 2 x 99 x 99 weights or 2 x 2 x 99 x 64 squares.
    assert largest.count <= 2 * 99 * 3 * 16


def test_sinkhorn_makes_rows_and_columns_sum_to_one():
    from visionattn.layers.sinkhorn import sinkhorn as iterate

    weights = iterate(torch.randn(2, 6, 6, dtype=torch.float64), 61)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 6, dtype=torch.float64))
    assert torch.allclose(weights.sum(-2), torch.ones(2, 6, dtype=torch.float64), atol=1e-6)
