# SPDX-License-Identifier: Apache-2.0
"""Exported files on photos, by onnxruntime alone."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("cv2")

from visionattn.export import (  # noqa: E402
    ExportError,
    FeatureMaps,
    GraphInfo,
    OnnxModel,
    Preparation,
    Preprocessing,
    export_onnx,
)
from visionattn.export.classifiers import describe_model  # noqa: E402
from visionattn.export.metadata import loads  # noqa: E402
from visionattn.export.runtime import paste_masks, place  # noqa: E402

SIZE = (3, 24, 32)
MEAN, STD = (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)


class Net(nn.Module):
    """Logits of a map's mean, or the map's own where `dense`."""

    def __init__(self, dense=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Conv2d(32, 5, 1)
        self.dense = dense

    def forward(self, x):
        size = x.shape[-2:]
        x = self.head(self.norm(self.conv(x)).relu())
        return nn.functional.interpolate(x, size=size, mode="bilinear") if self.dense else x.mean((2, 3))


def facts(task="classification", **kwargs):
    given = {"preparation": Preparation("stretch"), "classes": tuple("abcde"), **kwargs}
    return GraphInfo(task=task, model="net", input_size=SIZE, mean=MEAN, std=STD, **given)


def photo(height=40, width=50):
    return np.random.default_rng().integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model and its file."""
    model = Net().eval()
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_onnx(model, path, SIZE, info=facts())
    return model, path


def test_facts_survive_the_file(exported):
    info = OnnxModel(exported[1]).info
    assert info == facts(dynamic_size=True)
    assert loads({"visionattn": info.dumps()}, "file") == info


def test_photos_are_classified_as_by_the_model(exported):
    model, path = exported
    image = photo(24, 32)
    scores = model(torch.tensor(((image - np.array(MEAN)) / STD).transpose(2, 0, 1)[None]).float()).softmax(-1)[0]
    found = OnnxModel(path).classify(image)
    assert found.label == int(scores.argmax()) and found.confidence == pytest.approx(float(scores.max()), abs=1e-4)


@pytest.mark.parametrize(("layout", "dtype", "order"), [("NHWC", "uint8", "RGB"), ("NCHW", "float32", "BGR")])
def test_preprocessing_inside_equals_the_one_outside(tmp_path, layout, dtype, order):
    model = Net().eval()
    inside = Preprocessing(MEAN, STD, order, layout, dtype)
    info = facts(channel_order=order)
    report = export_onnx(model, tmp_path / "in.onnx", SIZE, preprocessing=inside, info=info)
    export_onnx(model, tmp_path / "out.onnx", SIZE, info=info)
    assert report.dynamic_size and report.max_relative_difference <= 1e-4
    found, expected = (OnnxModel(tmp_path / name) for name in ("in.onnx", "out.onnx"))
    assert found.info.with_preprocessing and (found.info.layout, found.info.input_dtype) == (layout, dtype)
    image = photo(24, 32)
    np.testing.assert_allclose(found.run(image)["logits"], expected.run(image)["logits"], rtol=1e-4, atol=1e-5)


def test_the_crop_of_timm_is_repeated_to_the_pixel():
    model = timm.create_model("test_resnet", num_classes=4)
    info = describe_model(model, "test_resnet")
    settings = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**settings)
    for size in ((300, 211), (190, 333), (170, 170)):
        image = photo(*size)
        expected = transform(Image.fromarray(image))
        pixels = place(image, info).pixels
        ours = (pixels - np.float32(info.mean)) / np.float32(info.std)
        np.testing.assert_allclose(ours.transpose(2, 0, 1), expected.numpy(), atol=1e-5)


def test_photos_fit_a_fixed_size_and_the_rest_is_the_mean():
    info = facts("detection", preparation=Preparation("fit", scale=(32, 24)), channel_order="BGR")
    for size, filled in (((48, 64), (24, 32)), ((50, 20), (24, 10)), ((10, 90), (4, 32))):
        placed = place(photo(*size), info)
        assert placed.pixels.shape == (24, 32, 3) and placed.filled == filled
        assert (placed.pixels[filled[0] :] == np.float32(MEAN[::-1])).all()
        assert (placed.pixels[:, filled[1] :] == np.float32(MEAN[::-1])).all()
    free = info.with_(dynamic_size=True)
    assert place(photo(48, 24), free).pixels.shape == (32, 16, 3)


