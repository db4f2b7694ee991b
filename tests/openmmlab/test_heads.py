# SPDX-License-Identifier: Apache-2.0
"""PSA's published networks agree end to end with what the authors' code computes."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
import records  # noqa: E402

pytest.importorskip("mmseg")

from mmengine.registry import MODELS  # noqa: E402
from mmengine.structures import PixelData  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from visionattn.openmmlab.heads.hierarchical import HierarchicalSegmentor  # noqa: E402
from visionattn.openmmlab.heads.ocr import OCR, fuse_scales, resize  # noqa: E402
from visionattn.openmmlab.heads.rmi import RegionMutualInformationLoss  # noqa: E402

FOLDER = Path(__file__).parent / "psa"
MICROS = (pytest.param("micro_mscale_p", marks=pytest.mark.slow), "micro_mscale_s", "micro_ocr_s")


def load(name):
    return records.load(FOLDER / f"{name}.json.gz")


def segmentor(config, scales=(0.5, 1.0), **kwargs):
    width = config["width"]
    backbone = dict(
        type="TimmBackbone",
        name=f"va_psa_{'s_' * (config['psa'] == 's')}hrnetv2_w48",
        width=width,
        num_modules=config["num_modules"][1:],
        num_blocks=config["num_blocks"],
        stem_channels=config["stage1_channels"],
    )
    head = dict(
        type="HierarchicalOCRHead",
        in_channels="auto",
        num_classes=config["num_classes"],
        channels=config["ocr_mid"],
        key_channels=config["ocr_key"],
        attention_channels=config["attn_bot"] if len(scales) > 1 else None,
    )
    cfg = dict(type="HierarchicalSegmentor", scales=scales, backbone=backbone, decode_head=head, **kwargs)
    return MODELS.build(cfg)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def outputs_of(model, x, names):
    computed = {"logits": model.encode_decode(x)}
    if "cls_out" in names:
        logits, auxiliary, attention = model.look(x)
        computed |= {"cls_out": logits, "aux_out": auxiliary, "attn": attention}
    if "pred_n_scales" in names:
        model.scales = (0.5, 1.0, 2.0)
        computed["pred_n_scales"] = model.encode_decode(x)
        model.scales = (0.5, 1.0)
    return computed


def check(name, tmp_path):
    record = load(name)
    state = {f"module.{key}": value for key, value in records.state_dict(record, constants=True).items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "authors.pth")
    scales = (1.0,) if "ocr_s" in name else (0.5, 1.0)
    model = segmentor(record["config"], scales, checkpoint=tmp_path / "authors.pth")
    model.init_weights()
    model.eval()
    assert sum(p.numel() for p in model.parameters()) == record["num_params"]
    for run in record["runs"]:
        x = records.image(run["input"]).requires_grad_(run["grad_input"] is not None)
        computed = outputs_of(model, x, run["outputs"])
        errors = {key: records.error(computed[key], d) for key, d in run["outputs"].items() if key in computed}
        assert errors.keys() >= run["outputs"].keys() - {"features.0"}
        assert max(errors.values()) < 1e-9, errors
        if run["grad_input"] is not None:
            (computed["logits"] * records.cotangent(computed["logits"].shape)).sum().backward()
            assert records.error(x.grad, run["grad_input"]) < 1e-9


@pytest.mark.parametrize("name", MICROS)
def test_small_networks_agree(name, tmp_path, double):
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hrnetv2_w48_ocr_mscale_psa_p", "hrnetv2_w48_ocr_mscale_psa_s"])
def test_published_networks_agree(name, tmp_path, double):
    check(name, tmp_path)


def test_it_trains_a_step_on_images_of_odd_sides_and_predicts():
    model = segmentor(load("micro_mscale_p")["config"])
    size = (67, 90)
    samples = [
        SegDataSample(
            metainfo={"img_shape": size, "ori_shape": size, "pad_shape": size},
            gt_sem_seg=PixelData(data=torch.randint(5, (1, *size))),
        )
        for _ in range(2)
    ]
    losses = model.train().loss(torch.randn(2, 3, *size), samples)
    assert set(losses) == {"decode.loss_ce", "aux.loss_ce", "scale_0.5.loss_ce", "scale_1.0.loss_ce"}
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    (result,) = model.eval().predict(torch.randn(1, 3, *size), samples[:1])
    assert result.pred_sem_seg.data.shape == (1, *size)


def test_scales_are_weighed_pixel_by_pixel():
    full, half, double = torch.randn(1, 2, 4, 6), torch.randn(1, 2, 2, 3), torch.randn(1, 2, 8, 12)
    sure, none = torch.ones(1, 1, 4, 6), torch.zeros(1, 1, 2, 3)
    assert torch.equal(fuse_scales([(1.0, full, sure)]), full)
    assert torch.allclose(fuse_scales([(1.0, full, sure), (2.0, double, torch.rand(1, 1, 8, 12))]), full)
    assert torch.allclose(fuse_scales([(0.5, half, none), (1.0, full, sure)]), full)
    assert torch.allclose(fuse_scales([(0.5, half, none + 1), (1.0, full, sure)]), resize(half, (4, 6)))
    assert torch.allclose(fuse_scales([(2.0, double, sure), (1.0, full, 0 * sure)]), resize(double, (4, 6)))
    with pytest.raises(ValueError, match="passes is empty"):
        fuse_scales([])


def test_a_region_is_the_mean_of_its_pixels():
    ocr = OCR(4, 3, channels=8, key_channels=4).eval()
    logits, auxiliary, features = ocr(torch.randn(2, 4, 5, 7))
    assert logits.shape == auxiliary.shape == (2, 3, 5, 7) and features.shape == (2, 8, 5, 7)


def test_wrong_arguments_are_named(tmp_path):
    config = load("micro_mscale_p")["config"]
    with pytest.raises(ValueError, match=r"scales=\(0.0, 1.0\) must be above 0"):
        segmentor(config, (0.0, 1.0))
    with pytest.raises(ValueError, match="align_corners=True"):
        MODELS.build(dict(type="HierarchicalOCRHead", in_channels=[4], num_classes=2, align_corners=True))
    one = load("micro_ocr_s")
    torch.save(records.state_dict(one, constants=True), tmp_path / "one_scale.pth")
    model = segmentor(one["config"], checkpoint=tmp_path / "one_scale.pth")
    with pytest.raises(ValueError, match=r"missing \(decode_head.attention"):
        model.init_weights()
    assert issubclass(HierarchicalSegmentor, torch.nn.Module)


def rmi_by_definition(logits, labels, radius, stride, epsilon, ignored=255):
    """Half the logarithm of det M over radius ** 2 of one image, summed over classes, region by region."""
    total = 0.0
    for k, scores in enumerate(logits):
        vectors = []
        for plane in ((labels == k).double(), scores.sigmoid() * (labels != ignored)):
            rows, columns = (side // stride for side in plane.shape)
            cells = [[plane[i * stride : (i + 1) * stride, j * stride : (j + 1) * stride].mean()
                      for j in range(columns)] for i in range(rows)]  # fmt: skip
            regions = [[cells[i + a][j + b] for a in range(radius) for b in range(radius)]
                       for i in range(rows - radius + 1) for j in range(columns - radius + 1)]  # fmt: skip
            regions = torch.tensor(regions, dtype=torch.float64).T
            vectors.append(regions - regions.mean(1, keepdim=True))
        y, p = vectors
        noise = epsilon * torch.eye(radius**2, dtype=torch.float64)
        left = y @ y.T - y @ p.T @ torch.linalg.inv(p @ p.T + noise) @ p @ y.T + noise
        total += torch.logdet(left).item() / 2 / radius**2
    return total


def test_region_mutual_information_is_its_definition():
    logits = torch.randn(2, 3, 23, 26, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 23, 26))
    labels[0, :5] = 255
    loss = RegionMutualInformationLoss(radius=2, stride=3, share=0.3, epsilon=1e-3)
    expected = sum(rmi_by_definition(x, y, 2, 3, 1e-3) for x, y in zip(logits, labels, strict=True)) / 2
    known = labels != 255
    truth = torch.stack([labels == k for k in range(3)], 1).double()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1)
    expected = 0.7 * expected + 0.3 * (entropy * known).sum() / known.sum()
    assert loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-9)


def test_region_mutual_information_falls_where_predictions_come_to_the_labels():
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (1, 6, 6)).repeat_interleave(6, 1).repeat_interleave(6, 2)
    logits = torch.randn(1, 3, 36, 36, requires_grad=True)
    loss = RegionMutualInformationLoss()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        values.append(loss(logits, labels))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < values[0] - 0.5 and (logits.argmax(1) == labels).float().mean() > 0.95


def test_what_the_loss_cannot_take_is_named():
    loss, logits, labels = RegionMutualInformationLoss(), torch.randn(1, 3, 16, 16), torch.randint(0, 3, (1, 16, 16))
    with pytest.raises(ValueError, match="weight, avg_factor: must be None"):
        loss(logits, labels, torch.ones(1, 16, 16), avg_factor=2.0)
    with pytest.raises(ValueError, match=r"sides of at least 12 pixels"):
        loss(logits[..., :8], labels[..., :8])
    with pytest.raises(ValueError, match="share=2"):
        RegionMutualInformationLoss(share=2)


def test_hornets_pyramid_ends_in_gated_convolutions():
    horfpn = pytest.importorskip("visionattn.openmmlab.heads.horfpn")
    neck = horfpn.HorFPN([8, 16, 24], 16, 4)
    maps = [torch.randn(2, dim, side, side + 3) for dim, side in ((8, 12), (16, 6), (24, 3))]
    outputs = neck(maps)
    assert [tuple(x.shape) for x in outputs] == [(2, 16, 12, 15), (2, 16, 6, 9), (2, 16, 3, 6), (2, 16, 2, 3)]
    top = neck.lateral_convs[2](maps[2])
    assert torch.allclose(outputs[2], neck.fpn_convs[2].mixer(top.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), atol=1e-6)
    with pytest.raises(ValueError, match="add_extra_convs"):
        horfpn.HorFPN([8, 16], 16, 3, add_extra_convs="on_input")
