# SPDX-License-Identifier: Apache-2.0
"""`mmcv._ext` without a compiler: ops against loops written from their definitions, and mmcv and mmdet on top."""

import importlib.machinery
import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("mmengine")

from visionattn.openmmlab import mmcv_ext

sys.path.append(str(Path(__file__).parents[1] / "golden"))
import records

EXT = mmcv_ext.OPS
RECORD = Path(records.FOLDER) / "ops" / "deform_conv2d.json.gz"


@pytest.fixture(scope="module")
def ops() -> Any:
    pytest.importorskip("mmcv")
    if not mmcv_ext.install():
        pytest.skip("mmcv has a compiled extension")
    return pytest.importorskip("mmcv.ops")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rand(*shape: int, low: float = 0.0, high: float = 1.0, grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high).requires_grad_(grad)


def randn(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_(grad)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


def gradcheck(function: Any, leaves: Any) -> bool:
    return torch.autograd.gradcheck(function, leaves, fast_mode=True)


def boxes(n: int, size: float = 10.0) -> Tensor:
    corner = rand(n, 2, high=size)
    return torch.cat((corner, corner + rand(n, 2, low=0.5, high=size / 2)), 1)


def rois(n: int, images: int = 2, size: float = 12.0) -> Tensor:
    return torch.cat((torch.randint(images, (n, 1)).double(), boxes(n, size)), 1)


# --- the module -------------------------------------------------------------------------------------------------------


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow  # as every new interpreter
def test_importing_openmmlab_installs_without_importing_mmcv():
    pytest.importorskip("mmcv")
    code = (
        "import sys, visionattn.openmmlab; "
        "print([n for n in sys.modules if n.split('.')[0] in ('mmcv', 'mmdet', 'mmseg')])"
    )
    assert python(code).strip() in ("['mmcv._ext']", "[]")  # none where a compiled one exists


def test_install_is_idempotent_and_leaves_others_alone(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, mmcv_ext.NAME, other := object())
    assert not mmcv_ext.install() and sys.modules[mmcv_ext.NAME] is other
    monkeypatch.delitem(sys.modules, mmcv_ext.NAME)
    monkeypatch.delitem(sys.modules, "mmcv", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").touch()
    assert mmcv_ext.install() and mmcv_ext.install() and "mmcv" not in sys.modules
    ours = sys.modules.pop(mmcv_ext.NAME)
    assert ours.nms is EXT["nms"]
    compiled = tmp_path / "mmcv" / f"_ext{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    compiled.touch()
    sys.path_importer_cache.clear()
    assert not mmcv_ext.install() and mmcv_ext.NAME not in sys.modules


def test_nothing_is_installed_where_there_is_no_mmcv(monkeypatch):
    monkeypatch.delitem(sys.modules, mmcv_ext.NAME, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not mmcv_ext.install() and mmcv_ext.NAME not in sys.modules


def test_every_name_of_mmcv_is_there(ops):
    from mmcv.utils.ext_loader import check_ops_exist

    assert not set(mmcv_ext.OPS) & set(mmcv_ext.MISSING)
    assert check_ops_exist() and ops.get_compiler_version().startswith("none")
    with pytest.raises(NotImplementedError, match=r"mmcv._ext.knn_forward .*`pip install mmcv==2.1.0`"):
        sys.modules["mmcv._ext"].knn_forward(torch.rand(1, 5, 3))


@pytest.mark.slow
def test_packages_import_in_a_new_process():
    for name in ("mmcv", "mmdet", "mmseg"):
        pytest.importorskip(name)
    code = "import visionattn.openmmlab\nfrom mmcv.ops import *\nimport mmdet.apis, mmseg.apis; print(nms.__name__)"
    assert python(code).strip().endswith("nms")


# --- boxes ------------------------------------------------------------------------------------------------------------


def iou(a: Tensor, b: Tensor, offset: int = 0) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    shared = max(0.0, float(width)) * max(0.0, float(height))
    area = [float((x[2] - x[0] + offset) * (x[3] - x[1] + offset)) for x in (a, b)]
    return shared / (sum(area) - shared)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_no_better_box_overlaps(ops, offset):
    b, scores = boxes(40), rand(40)
    left, expected = scores.argsort(descending=True).tolist(), []
    while left:
        best = left.pop(0)
        expected.append(best)
        left = [i for i in left if iou(b[best], b[i], offset) <= 0.3]
    dets, keep = ops.nms(b, scores, 0.3, offset=offset)
    assert keep.tolist() == expected and 5 < len(keep) < 40
    close(dets, torch.cat((b[keep], scores[keep, None]), 1))
    _, some = ops.nms(b, scores, 0.3, offset=offset, score_threshold=0.4, max_num=3)
    assert some.tolist() == [i for i in expected if scores[i] > 0.4][:3]
    assert isinstance(ops.nms(b.numpy(), scores.numpy(), 0.3)[1], np.ndarray)
    assert len(ops.nms(b[:0], scores[:0], 0.3)[1]) == 0
    assert ops.nms(b.half(), scores.half(), 0.3)[0].dtype == torch.float16


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms_lowers_scores_of_overlapped_boxes(ops, method, offset):
    b, scores = boxes(30), rand(30)
    left, expected = {i: float(s) for i, s in enumerate(scores)}, []
    while left:
        best = max(left, key=left.__getitem__)
        expected.append((best, left.pop(best)))
        for i in list(left):
            overlap = iou(b[best], b[i], offset)
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.3:
                left[i] *= 1 - overlap if method == "linear" else 0
            if left[i] < 0.05:
                del left[i]
    dets, keep = ops.soft_nms(b, scores, 0.3, sigma=0.5, min_score=0.05, method=method, offset=offset)
    assert keep.tolist() == [i for i, _ in expected] and len(keep) < 30
    close(dets[:, 4], torch.tensor([s for _, s in expected], dtype=torch.float64))
    close(dets[:, :4], b[keep])
    assert len(ops.soft_nms(b[:0], scores[:0])[1]) == 0


def test_nms_match_groups_kept_boxes_with_those_they_remove(ops):
    dets = torch.cat((boxes(25), rand(25, 1)), 1)
    left, expected = dets[:, 4].argsort(descending=True).tolist(), []
    while left:
        group = [i for i in left if i == left[0] or iou(dets[left[0]], dets[i]) > 0.3]
        left = [i for i in left if i not in group]
        expected.append(group)
    assert [g.tolist() for g in ops.nms_match(dets, 0.3)] == expected
    assert ops.nms_match(dets[:0], 0.3) == []


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_bbox_overlaps(ops, mode, offset):
    a, b = boxes(6), boxes(5)
    expected = torch.tensor([[iou(x, y, offset) for y in b] for x in a], dtype=torch.float64)
    if mode == "iof":
        area = [(x[..., 2:] - x[..., :2] + offset).prod(-1) for x in (a, b)]
        expected = expected * (area[0][:, None] + area[1]) / (1 + expected) / area[0][:, None]
    close(ops.bbox_overlaps(a, b, mode, offset=offset), expected)
    close(ops.bbox_overlaps(a[:5], b, mode, aligned=True, offset=offset), expected[:5].diag())
    assert ops.bbox_overlaps(a, b[:0]).shape == (6, 0)
    point = torch.tensor([[1.0, 1, 1, 1]])
    assert ops.bbox_overlaps(point, point).item() == 0


def corners(box: Tensor) -> list[tuple[float, float]]:
    x, y, w, h, angle = box.tolist()
    c, s = math.cos(angle), math.sin(angle)
    return [
        (x + i * w * c - j * h * s, y + i * w * s + j * h * c)
        for i, j in ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5))
    ]


def clip(a: list, b: list) -> float:
    """Area that two convex polygons share, one cut by the sides of the other in turn."""
    for (px, py), (qx, qy) in zip(b, b[1:] + b[:1], strict=True):
        side = [(qx - px) * (y - py) - (qy - py) * (x - px) for x, y in a]
        cut = []
        for (p, u), (q, v) in zip(
            zip(a, side, strict=True), list(zip(a, side, strict=True))[1:] + [(a[0], side[0])] if a else [], strict=True
        ):
            if u >= 0:
                cut.append(p)
            if u * v < 0:
                cut.append(tuple(m + (n - m) * u / (u - v) for m, n in zip(p, q, strict=True)))
        a = cut
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(a, a[1:] + a[:1], strict=True))) / 2


