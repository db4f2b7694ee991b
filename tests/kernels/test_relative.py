# SPDX-License-Identifier: Apache-2.0
"""Relative attention against its definition, pixel by pixel; its gradients, its memory, its errors."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from visionattn.kernels import explain, halo_attention, relative_attention, use_backend


def call(height=3, width=4, heads=2, head_dim=4, v_dim=5, batch=2, dtype=torch.float64):
    """Arguments of a call: strided queries and keys of a packed map, values, tables."""
    packed = torch.randn(batch, height, width, 3, heads, head_dim, dtype=dtype)
    q, k = (packed[:, :, :, i].requires_grad_() for i in (0, 2))
    v = torch.randn(batch, height, width, heads, v_dim, dtype=dtype).requires_grad_()
    tables = [torch.randn(2 * side - 1, head_dim, dtype=dtype).requires_grad_() for side in (height, width)]
    return q, k, v, tables


def defined(q, k, v, tables, scale, scale_rel):
    """Every query by itself."""
    batch, height, width, heads, _ = q.shape
    rows, columns = tables
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    for b, i, u, h in itertools.product(*map(range, (batch, height, width, heads))):
        query, logits = q[b, i, u, h], []
        for y, x in itertools.product(range(height), range(width)):
            content = query @ k[b, y, x, h]
            relative = query @ rows[y - i + height - 1] + query @ columns[x - u + width - 1]
            logits.append(scale * (content + relative) if scale_rel else scale * content + relative)
        out[b, i, u, h] = torch.stack(logits).softmax(0) @ v[b, :, :, h].flatten(0, 1)
    return out


@pytest.mark.parametrize("scale_rel", [False, True])
@pytest.mark.parametrize(
    "sizes", [{}, {"height": 1, "width": 1}, {"height": 5, "width": 2, "head_dim": 3, "v_dim": 24, "batch": 1}], ids=str
)
def test_every_query_meets_every_key_and_its_offset(sizes, scale_rel):
    q, k, v, tables = call(**sizes)
    out = relative_attention(q, k, v, tables, scale=0.3, scale_rel=scale_rel)
    expected = defined(q, k, v, tables, 0.3, scale_rel)
    cotangent = torch.randn_like(out)
    grads, defined_grads = (torch.autograd.grad(o, (q, k, v, *tables), cotangent) for o in (out, expected))
    assert torch.allclose(out, expected)
    assert all(torch.allclose(a, b) for a, b in zip(grads, defined_grads, strict=True))


def test_the_scale_is_that_of_the_head_unless_given():
    q, k, v, tables = call()
    assert torch.equal(relative_attention(q, k, v, tables), relative_attention(q, k, v, tables, scale=4**-0.5))
    no_content = relative_attention(q, k, v, tables, scale=0.0)
    assert torch.allclose(no_content, relative_attention(q, torch.randn_like(k), v, tables, scale=0.0))
    means = relative_attention(q, k, v, tables, scale=0.0, scale_rel=True)
    assert torch.allclose(means, v.mean((1, 2), keepdim=True).expand_as(v))


def test_gradients_are_those_of_finite_differences():
    q, k, v, tables = call(2, 3, heads=1, head_dim=2, v_dim=3, batch=1)
    run = lambda q, k, v, *tables: relative_attention(q, k, v, tables)  # noqa: E731
    assert torch.autograd.gradcheck(run, (q, k, v, *tables))


def test_one_block_as_large_as_the_map_and_without_halo_is_the_same():
    q, k, v, tables = call(6, 9)
    blocked = halo_attention(q, k, v, (6, 9), 0, rel_tables=tables, scale=0.2)
    assert torch.allclose(relative_attention(q, k, v, tables, scale=0.2), blocked)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max(self.numel, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)), 0)
        return result


@pytest.mark.parametrize("v_dim", [8, 16, 90])
def test_no_logits_of_all_pairs_are_kept(v_dim):
    q, k, v, tables = call(24, 28, heads=2, head_dim=16, v_dim=v_dim, batch=1, dtype=torch.float32)
    with Largest() as largest:
        relative_attention(q, k, v, tables).sum().backward()
    pixels = 24 * 28
    widest = -(-max(16 + 24 + 28, v_dim) // 8) * 8
    assert largest.numel <= pixels * 2 * widest < pixels**2 / 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_as_its_rounding_does(dtype):
    q, k, v, tables = call(8, 8, heads=2, head_dim=16, v_dim=16)
    exact = relative_attention(q, k, v, tables)
    out = relative_attention(*(x.to(dtype) for x in (q, k, v)), tables)
    assert out.dtype == dtype
    assert (out - exact).norm() <= 8 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": torch.randn(2, 12, 2, 4, dtype=torch.float64)}, ValueError, r"q has shape \(2, 12, 2, 4\)"),
        ({"k": torch.randn(2, 3, 4, 1, 4, dtype=torch.float64)}, ValueError, "k has shape .* it must be that of q"),
        ({"v": torch.randn(2, 4, 3, 2, 5, dtype=torch.float64)}, ValueError, "v has shape"),
        ({"rel_tables": [torch.randn(5, 4)]}, ValueError, "rel_tables has 1 tables"),
        ({"rel_tables": [torch.randn(5, 4), torch.randn(5, 4)]}, ValueError, r"rel_tables\[1\] .* must be \(7, 4\)"),
        ({"q": torch.randn(2, 3, 4, 2, 4)}, TypeError, "must share one floating-point dtype"),
    ],
    ids=["axes", "keys", "values", "one table", "table", "dtypes"],
)
def test_wrong_arguments_are_named(change, error, message):
    q, k, v, tables = call()
    with pytest.raises(error, match=message):
        relative_attention(**{"q": q, "k": k, "v": v, "rel_tables": tables, **change})


def test_backends_that_lack_the_op_are_passed_over_unless_asked_for():
    q, k, v, tables = call(dtype=torch.float32)
    assert explain(relative_attention, q, k, v, tables).startswith("torch (not triton: it has no relative_attention")
    with use_backend("triton"), pytest.raises(RuntimeError, match="it has no relative_attention"):
        relative_attention(q, k, v, tables)
