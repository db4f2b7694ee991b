# SPDX-License-Identifier: Apache-2.0
"""Detectors and segmentors in exportable form give what mmdet's and mmsegmentation's own inference gives."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from visionattn.export import OnnxModel, export_onnx  # noqa: E402
from visionattn.export.onnx import detection_difference  # noqa: E402
from visionattn.export.runtime import paste_masks  # noqa: E402
from visionattn.openmmlab import dense, deploy, graph_info, load_config  # noqa: E402
from visionattn.openmmlab.config import task_of  # noqa: E402

HERE = Path(__file__).parent
SIZE = (64, 96)


def tiny_mask_rcnn():
    return load_config(HERE / "tiny_detection.py")


def tiny_faster_rcnn():
    cfg = tiny_mask_rcnn()
    for name in ("mask_roi_extractor", "mask_head"):
        cfg.model.roi_head.pop(name)
    cfg.model.type = "FasterRCNN"
    cfg.model.roi_head.bbox_head.reg_class_agnostic = True
    return cfg


def tiny_cascade():
    cfg = tiny_mask_rcnn()
    roi = cfg.model.roi_head
    roi.type, roi.num_stages, roi.stage_loss_weights = "CascadeRoIHead", 2, [1, 0.5]
    roi.bbox_head = [copy.deepcopy(roi.bbox_head) for _ in range(2)]
    cfg.model.train_cfg.rcnn = [copy.deepcopy(cfg.model.train_cfg.rcnn) for _ in range(2)]
    cfg.model.type = "CascadeRCNN"
    return cfg


def tiny_one_stage(kind):
    cfg = tiny_mask_rcnn()
    for name in ("rpn_head", "roi_head"):
        cfg.model.pop(name)
    anchors = {"RetinaNet": dict(octave_base_scale=4, scales_per_octave=2, ratios=[0.7, 1.4], strides=[4, 8])}
    head = dict(
        type=f"{kind}Head".replace("NetHead", "Head"),
        num_classes=2,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True),
        loss_bbox=dict(type="GIoULoss"),
    )
    if kind == "FCOS":
        head.update(strides=[4, 8], norm_cfg=None, regress_ranges=((-1, 32), (32, 1e8)))
    else:
        head.update(
            anchor_generator=dict(
                type="AnchorGenerator",
                **anchors.get(kind, dict(octave_base_scale=4, scales_per_octave=1, ratios=[1.0], strides=[4, 8])),
            ),
            bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        )
    if kind == "ATSS":
        head.update(
            norm_cfg=dict(type="GN", num_groups=4), loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True)
        )
    cfg.model.type, cfg.model.bbox_head, cfg.model.train_cfg = kind, head, None
    cfg.model.test_cfg = dict(
        nms_pre=40, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=12
    )
    return cfg


def tiny_deformable_detr(refine=False, two_stage=False):
    cfg = tiny_mask_rcnn()
    dim = 256 if two_stage else 16  # mmdet's encoding of proposals has 512 channels
    attention = dict(embed_dims=dim, num_heads=4, num_levels=2)
    ffn = dict(embed_dims=dim, feedforward_channels=32)
    cfg.model = dict(
        type="DeformableDETR",
        num_queries=9,
        num_feature_levels=2,
        with_box_refine=refine or two_stage,
        as_two_stage=two_stage,
        data_preprocessor=cfg.model.data_preprocessor,
        backbone=cfg.model.backbone,
        neck=dict(
            type="ChannelMapper", in_channels=[16, 32], out_channels=dim, num_outs=2, act_cfg=None, kernel_size=1
        ),
        encoder=dict(num_layers=2, layer_cfg=dict(self_attn_cfg=dict(batch_first=True, **attention), ffn_cfg=ffn)),
        decoder=dict(
            num_layers=2,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=dim, num_heads=4, batch_first=True),
                cross_attn_cfg=dict(batch_first=True, **attention),
                ffn_cfg=ffn,
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(num_feats=dim // 2, normalize=True, offset=-0.5),
        bbox_head=dict(
            type="DeformableDETRHead",
            num_classes=2,
            sync_cls_avg_factor=True,
            embed_dims=dim,
            loss_cls=dict(type="FocalLoss", use_sigmoid=True),
            loss_bbox=dict(type="L1Loss"),
            loss_iou=dict(type="GIoULoss"),
        ),
        train_cfg=None,
        test_cfg=dict(max_per_img=8),
    )
    return cfg


CONFIGS = {
    "retinanet": lambda: tiny_one_stage("RetinaNet"),
    "atss": lambda: tiny_one_stage("ATSS"),
    "fcos": lambda: tiny_one_stage("FCOS"),
    "faster-rcnn": tiny_faster_rcnn,
    "mask-rcnn": tiny_mask_rcnn,
    "cascade-mask-rcnn": tiny_cascade,
    "deformable-detr": tiny_deformable_detr,
    "deformable-detr-refine": lambda: tiny_deformable_detr(refine=True),
    "deformable-detr-two-stage": lambda: tiny_deformable_detr(two_stage=True),
}


def drawn_afresh(model):
    """Random weights of a size that spreads scores and boxes: initial ones give all places nearly the same."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name and parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.normal_(std=1.0 / fan**0.5)
    return model.eval()