def rotated(n: int) -> Tensor:
    return torch.cat((rand(n, 2, high=8), rand(n, 2, low=0.5, high=6), rand(n, 1, low=-4, high=4)), 1)


@pytest.mark.parametrize("clockwise", [True, False])
def test_box_iou_rotated(ops, clockwise):
    a, b = rotated(12), rotated(11)
    turn = torch.tensor([1, 1, 1, 1, 1 if clockwise else -1])
    shared = torch.tensor([[clip(corners(x * turn), corners(y * turn)) for y in b] for x in a], dtype=torch.float64)
    area_a, area_b = (x[:, 2] * x[:, 3] for x in (a, b))
    assert (shared > 0).float().mean() > 0.3
    union = area_a[:, None] + area_b - shared
    close(ops.box_iou_rotated(a, b, clockwise=clockwise), shared / union)
    close(ops.box_iou_rotated(a, b, "iof", clockwise=clockwise), shared / area_a[:, None])
    close(ops.box_iou_rotated(a[:11], b, aligned=True, clockwise=clockwise), (shared / union)[:11].diag())


def test_rotated_boxes_that_coincide_touch_or_have_no_area(ops):
    a = rotated(20)
    turned = torch.cat((a[:, :2], a[:, [3, 2]], a[:, 4:] + math.pi / 2), 1)
    close(ops.box_iou_rotated(a, a, aligned=True), torch.ones(20))
    close(ops.box_iou_rotated(a, turned, aligned=True), torch.ones(20))
    beside = torch.tensor([[2.0, 1, 2, 2, 0], [5, 5, 0, 0, 1]])
    assert ops.box_iou_rotated(torch.tensor([[0.0, 1, 2, 2, 0], [5, 5, 0, 0, 1]]), beside, aligned=True).tolist() == [
        0,
        0,
    ]
    assert ops.box_iou_rotated(a, a[:0]).shape == (20, 0)


@pytest.mark.parametrize("labelled", [False, True])
def test_nms_rotated(ops, labelled):
    b, scores = rotated(25), rand(25)
    labels = torch.randint(2, (25,)).double() if labelled else None
    left, expected = scores.argsort(descending=True).tolist(), []
    while left:
        best = left.pop(0)
        expected.append(best)
        shared = {i: clip(corners(b[best]), corners(b[i])) for i in left}
        area = b[:, 2] * b[:, 3]
        left = [i for i in left if shared[i] / (area[best] + area[i] - shared[i]) <= 0.2
                or (labelled and labels[i] != labels[best])]  # fmt: skip
    dets, keep = ops.nms_rotated(b, scores, 0.2, labels)
    assert keep.tolist() == expected and len(keep) < 25
    close(dets, torch.cat((b[keep], scores[keep, None]), 1))


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("nms", (torch.rand(3, 5), torch.rand(3), 0.5, 0), r"boxes has shape \(3, 5\); it must be \(n, 4\)"),
        ("nms", (torch.rand(3, 4), torch.rand(2), 0.5, 0), r"scores has shape \(2,\)"),
        ("softnms", (torch.rand(3, 4), torch.rand(3), torch.rand(3, 5), 0.5, 0.5, 0.1, 3, 0), "method=3"),
        ("nms_match", (torch.rand(3, 4), 0.5), r"dets has shape \(3, 4\)"),
        ("nms_rotated", (*[torch.rand(3, 4)] * 5, 0.5, False), r"dets has shape \(3, 4\); it must be \(n, 5\)"),
        ("bbox_overlaps", (torch.rand(3, 5), torch.rand(2, 4), torch.rand(3, 2), 0, False, 0), "bboxes1 has shape"),
        ("box_iou_rotated", (torch.rand(3, 5), torch.rand(2, 4), torch.rand(6), 0, False), "bboxes2 has shape"),
    ],
)
def test_bad_boxes_are_named(name, arguments, match):
    with pytest.raises(ValueError, match=match):
        EXT[name](*arguments)