def test_masks_are_pasted_into_their_boxes():
    mask = np.random.default_rng().random((2, 7, 7), dtype=np.float32)
    boxes = np.array([[3.3, 2.2, 17.9, 11.0], [5.0, 5.0, 5.0, 9.0]], np.float32)  # the second has no width
    pasted = paste_masks(mask, boxes, (15, 20), 0.5)
    y, x = (torch.arange(n) + 0.5 for n in (15, 20))
    left, top, right, bottom = boxes[0].tolist()
    grid = torch.stack(torch.meshgrid((x - left) / (right - left), (y - top) / (bottom - top), indexing="xy"), -1)
    sampled = nn.functional.grid_sample(torch.from_numpy(mask[:1, None]), 2 * grid[None] - 1, align_corners=False)
    assert np.array_equal(pasted[0], sampled[0, 0].numpy() >= 0.5)
    assert not pasted[1].any()


def test_class_maps_and_logits_label_pixels_alike(tmp_path):
    class Labels(Net):
        def forward(self, x):
            return super().forward(x).argmax(1)

    model = Labels(dense=True).eval()
    export_onnx(model, tmp_path / "map.onnx", SIZE, outputs=("class_map",), info=facts("segmentation"))
    image = photo(24, 32)
    plain = Net(dense=True).eval()
    plain.load_state_dict(model.state_dict())
    export_onnx(plain, tmp_path / "logits.onnx", SIZE, info=facts("segmentation"))
    labels = [OnnxModel(tmp_path / name).segment(image) for name in ("map.onnx", "logits.onnx")]
    assert labels[0].shape == (24, 32) and (labels[0] == labels[1]).mean() > 0.99


@pytest.mark.slow
def test_feature_maps_are_the_outputs(tmp_path):
    model = timm.create_model("test_resnet")
    maps = FeatureMaps(model).eval()
    info = describe_model(model, "test_resnet").with_(task="features")
    report = export_onnx(maps, tmp_path / "f.onnx", (3, 64, 64), outputs=maps.names, info=info)
    assert report.outputs == ("features_0", "features_1", "features_2", "features_3")
    features = OnnxModel(tmp_path / "f.onnx").features(photo(100, 100))
    assert [f.shape for f in features.values()] == [tuple(f.shape) for f in maps(torch.randn(1, 3, 64, 64))]


def test_float16_halves_the_file_and_stays_close(exported, tmp_path):
    model = nn.Sequential(Net(), nn.Linear(5, 4096), nn.Linear(4096, 5)).eval()
    sizes = {}
    for precision in ("float32", "float16"):
        path = tmp_path / f"{precision}.onnx"
        report = export_onnx(model, path, SIZE, precision=precision, info=facts())
        sizes[precision] = path.stat().st_size
    assert sizes["float16"] < 0.6 * sizes["float32"]
    kinds = [tensor.data_type for tensor in onnx.load(path).graph.initializer if len(tensor.dims) == 2]
    assert kinds and set(kinds) == {onnx.TensorProto.FLOAT16}
    assert report.agreement["relative_difference"] < 0.01 and report.agreement["same_decision"] > 0.7
    assert OnnxModel(path).info.precision == "float16"
    assert 0 <= OnnxModel(path).classify(photo()).confidence <= 1


def test_int8_has_a_scale_for_each_channel_and_agrees(tmp_path):
    model = Net().eval()
    images = [np.random.default_rng().normal(size=(1, *SIZE)).astype(np.float32) for _ in range(20)]
    report = export_onnx(model, tmp_path / "q.onnx", SIZE, precision="int8", calibration=images, info=facts())
    assert report.agreement["images"] == 20
    assert report.agreement["relative_difference"] < 0.2 and report.agreement["same_decision"] > 0.6
    graph = onnx.load(tmp_path / "q.onnx").graph
    scales = [i for i in graph.initializer if "conv.weight" in i.name and i.name.endswith("_scale")]
    assert any(tuple(scale.dims) == (32,) for scale in scales)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    assert OnnxModel(tmp_path / "q.onnx").info.precision == "int8"
    assert [p.name for p in tmp_path.iterdir()] == ["q.onnx"]


def test_too_few_calibration_images_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="int8 needs at least 16 calibration images; there are 3"):
        export_onnx(Net(), tmp_path / "q.onnx", SIZE, precision="int8", calibration=[np.zeros((1, *SIZE))] * 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"precision": "int4"}, ValueError, "precision='int4' must be one of float32, float16, int8"),
        ({"outputs": ()}, ValueError, "outputs must name at least one"),
        ({"outputs": ("logits", "more")}, ExportError, "name 2 outputs|cannot be exported"),
    ],
)
def test_wrong_export_arguments_are_named(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        export_onnx(Net(), tmp_path / "m.onnx", SIZE, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "HWC"}, "layout='HWC'"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
    ],
)
def test_wrong_preprocessing_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**{"mean": MEAN, "std": STD, **arguments})