def load(name):
    cfg = CONFIGS[name]()
    model = drawn_afresh(dense.load_model(cfg).cpu())
    return deploy.graph_of(model, "detection", SIZE), graph_info.describe(cfg, model, size=SIZE)


def own_prediction(model, image):
    """What mmdet's own inference finds in a normalised image."""
    from mmdet.structures import DetDataSample

    size = tuple(image.shape[2:])
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), size)
    sample = DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})
    with torch.inference_mode():
        (result,) = model.predict(image, [sample], rescale=True)
    return result.pred_instances


@pytest.mark.parametrize("name", CONFIGS)
def test_exportable_detectors_agree_with_their_own_inference(name):
    graph, _ = load(name)
    for _ in range(3):
        image = torch.randn(1, 3, *SIZE)
        own = own_prediction(graph.model, image)
        with torch.inference_mode():
            found = dict(zip(graph.names, graph(image), strict=True))
        assert len(own) > 3
        torch.testing.assert_close(found["scores"], own.scores, rtol=1e-4, atol=1e-5)
        theirs = {"boxes": own.bboxes, "scores": own.scores, "labels": own.labels}
        assert detection_difference({key: found[key] for key in theirs}, theirs) <= 1e-4
        if "masks" in found:
            pasted = paste_masks(found["masks"].numpy(), found["boxes"].numpy(), SIZE, 0.5)
            assert (pasted.sum(0) != own.masks.numpy().sum(0)).mean() < 2e-3  # whatever the order
            assert pasted.any() or not own.masks.any()


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_detectors_export_with_suppression_inside(name, tmp_path):
    graph, info = load(name)
    report = export_onnx(
        graph,
        tmp_path / "detector.onnx",
        (3, *SIZE),
        dynamic_size=False,
        dynamic_batch=False,
        outputs=graph.names,
        info=info,
    )
    assert report.max_relative_difference <= 1e-4
    image = torch.randn(1, 3, *SIZE)
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    found = dict(zip(graph.names, session.run(None, {"images": image.numpy()}), strict=True))
    own = own_prediction(graph.model, image)
    assert len(found["scores"]) == len(own)
    np.testing.assert_allclose(found["scores"], own.scores, rtol=1e-3, atol=1e-4)
    photo = np.random.default_rng().integers(0, 256, (50, 70, 3), dtype=np.uint8)
    seen = OnnxModel(tmp_path / "detector.onnx").detect(photo, score=0.0)
    assert len(seen.boxes) and (seen.boxes <= [70, 50, 70, 50]).all() and (seen.boxes >= 0).all()
    assert ("masks" in graph.names) == (seen.masks is not None)
    assert seen.masks is None or seen.masks.shape == (len(seen.boxes), 50, 70)


def test_detections_that_no_score_reaches_are_none(tmp_path):
    cfg = CONFIGS["atss"]()
    cfg.model.test_cfg.score_thr = 1.0
    graph, _ = deploy.load(cfg, size=SIZE)
    with torch.inference_mode():
        boxes, scores, labels = graph(torch.randn(1, 3, *SIZE))
    assert boxes.shape == (0, 4) and scores.shape == labels.shape == (0,)


def test_detectors_without_an_exportable_form_are_named():
    cfg = CONFIGS["atss"]()
    cfg.model.test_cfg.nms = dict(type="soft_nms", iou_threshold=0.5)
    with pytest.raises(ValueError, match="nms.type='soft_nms' of ATSSHead has no ONNX operator"):
        deploy.load(cfg, size=SIZE)
    cfg = tiny_mask_rcnn()
    cfg.model.roi_head.mask_roi_extractor.roi_layer.type = "RoIPool"
    cfg.model.roi_head.mask_roi_extractor.roi_layer.pop("sampling_ratio")
    with pytest.raises(ValueError, match="SingleRoIExtractor with RoIPool cannot be exported"):
        deploy.load(cfg, size=SIZE)
    with pytest.raises(ValueError, match="precision='int8' is not for detectors"):
        export_onnx(torch.nn.Identity(), "m.onnx", outputs=("boxes", "scores", "labels"), precision="int8")


@pytest.mark.parametrize("class_map", [False, True])
def test_segmentors_agree_with_their_own_inference(class_map):
    graph, info = deploy.load(load_config(HERE / "tiny_segmentation.py"), class_map=class_map)
    assert info.input_size == (3, 48, 64) and info.classes == ("background", "rectangle", "disc")
    images = torch.randn(2, 3, 40, 56)
    with torch.inference_mode():
        own = drawn_afresh(graph.model).predict(images)
        found = graph(images)
    for result, ours in zip(own, found, strict=True):
        expected = result.pred_sem_seg.data[0] if class_map else result.seg_logits.data
        torch.testing.assert_close(ours, expected)