# --- regions ----------------------------------------------------------------------------------------------------------


def read(channel: np.ndarray, y: float, x: float) -> float:
    """RoIAlign's sample: the border is repeated for one pixel, further out is zero."""
    h, w = channel.shape
    if y < -1 or y > h or x < -1 or x > w:
        return 0.0
    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
    i, j = int(y), int(x)
    k, m = min(i + 1, h - 1), min(j + 1, w - 1)
    v, u = y - i, x - j
    upper, lower = (float((1 - u) * row[j] + u * row[m]) for row in (channel[i], channel[k]))
    return (1 - v) * upper + v * lower


def pooled(x: Tensor, regions: Tensor, bins: tuple[int, int], ratio: int, reduce: Any, place: Any) -> Tensor:
    """Loop over regions, channels, bins and samples; `place` turns a region into its size and a map of coordinates."""
    out = torch.zeros(len(regions), x.shape[1], *bins, dtype=torch.float64)
    maps = x.numpy()
    for n, region in enumerate(regions):
        image = maps[int(region[0])]
        (height, width), at = place(n, region)
        points = [ratio or max(0, math.ceil(side / k)) for side, k in zip((height, width), bins, strict=True)]
        for c, p, q in itertools.product(range(x.shape[1]), *map(range, bins)):
            samples = [
                read(image[c], *at(p, q, (p + (i + 0.5) / points[0]) * height / bins[0],
                                               (q + (j + 0.5) / points[1]) * width / bins[1]))
                for i in range(points[0]) for j in range(points[1])
            ]  # fmt: skip
            out[n, c, p, q] = reduce(samples) if samples else 0
    return out


def mean(samples: list[float]) -> float:
    return sum(samples) / len(samples)


def upright(scale: float, aligned: bool) -> Any:
    def place(n: int, region: Tensor) -> Any:
        x1, y1, x2, y2 = (region[1:] * scale - (0.5 if aligned else 0)).tolist()
        least = -math.inf if aligned else 1
        return (max(y2 - y1, least), max(x2 - x1, least)), lambda p, q, y, x: (y1 + y, x1 + x)

    return place


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(ops, mode, ratio, aligned):
    x, r = randn(2, 3, 7, 9, grad=True), rois(5)
    out = ops.roi_align(x, r, (2, 3), 0.6, ratio, mode, aligned)
    close(out, pooled(x.detach(), r, (2, 3), ratio, mean if mode == "avg" else max, upright(0.6, aligned)))
    assert gradcheck(lambda t: ops.roi_align(t, r, (2, 3), 0.6, ratio, mode, aligned), x)
    half = ops.roi_align(x.detach().to(torch.bfloat16), r.bfloat16(), (2, 3), 0.6, ratio, mode, aligned)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_of_nothing_is_zero(ops, mode):
    x = randn(1, 2, 5, 5, grad=True)
    assert ops.roi_align(x, rois(0), (2, 2), 1.0, 0, mode, True).shape == (0, 2, 2, 2)
    point = torch.tensor([[0, 2.0, 2, 2, 2], [0, 40, 40, 50, 50]], dtype=torch.float64)
    out = ops.roi_align(x, point, (2, 2), 1.0, 0, mode, True)
    assert not out.any()
    out.sum().backward()
    assert not x.grad.any()


def test_roi_pool(ops):
    x, r = randn(2, 3, 9, 8, grad=True), rois(6)
    out = ops.roi_pool(x, r, (2, 3), 0.5)
    expected = torch.zeros_like(out)
    for n, region in enumerate(r):
        x1, y1, x2, y2 = (math.floor(float(v) * 0.5 + 0.5) for v in region[1:])
        h, w = max(y2 - y1 + 1, 1) / 2, max(x2 - x1 + 1, 1) / 3
        for c, p, q in itertools.product(range(3), range(2), range(3)):
            cell = x[int(region[0]), c, max(0, math.floor(p * h) + y1) : max(0, math.ceil((p + 1) * h) + y1),
                     max(0, math.floor(q * w) + x1) : max(0, math.ceil((q + 1) * w) + x1)]  # fmt: skip
            expected[n, c, p, q] = cell.max() if cell.numel() else 0
    close(out, expected)
    assert gradcheck(lambda t: ops.roi_pool(t, r, (2, 3), 0.5), x)


@pytest.mark.parametrize("clockwise", [True, False])
@pytest.mark.parametrize(("ratio", "aligned"), [(2, True), (0, False)])
def test_roi_align_rotated(ops, ratio, aligned, clockwise):
    x, r = randn(2, 2, 7, 8, grad=True), torch.cat((torch.tensor([[0.0], [1], [1]]).double(), rotated(3)), 1)

    def place(n: int, region: Tensor) -> Any:
        cx, cy, w, h, angle = region[1:].tolist()
        cx, cy, w, h = cx * 0.9 - 0.5 * aligned, cy * 0.9 - 0.5 * aligned, w * 0.9, h * 0.9
        w, h = (w, h) if aligned else (max(w, 1), max(h, 1))
        c, s = math.cos(angle), math.sin(angle) * (1 if clockwise else -1)
        return (h, w), lambda p, q, v, u: (
            cy + (u - w / 2) * s + (v - h / 2) * c,
            cx + (u - w / 2) * c - (v - h / 2) * s,
        )

    def run(t: Tensor) -> Tensor:
        return ops.roi_align_rotated(t, r, (2, 3), 0.9, ratio, aligned, clockwise)

    close(run(x), pooled(x.detach(), r, (2, 3), ratio, mean, place))
    assert gradcheck(run, x)