def test_files_that_do_not_fit_their_metadata_are_named(exported, tmp_path):
    _, path = exported
    with pytest.raises(FileNotFoundError, match="none.onnx does not exist"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match="text.onnx cannot be read by onnxruntime"):
        OnnxModel(tmp_path / "text.onnx")

    def changed(**metadata):
        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    with pytest.raises(ValueError, match="has no metadata 'visionattn'.*visionattn export"):
        OnnxModel(changed())
    with pytest.raises(ValueError, match="cannot be read"):
        OnnxModel(changed(visionattn="{"))
    with pytest.raises(ValueError, match="task='speech'"):
        OnnxModel(changed(visionattn=json.dumps({**json.loads(facts().dumps()), "task": "speech"})))
    with pytest.raises(ValueError, match="has the outputs logits; its metadata say boxes"):
        OnnxModel(changed(visionattn=facts(outputs=("boxes",)).dumps()))
    with pytest.raises(ValueError, match=r"tensor\(float\) of shape .*uint8, NHWC"):
        OnnxModel(changed(visionattn=facts(input_dtype="uint8", layout="NHWC").dumps()))
    with pytest.raises(ValueError, match="does not say how photos get their size"):
        OnnxModel(changed(visionattn=facts(preparation=None).dumps())).classify(photo())


def test_a_graph_of_two_inputs_is_named(tmp_path):
    value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 4, 4]) for n in ("a", "b", "logits")]
    node = onnx.helper.make_node("Add", ["a", "b"], ["logits"])
    graph = onnx.helper.make_graph([node], "sum", value[:2], value[2:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, {"visionattn": facts().dumps()})
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(ValueError, match=r"has 2 inputs \(a, b\); its metadata say one"):
        OnnxModel(tmp_path / "two.onnx")


def test_the_command_predicts_without_pytorch(exported, tmp_path):
    pytest.importorskip("typer")
    pytest.importorskip("matplotlib")
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    code = f"""
import sys
sys.argv = ["visionattn"]
from visionattn import cli
try:
    cli.main(["predict", "--onnx", {str(exported[1])!r}, {str(tmp_path / "photo.png")!r}, "-o",
              {str(tmp_path / "picture.png")!r}])
except SystemExit as end:
    assert not end.code, end.code
assert not {{"torch", "timm", "mmengine", "mmdet", "albumentations"}} & set(sys.modules), "imported"
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert "1 predictions drawn" in run.stdout
    assert Image.open(tmp_path / "picture.png").size[0] > 100


def test_the_command_quantises_by_a_folder_of_photos(tmp_path):
    testing = pytest.importorskip("typer.testing")
    pytest.importorskip("matplotlib")
    from visionattn import cli

    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(17):
        Image.fromarray(photo(40 + i, 60)).save(photos / f"{i}.png")
    arguments = ["export", "test_resnet", "--size", "32", "--fixed-size", "--with-preprocessing", "-o"]
    file = tmp_path / "q.onnx"
    report = tmp_path / "report.json"
    arguments += [str(file), "--int8", "--calibration", str(photos), "--json", str(report)]
    result = testing.CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    agreement = json.loads(report.read_text())["agreement"]
    assert agreement["images"] == 17 and agreement["relative_difference"] < 0.5 and agreement["same_decision"] > 0
    info = OnnxModel(file).info
    assert (info.precision, info.layout, info.input_dtype, info.with_preprocessing) == ("int8", "NHWC", "uint8", True)
    picture = tmp_path / "picture.png"
    arguments = ["predict", "--onnx", str(file), *map(str, sorted(photos.iterdir())[:2]), "-o", str(picture)]
    result = testing.CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0 and picture.is_file(), result.output


def test_commands_name_what_does_not_go_together(tmp_path):
    testing = pytest.importorskip("typer.testing")
    from visionattn import cli

    (tmp_path / "empty").mkdir()
    for arguments, message in [
        (["predict"], "predict needs CONFIG and CHECKPOINT, or --onnx FILE and images"),
        (["predict", "--onnx", tmp_path / "m.onnx"], "needs image files"),
        (["export", "test_resnet", "--int8"], "--int8 and --calibration DIR go together"),
        (["export", "test_resnet", "--int8", "--float16"], "exclude each other"),
        (["export", "test_resnet", "--class-map"], "--class-map is for a segmentation config"),
        (["export", "test_resnet", "--int8", "--calibration", tmp_path / "no"], "is not a folder"),
        (["export", "test_resnet", "--int8", "--calibration", tmp_path / "empty"], "at least 16 .* there are 0"),
    ]:
        result = testing.CliRunner().invoke(cli.app, [str(a) for a in arguments])
        assert result.exit_code == 1
        assert __import__("re").search(message, result.output), result.output