@pytest.mark.slow
def test_a_segmentor_exports_with_free_sizes_and_labels_photos_as_the_model_does(tmp_path):
    cfg = load_config(HERE / "tiny_segmentation.py")
    graph, info = deploy.load(cfg)
    drawn_afresh(graph.model)
    report = export_onnx(graph, tmp_path / "s.onnx", info.input_size, outputs=graph.names, info=info)
    assert report.dynamic_size and report.max_relative_difference <= 1e-4
    photo = np.random.default_rng().integers(0, 256, (33, 60, 3), dtype=np.uint8)
    model = OnnxModel(tmp_path / "s.onnx")
    labels = model.segment(photo)
    assert labels.shape == (33, 60)
    data = {"inputs": [torch.from_numpy(model.place(photo).pixels[..., ::-1].copy()).permute(2, 0, 1)]}
    from mmseg.structures import SegDataSample

    size = tuple(data["inputs"][0].shape[1:])
    data["data_samples"] = [SegDataSample(metainfo={"img_shape": size, "ori_shape": (33, 60), "pad_shape": size})]
    with torch.inference_mode():
        (own,) = graph.model.test_step(data)
    assert (own.pred_sem_seg.data[0].numpy() == labels).mean() > 0.999


@pytest.mark.slow
def test_pyramid_pooling_exports_with_free_sizes(tmp_path):
    graph, info = deploy.load(load_config("builtin/scenes_upernet_nat-micro"))
    drawn_afresh(graph.model)
    report = export_onnx(graph, tmp_path / "s.onnx", info.input_size, outputs=graph.names, info=info)
    assert report.dynamic_size, report.fixed_because


@pytest.mark.slow
def test_sliding_windows_are_averaged_outside_as_the_model_does_inside(tmp_path):
    cfg = load_config(HERE / "tiny_segmentation.py")
    cfg.model.test_cfg = dict(mode="slide", crop_size=(32, 32), stride=(20, 24))
    graph, info = deploy.load(cfg)
    assert info.window == (32, 32, 20, 24) and info.input_size == (3, 32, 32)
    drawn_afresh(graph.model)
    export_onnx(graph, tmp_path / "s.onnx", info.input_size, dynamic_size=False, outputs=graph.names, info=info)
    model = OnnxModel(tmp_path / "s.onnx")
    photo = np.random.default_rng().integers(0, 256, (48, 61, 3), dtype=np.uint8)
    placed = model.place(photo)
    assert placed.filled == (48, 61)
    images = (placed.pixels - np.float32(info.mean)) / np.float32(info.std)
    with torch.inference_mode():
        (own,) = graph.model.predict(torch.from_numpy(images.transpose(2, 0, 1)[None].copy()))
    assert (own.pred_sem_seg.data[0].numpy() == model.segment(photo)).mean() > 0.999


def test_configs_say_how_photos_get_their_size():
    cfg = load_config("coco/mask-rcnn_nat-tiny_3x")
    assert task_of(cfg) == "detection"
    assert graph_info.input_size(cfg) == (800, 1344)
    how = graph_info.preparation(cfg)
    assert (how.mode, how.scale) == ("fit", (1333, 800))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"type": "Resize", "height": 32, "width": 32}, {"type": "Normalize"}], ("stretch", "bilinear", 1.0)),
        (
            [
                {"type": "SmallestMaxSize", "max_size": 40, "interpolation": 2},
                {"type": "CenterCrop", "height": 32, "width": 32},
            ],
            ("crop", "bicubic", 0.8),
        ),
        ([{"type": "ImageNetEval", "crop_pct": 0.9}], ("crop", "bicubic", 0.9)),
        ([{"type": "Rotate"}, {"type": "Resize"}], None),
    ],
)
def test_classifiers_pipelines_become_preparations(steps, expected):
    how = graph_info.classifier_preparation(steps)
    assert expected == (None if how is None else (how.mode, how.interpolation, how.crop_pct))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_segmentation.py", "tiny_detection.py"])
def test_the_commands_export_and_draw(name, tmp_path):
    testing = pytest.importorskip("typer.testing")
    pytest.importorskip("matplotlib")
    import cv2

    from visionattn import cli

    def call(*arguments):
        result = testing.CliRunner().invoke(cli.app, [str(a) for a in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    file, photo, picture = (tmp_path / part for part in ("m.onnx", "photo.png", "picture.png"))
    extra = ["--class-map"] if "segmentation" in name else []
    output = call("export", HERE / name, "-o", file, "--size", "48x64", "--with-preprocessing", "--float16", *extra)
    assert "float16 beside float32" in output
    cv2.imwrite(str(photo), np.random.default_rng().integers(0, 256, (50, 70, 3), dtype=np.uint8))
    assert "1 predictions drawn" in call("predict", "--onnx", file, photo, "-o", picture, "--score", 0.0)
    assert cv2.imread(str(picture)).std() > 1