def test_upright_rotated_regions_are_plain_ones(ops):
    x, r = randn(2, 3, 9, 9), rois(4)
    centre = torch.cat((r[:, :1], (r[:, 1:3] + r[:, 3:]) / 2, r[:, 3:] - r[:, 1:3], torch.zeros(4, 1)), 1)
    close(ops.roi_align_rotated(x, centre, 3, 0.7, 2, True), ops.roi_align(x, r, 3, 0.7, 2, "avg", True))


@pytest.mark.parametrize("ratio", [0, 2])
def test_deform_roi_pool(ops, ratio):
    x, r, offset = randn(2, 2, 8, 7, grad=True), rois(3), randn(3, 2, 2, 3, grad=True)

    def place(n: int, region: Tensor) -> Any:
        size, at = upright(0.6, True)(n, region)
        across, down = (0.3 * offset.detach()[n]).tolist()
        return size, lambda p, q, v, u: at(p, q, v + down[p][q] * size[0], u + across[p][q] * size[1])

    def run(*tensors: Tensor) -> Tensor:
        return ops.deform_roi_pool(tensors[0], r, tensors[1] if tensors[1:] else None, (2, 3), 0.6, ratio, 0.3)

    close(run(x, offset), pooled(x.detach(), r, (2, 3), ratio, mean, place))
    close(run(x), pooled(x.detach(), r, (2, 3), ratio, mean, upright(0.6, True)))
    assert gradcheck(run, (x, offset)) and gradcheck(run, (x,))


def tent(maps: Tensor, y: float, x: float) -> Tensor:
    """Values (C,) of bilinear maps that fade to zero beyond their border."""
    h, w = maps.shape[-2:]
    return sum(
        (max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * maps[:, i, j] for i in range(h) for j in range(w)),
        torch.zeros(len(maps), dtype=maps.dtype),
    )


def prroi(x: Tensor, r: Tensor, bins: tuple[int, int], scale: float) -> Tensor:
    out = torch.zeros(len(r), x.shape[1], *bins, dtype=torch.float64)
    EXT["prroi_pool_forward"](x, r, out, *bins, scale)
    return out


def test_prroi_pool_integrates_cell_by_cell():
    x, r = randn(2, 2, 4, 5), torch.cat((torch.tensor([[0.0], [1], [0]]).double(), boxes(3, 5.0) - 1.5), 1)
    expected = torch.zeros(3, 2, 2, 2, dtype=torch.float64)
    for n, region in enumerate(r):
        x1, y1, x2, y2 = (region[1:] * 0.9).tolist()
        h, w = (y2 - y1) / 2, (x2 - x1) / 2
        for p, q in itertools.product(range(2), range(2)):
            ys, xs = (
                sorted({a, a + side, *(i for i in range(-3, 12) if a < i < a + side)})
                for a, side in ((y1 + p * h, h), (x1 + q * w, w))
            )
            # Between whole rows and columns the map is bilinear, so that its mean is its value in the middle.
            for (a, b), (c, d) in itertools.product(itertools.pairwise(ys), itertools.pairwise(xs)):
                expected[n, :, p, q] += tent(x[int(region[0])], (a + b) / 2, (c + d) / 2) * (b - a) * (d - c) / (h * w)
    close(prroi(x, r, (2, 2), 0.9), expected)
    assert not prroi(x, torch.tensor([[0, 3.0, 3, 3, 5]]).double(), (2, 2), 1.0).any()


def test_prroi_pool_gradients():
    x, r, g = randn(1, 2, 4, 5), torch.tensor([[0, 0.3, 0.4, 3.1, 2.7]]).double(), randn(1, 2, 2, 2)
    grad_x, grad_r = torch.zeros_like(x), torch.zeros_like(r)
    EXT["prroi_pool_backward"](g, r, grad_x, 2, 2, 0.9)
    EXT["prroi_pool_coor_backward"](prroi(x, r, (2, 2), 0.9), g, x, r, grad_r, 2, 2, 0.9)
    for tensor, grad in ((x, grad_x), (r, grad_r)):
        step, direction = 1e-6, randn(*tensor.shape)
        direction[:, 0] = direction[:, 0] if tensor is x else 0
        ends = [(g * prroi(*(t + s * direction if t is tensor else t for t in (x, r)), (2, 2), 0.9)).sum()
                for s in (step, -step)]  # fmt: skip
        close((grad * direction).sum(), (ends[0] - ends[1]) / (2 * step), 1e-7)


def test_prroi_pool_through_mmcv(ops):
    x = torch.randn(2, 3, 9, 9, requires_grad=True)
    r = rois(4).float().requires_grad_()
    out = ops.prroi_pool(x, r, (3, 2), 0.7)
    out.square().sum().backward()
    close(out, prroi(x.detach().double(), r.detach().double(), (3, 2), 0.7), 1e-5)
    assert x.grad.any() and r.grad[:, 1:].any() and not r.grad[:, 0].any()


def test_border_align(ops):
    x, b = randn(2, 8, 6, 7, grad=True), torch.stack((boxes(5, 6.0), boxes(5, 6.0)))
    out = ops.border_align(x, b, 4)
    expected = torch.zeros_like(out)
    for n, c, k in itertools.product(range(2), range(2), range(5)):
        x1, y1, x2, y2 = b[n, k].tolist()
        lines = [((y1, x1), (y1, x2)), ((y1, x1), (y2, x1)), ((y2, x1), (y2, x2)), ((y1, x2), (y2, x2))]
        for side, ((v, u), (w, z)) in enumerate(lines):
            expected[n, c, k, side] = max(
                read(x[n, 2 * side + c].detach().numpy(), v + (w - v) * i / 4, u + (z - u) * i / 4) for i in range(5)
            )
    close(out, expected)
    assert gradcheck(lambda t: ops.border_align(t, b, 4), x)
    assert ops.border_align(x, b[:, :0], 4).shape == (2, 2, 0, 4)


def test_regions_do_not_depend_on_how_many_are_read_at_a_time(monkeypatch, ops):
    from visionattn.openmmlab.mmcv_ext import roi, sampling

    x, r, b = randn(2, 4, 7, 9, grad=True), rois(6), torch.stack((boxes(5), boxes(5)))
    turned = torch.cat((r[:, :1], rotated(6)), 1)

    def results() -> list[Tensor]:
        outs = [
            ops.roi_align(x, r, 2, 0.6, 0, "max", True),
            ops.roi_align_rotated(x, turned, 2, 0.6, 2),
            ops.deform_roi_pool(x, r, None, (2, 2), 0.6, 2),
            ops.border_align(x, b, 3),
        ]
        return [*outs, *(torch.autograd.grad(out.square().sum(), x)[0] for out in outs)]

    plain, coordinates = results(), prroi(x.detach(), r, (2, 2), 0.6)
    monkeypatch.setattr(sampling, "CHUNK", 40)
    monkeypatch.setattr(roi, "CHUNK", 40)
    for a, b_ in zip(plain, results(), strict=True):
        close(a, b_)
    close(coordinates, prroi(x.detach(), r, (2, 2), 0.6))


REGION_OPS = {
    "roi_align": lambda ops, x, r: ops.roi_align(x, r, 2, 0.7, 0, "avg", True),
    "roi_align_max": lambda ops, x, r: ops.roi_align(x, r, 2, 0.7, 2, "max", True),
    "roi_pool": lambda ops, x, r: ops.roi_pool(x, r, 2, 0.7),
    "roi_align_rotated": lambda ops, x, r: ops.roi_align_rotated(x, F.pad(r, (0, 1), value=0.3), 2, 0.7, 2),
    "deform_roi_pool": lambda ops, x, r: ops.deform_roi_pool(
        x, r, torch.zeros_like(r)[:, :2, None, None].expand(-1, -1, 2, 2), 2, 0.7, 2
    ),
    "border_align": lambda ops, x, r: ops.border_align(x, r[None, :, 1:].expand(2, -1, -1), 3),
}


@pytest.mark.parametrize("name", REGION_OPS)
def test_no_regions_give_no_output_and_no_gradient(ops, name):
    x = randn(2, 4, 6, 7, grad=True)
    out = REGION_OPS[name](ops, x, rois(0))
    assert out.numel() == 0
    out.sum().backward()
    assert not x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", REGION_OPS)
def test_regions_in_half_precision(ops, name, dtype):
    # Quarters, which both dtypes hold exactly.
    x, r = (randn(2, 4, 6, 7) * 4).round() / 4, (rois(5, size=8) * 4).round() / 4
    r[:, 0] = torch.tensor([0.0, 1, 0, 1, 1])
    results = []
    for kind in (torch.float32, dtype):
        leaf = x.to(kind).requires_grad_()
        out = REGION_OPS[name](ops, leaf, r.to(kind))
        assert out.dtype == kind
        results.append((out, torch.autograd.grad(out.sum(), leaf)[0]))
    close(results[0][0], results[1][0].float(), 0.04)
    if name not in ("roi_align_max", "border_align"):  # where equal samples may take each other's gradients
        close(results[0][1], results[1][1].float(), 0.1)


def test_bad_regions_are_named(ops):
    x = randn(2, 4, 5, 5)
    with pytest.raises(ValueError, match=r"rois name images 0 to 2; there are 2"):
        ops.roi_align(x, torch.tensor([[0, 1.0, 1, 2, 2], [2, 1, 1, 2, 2]]).double(), 2)
    with pytest.raises(ValueError, match=r"input has shape \(4, 5, 5\)"):
        EXT["roi_pool_forward"](x[0], rois(1), x, x, 2, 2, 1.0)
    with pytest.raises(ValueError, match=r"rois has shape \(3, 5\); it must be \(n, 6\)"):
        ops.roi_align_rotated(x, rois(3), 2, 1.0)
    with pytest.raises(ValueError, match=r"offset has shape \(3, 2, 2, 3\); it must be \(3, 2, 2, 2\)"):
        ops.deform_roi_pool(x, rois(3), randn(3, 2, 2, 3), (2, 2))
    with pytest.raises(ValueError, match=r"boxes has shape \(1, 3, 4\); it must be \(2, n, 4\)"):
        ops.border_align(x, boxes(3)[None], 2)


# --- deformable convolution and attention -----------------------------------------------------------------------------


CASES = records.load(RECORD)["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_deformable_convolution_agrees_with_its_record(ops, case):
    a, x = case["args"], {}
    for name, i in case["inputs"].items():
        drawn = records.draw(i["shape"], i["seed_name"], i["scale"], torch.float64)
        x[name] = (drawn.sigmoid() if i["transform"] == "sigmoid" else drawn).requires_grad_()
    geometry = a["stride"], a["padding"], a["dilation"], a["groups"], a["offset_groups"]
    if a["modulated"]:
        out = ops.modulated_deform_conv2d(x["input"], x["offset"], x["mask"], x["weight"], x.get("bias"), *geometry)
    else:
        out = ops.deform_conv2d(x["input"], x["offset"], x["weight"], *geometry)
        if "bias" in x:  # which the layer does not have
            out = out + x["bias"][:, None, None]
    (out * records.cotangent(out.shape, torch.float64)).sum().backward()
    errors = [records.error(out, case["outputs"]["out"])]
    errors += [records.error(x[name].grad, digest) for name, digest in case["grads"].items()]
    assert max(errors) < 1e-9


def test_offsets_of_a_larger_map_are_read_with_the_outputs_strides(ops):
    x, weight = randn(2, 3, 4, 5, grad=True), randn(4, 3, 3, 3, grad=True)
    offset, mask = randn(2, 18, 8, 10, grad=True), rand(2, 9, 8, 10, grad=True)

    def run(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        return ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)

    views = [
        torch.stack([image.flatten()[: c * 20].view(c, 4, 5) for image in t]) for t, c in ((offset, 18), (mask, 9))
    ]
    out, expected = run(x, offset, mask, weight), run(x, *views, weight)
    close(out, expected)
    tensors = x, offset, mask, weight
    for a, b in zip(*(torch.autograd.grad(t.square().sum(), tensors) for t in (out, expected)), strict=True):
        close(a, b)
    last = offset.detach().to(memory_format=torch.channels_last).requires_grad_()
    close(run(x, last, mask, weight), out)
    with pytest.raises(ValueError, match=r"offset has shape \(2, 18, 3, 3\); an output of 4x5 needs as many pixels"):
        run(x, randn(2, 18, 3, 3), mask, weight)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 18, 8, 10\); it must be \(B, 9, 4, 5\)"):
        run(x, offset, offset, weight)
    with pytest.raises(ValueError, match=r"offset has shape \(2, 18, 8, 10\); it must be \(2, 18, 4, 5\)"):
        ops.deform_conv2d(x, offset, weight, 1, 1)


DYHEAD = Path(__file__).parent / "dyhead_micro.json.gz"
DYHEAD_NAMES = {
    "dyhead_tower.": "dyhead_blocks.",
    "DyConv.0.": "spatial_conv_high.",
    "DyConv.1.": "spatial_conv_mid.",
    "DyConv.2.": "spatial_conv_low.",
    ".bn.": ".norm.",
    ".offset.": ".spatial_conv_offset.",
    "AttnConv.": "scale_attn_module.",
    "relu.fc.0.": "task_attn_module.conv1.conv.",
    "relu.fc.2.": "task_attn_module.conv2.conv.",
}


@pytest.mark.parametrize("run", records.load(DYHEAD)["runs"], ids=["five-levels", "odd-levels"])
def test_dynamic_head_agrees_with_its_authors(ops, run):
    pytest.importorskip("mmdet")
    from mmdet.models.necks import DyHead

    neck = DyHead(32, 32, num_blocks=2)
    for block in neck.dyhead_blocks:  # the authors' convolutions have a bias, mmdet's none
        for level in (block.spatial_conv_high, block.spatial_conv_mid, block.spatial_conv_low):
            level.conv.bias = torch.nn.Parameter(torch.zeros(32))
    neck.double()
    state = {}
    for name, value in records.state_dict(records.load(DYHEAD)).items():
        for theirs, mmdets in DYHEAD_NAMES.items():
            name = name.replace(theirs, mmdets)
        state[name] = value.view(neck.state_dict()[name].shape)
    neck.load_state_dict(state)
    levels = [
        records.draw(shape, f"level{i}").requires_grad_() for i, shape in enumerate(run["input"])
    ]  # fmt: skip
    outs = neck(levels)
    sum((out * records.cotangent(out.shape)).sum() for out in outs).backward()
    errors = [records.error(out, run["outputs"][f"features.{i}"]) for i, out in enumerate(outs)]
    errors += [records.error(x.grad, digest) for x, digest in zip(levels, run["grad_input"], strict=True)]
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in neck.parameters()))
    assert max(*errors, abs(total / run["grad_total_l2"] - 1)) < 1e-9


def test_deformable_layers_in_half_precision_and_on_small_inputs(ops):
    layer = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1, deform_groups=2)
    x = torch.randn(2, 4, 5, 6)
    close(layer(x), layer.double()(x.double()), 1e-5)
    assert layer.bfloat16()(x.bfloat16()).isfinite().all()
    layer = ops.DeformConv2d(4, 6, 3, padding=1)
    small = torch.randn(2, 4, 2, 2)
    close(layer(small, torch.zeros(2, 18, 2, 2)), F.conv2d(small, layer.weight, padding=1), 1e-5)
    with pytest.raises(ValueError, match="deformable_group=3 must divide the 4 input channels"):
        ops.deform_conv2d(x, torch.randn(2, 54, 5, 6), torch.randn(6, 4, 3, 3), 1, 1, 1, 1, 3)
    with pytest.raises(ValueError, match="group=2 does not fit 4 input channels"):
        ops.deform_conv2d(x, torch.randn(2, 18, 5, 6), torch.randn(6, 4, 3, 3), 1, 1, 1, 2)


def test_multi_scale_deformable_attention(ops):
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction as function

    shapes = torch.tensor([[3, 4], [2, 1]])
    value, places, weights = (
        randn(2, 14, 2, 3, grad=True),
        rand(2, 5, 2, 2, 3, 2, low=-0.2, high=1.2),
        rand(2, 5, 2, 2, 3),
    )
    out = function.apply(value, shapes, torch.tensor([0, 12]), places, weights, 64)
    expected = torch.zeros(2, 5, 2, 3, dtype=torch.float64)
    for n, q, head, level, point in itertools.product(range(2), range(5), range(2), range(2), range(3)):
        h, w = shapes[level].tolist()
        maps = value[n, level * 12 : level * 12 + h * w, head].detach().T.reshape(3, h, w)
        x, y = places[n, q, head, level, point].tolist()
        expected[n, q, head] += weights[n, q, head, level, point] * tent(maps, y * h - 0.5, x * w - 0.5)
    close(out, expected.flatten(2))
    leaves = value, places.requires_grad_(), weights.requires_grad_()
    assert gradcheck(lambda v, p, a: function.apply(v, shapes, torch.tensor([0, 12]), p, a, 64), leaves)


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid_focal_loss(ops, gamma, weighted):
    x, target = 3 * randn(7, 4), torch.tensor([0, 3, 4, 1, 2, 4, 0])  # 4 is the background
    weight = rand(4, low=0.5) if weighted else None
    expected = torch.zeros(7, 4, dtype=torch.float64)
    for n, c in itertools.product(range(7), range(4)):
        p = 1 / (1 + math.exp(-x[n, c]))
        right, share = (p, 0.25) if target[n] == c else (1 - p, 0.75)
        factor = float(weight[target[n]]) if weighted and target[n] < 4 else 1
        expected[n, c] = -factor * share * (1 - right) ** gamma * math.log(right)
    close(ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, "none"), expected)
    close(ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, "mean"), expected.sum() / 7)
    x.requires_grad_()
    for reduction in ("none", "mean", "sum"):
        assert gradcheck(lambda t, r=reduction: ops.sigmoid_focal_loss(t, target, gamma, 0.25, weight, r), x)
    assert ops.sigmoid_focal_loss(x[:0], target[:0], gamma, 0.25, weight, "sum") == 0


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss(ops, gamma, weighted):
    x, target = 3 * randn(6, 4), torch.tensor([0, 3, -1, 1, 2, 0])
    weight = rand(4, low=0.5) if weighted else None
    expected = torch.zeros(6, dtype=torch.float64)
    for n in range(6):
        if target[n] >= 0:
            right = math.exp(x[n, target[n]]) / sum(map(math.exp, x[n].tolist()))
            factor = float(weight[target[n]]) if weighted else 1
            expected[n] = -factor * 0.25 * (1 - right) ** gamma * math.log(right)
    close(ops.softmax_focal_loss(x, target, gamma, 0.25, weight, "none"), expected)
    x.requires_grad_()
    for reduction in ("mean", "sum"):
        assert gradcheck(lambda t, r=reduction: ops.softmax_focal_loss(t, target, gamma, 0.25, weight, r), x)


def test_focal_losses_of_certain_predictions_stay_finite(ops):
    target = torch.tensor([0, 1])
    for loss in (ops.sigmoid_focal_loss, ops.softmax_focal_loss):
        x = torch.tensor([[200.0, -200], [200, -200]], requires_grad=True)
        value = loss(x, target, 2.0, 0.25, None, "sum")
        value.backward()
        assert value.isfinite() and value > 10 and x.grad.isfinite().all()


# --- reassembly -------------------------------------------------------------------------------------------------------


def carafe_loop(x: Tensor, masks: Tensor, k: int, groups: int, scale: int) -> Tensor:
    n, c, h, w = x.shape
    out = torch.zeros(n, c, h * scale, w * scale, dtype=x.dtype)
    for b, ch, y, u in itertools.product(range(n), range(c), range(h * scale), range(w * scale)):
        for i, j in itertools.product(range(k), range(k)):
            v, z = y // scale + i - k // 2, u // scale + j - k // 2
            if 0 <= v < h and 0 <= z < w:
                out[b, ch, y, u] += x[b, ch, v, z] * masks[b, (ch // (c // groups) * k + i) * k + j, y, u]
    return out


@pytest.mark.parametrize(("k", "groups", "scale"), [(3, 2, 2), (5, 1, 1), (1, 1, 3)])
def test_carafe(ops, k, groups, scale):
    x, masks = randn(2, 4, 3, 2, grad=True), rand(2, groups * k * k, 3 * scale, 2 * scale, grad=True)
    expected = carafe_loop(x.detach(), masks.detach(), k, groups, scale)
    close(ops.carafe(x, masks, k, groups, scale), expected)
    close(ops.carafe_naive(x, masks, k, groups, scale), expected)
    assert gradcheck(lambda a, b: ops.carafe(a, b, k, groups, scale), (x, masks))
    # mmcv lets the naive backward run on GPUs only.
    grads, naive = (
        torch.autograd.grad(ops.carafe(x, masks, k, groups, scale).sum(), (x, masks)),
        (x.clone(), masks.clone()),
    )
    with torch.no_grad():
        EXT["carafe_naive_backward"](torch.ones_like(expected), x, masks, *naive, k, groups, scale)
    for a, b in zip(grads, naive, strict=True):
        close(a, b)
    with pytest.raises(ValueError, match="masks has shape"):
        EXT["carafe_naive_forward"](x, masks[:, :, 1:], expected, k, groups, scale)


def test_carafe_does_not_depend_on_how_many_rows_are_made_at_a_time(monkeypatch, ops):
    from visionattn.openmmlab.mmcv_ext import reassembly

    x, masks = randn(2, 4, 5, 3, grad=True), rand(2, 18, 10, 6, grad=True)

    def results() -> list[Tensor]:
        out = ops.carafe(x, masks, 3, 2, 2)
        return [out, *torch.autograd.grad(out.square().sum(), (x, masks))]

    plain = results()
    monkeypatch.setattr(reassembly, "CHUNK", 2 * 4 * 3 * 9 * 2)  # two rows
    for a, b in zip(plain, results(), strict=True):
        close(a, b)


@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), 1), ((1, 3), (0, 1)), ((5, 3), (2, 1))])
def test_masked_convolution(ops, kernel, padding):
    x, weight, bias = randn(1, 3, 6, 7), randn(4, 3, *kernel), randn(4)
    mask = (rand(1, 6, 7) > 0.5).double()
    out = ops.masked_conv2d(x, mask, weight, bias, padding)
    close(out, F.conv2d(x, weight, bias, padding=padding) * mask)
    assert not ops.masked_conv2d(x, 0 * mask, weight, bias, padding).any()
    with pytest.raises(ValueError, match=r"im has shape \(1, 4, 6, 7\); it must be \(1, 4, 6, 6\)"):
        EXT["masked_col2im_forward"](randn(4, 1), torch.tensor([0]), torch.tensor([0]), out, 6, 6, 4)


@pytest.mark.parametrize("kind", ["collect", "distribute"])
@pytest.mark.parametrize(("size", "window"), [((3, 4), (5, 7)), ((4, 3), (3, 3)), ((2, 2), (4, 1))])
def test_psa_mask(ops, kind, size, window):
    (h, w), (hm, wm) = size, window
    x = randn(2, hm * wm, h, w, grad=True)
    module = ops.PSAMask(kind, window)
    expected = torch.zeros(2, h * w, h, w, dtype=torch.float64)
    for y, u, i, j in itertools.product(range(h), range(w), range(hm), range(wm)):
        v, z = y + i - (hm - 1) // 2, u + j - (wm - 1) // 2
        if 0 <= v < h and 0 <= z < w:
            value = x[:, i * wm + j, y, u].detach()
            if kind == "collect":
                expected[:, v * w + z, y, u] = value
            else:
                expected[:, y * w + u, v, z] = value
    close(module(x), expected)
    assert gradcheck(module, x)


def test_corner_pool_is_mmcvs_own(ops):
    x = randn(2, 3, 4, 5)
    close(ops.CornerPool("left")(x), x.flip(3).cummax(3).values.flip(3))


# --- norm and text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["default", "N"])
def test_sync_bn_on_one_process_is_batch_norm(ops, mode):
    from mmcv.ops.sync_bn import SyncBatchNormFunction as function

    x, g = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6)
    results = []
    for run in (
        lambda t, m, v, w, b: function.apply(t, m, v, w, b, 0.1, 1e-5, None, 1, mode),
        lambda t, m, v, w, b: F.batch_norm(t, m, v, w, b, True, 0.1, 1e-5),
    ):
        leaves = [x.clone(), torch.linspace(0.5, 2, 3), torch.linspace(-1, 1, 3)]
        for leaf in leaves:
            leaf.requires_grad_()
        running = torch.full((3,), 0.3), torch.full((3,), 1.7)
        out = run(leaves[0], *running, *leaves[1:])
        results.append([out, *running, *torch.autograd.grad((out * g).sum(), leaves)])
    for a, b in zip(*results, strict=True):
        close(a, b, 1e-5)


def test_contour_expand_grows_labels_to_the_nearest_pixels(ops):
    small = torch.tensor([[0, 0, 1, 1, 0, 0, 0, 0, 2, 0, 0, 3]] * 3)
    large = torch.ones(3, 12, dtype=torch.uint8)
    large[:, 10] = 0
    middle = (small > 0).byte()
    middle[1, 1] = 1
    out = ops.contour_expand(torch.stack((large, middle, (small > 0).byte())), small, 2, 4)
    assert out == [[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 3]] * 3
    assert ops.contour_expand(torch.stack((large, (small > 0).byte())), small, 4, 4)[0][:2] == [1, 1]
    few = ops.contour_expand(torch.stack((large, (small > 0).byte())), small, 4, 4)
    assert few[0] == [1] * 10 + [0, 0]
    with pytest.raises(ValueError, match="kernel_mask has shape"):
        ops.contour_expand(large, small, 1, 4)


def test_pixel_group_joins_pixels_of_similar_embeddings(ops):
    label = np.zeros((3, 6), dtype=np.int32)
    label[1, 1], label[1, 4] = 1, 2
    embedding = np.zeros((3, 6, 2), dtype=np.float32)
    embedding[:, 3:] = 5
    embedding[0, 0] = 0.9
    mask = np.ones((3, 6), dtype=np.uint8)
    mask[2] = 0
    score = np.linspace(0, 1, 18, dtype=np.float32).reshape(3, 6)
    groups = ops.pixel_group(score, mask, embedding, label, (label > 0).astype(np.uint8), 3, 0.8)
    assert groups[0] == [0, 0]
    pixels = [(1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]  # (x, y); the corner is too far from its kernel
    assert groups[1][1:] == [5.0, *map(float, itertools.chain(*pixels))]
    assert groups[1][0] == pytest.approx(np.mean([score[y, x] for x, y in pixels]))
    assert groups[2][1] == 6


# --- export and models ------------------------------------------------------------------------------------------------


def test_roi_align_and_nms_export_to_onnx(ops, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")

    class Detector(torch.nn.Module):
        def forward(self, x: Tensor, r: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            return ops.roi_align(x, r, (3, 2), 0.5, 2, "avg", True), ops.nms(r[:, 1:], scores, 0.4)[1]

    inputs = torch.randn(2, 3, 12, 12), rois(8, size=20).float(), torch.rand(8)
    program = torch.onnx.export(Detector(), inputs, dynamo=True, verbose=False)
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [i.name for i in session.get_inputs()]
    results = session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
    for ours, theirs in zip(Detector()(*inputs), results, strict=True):
        close(ours, torch.from_numpy(theirs), 1e-4)


@pytest.mark.slow
def test_mask_rcnn_trains_a_step_and_predicts(ops):
    mmdet = pytest.importorskip("mmdet")
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.structures import InstanceData

    register_all_modules(init_default_scope=False)
    path = Path(mmdet.__file__).parent / ".mim/configs/_base_/models/mask-rcnn_r50_fpn.py"
    cfg = Config.fromfile(path).model
    cfg.backbone.init_cfg = None
    cfg._scope_ = "mmdet"
    model = MODELS.build(cfg)
    samples = []
    for _ in range(2):
        shape = (64, 96)
        sample = DetDataSample(metainfo={
            "img_shape": shape, "ori_shape": shape, "pad_shape": shape, "batch_input_shape": shape,
            "scale_factor": (1.0, 1.0)})  # fmt: skip
        masks = np.zeros((2, *shape), np.uint8)
        masks[0, 5:50, 5:40] = masks[1, 10:60, 50:90] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[5.0, 5, 40, 50], [50, 10, 90, 60]]), labels=torch.tensor([3, 7]),
            masks=BitmapMasks(masks, *shape))  # fmt: skip
        samples.append(sample)
    data = {"inputs": list(torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8)), "data_samples": samples}
    loss, _ = model.train().parse_losses(model(**model.data_preprocessor(data, True), mode="loss"))
    loss.backward()
    assert loss.isfinite() and model.rpn_head.rpn_cls.weight.grad.any()
    assert model.roi_head.mask_head.conv_logits.weight.grad.any()
    model.roi_head.test_cfg.score_thr = 0.0
    results = model.eval().test_step(data)
    assert len(results) == 2 and 0 < len(results[0].pred_instances.bboxes) <= 100
    assert results[0].pred_instances.masks.shape[1:] == (64, 96)
