# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from visionattn.export import ExportError, ParityError, export_onnx  # noqa: E402


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)
        self.norm.running_mean.normal_()

    def forward(self, x):
        return self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


class FixedNet(Net):
    """A model whose graph depends on the image's size."""

    def forward(self, x):
        if x.shape[-2] > 20 and x.shape[-1] > 20:
            x = x[..., ::2, ::2]
        return super().forward(x)


class WrongWhenExported(Net):
    def forward(self, x):
        return super().forward(x) + (0.01 if torch.compiler.is_exporting() else 0.0)


def test_batch_height_and_width_are_free_and_both_sides_agree(tmp_path):
    model = Net().train()
    report = export_onnx(model, tmp_path / "net.onnx", (3, 21, 34))
    assert model.training
    assert report.dynamic_size
    assert report.fixed_because == ""
    assert len({shape[0] for shape in report.checked}) >= 2
    assert len({shape[2:] for shape in report.checked}) == 2
    assert report.max_relative_difference <= 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    images = torch.randn(7, 3, 18, 45)
    (logits,) = session.run(None, {"images": images.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), model.eval()(images).detach(), rtol=1e-4, atol=1e-5)
    assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == report.opset >= 18
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_a_size_that_cannot_be_free_is_fixed_and_the_reason_given(tmp_path):
    report = export_onnx(FixedNet(), tmp_path / "net.onnx", (3, 16, 24))
    assert not report.dynamic_size
    assert report.fixed_because
    assert {shape[1:] for shape in report.checked} == {(3, 16, 24)}
    assert len({shape[0] for shape in report.checked}) == 2


def test_a_size_is_fixed_where_that_is_asked_for(tmp_path):
    report = export_onnx(Net(), tmp_path / "net.onnx", (3, 16, 24), dynamic_size=False)
    assert not report.dynamic_size
    assert report.fixed_because == ""


def test_a_graph_that_disagrees_leaves_no_file_and_an_older_one_as_it_was(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(ParityError, match="disagrees with the model by .*no file was left"):
        export_onnx(WrongWhenExported(), path, (3, 16, 24))
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"older")
    with pytest.raises(ParityError):
        export_onnx(WrongWhenExported(), path, (3, 16, 24))
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


class Unwritable(Net):
    def forward(self, x):
        return torch.special.bessel_j0(super().forward(x))  # no ONNX operator


def test_a_model_that_cannot_be_exported_says_why_and_leaves_no_file(tmp_path):
    with pytest.raises(ExportError, match="Unwritable cannot be exported: .+"):
        export_onnx(Unwritable(), tmp_path / "net.onnx", (3, 16, 24))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (3, 0, 8)}, r"input_size=\(3, 0, 8\)"),
        ({"input_size": (8, 8)}, r"input_size=\(8, 8\)"),
        ({"opset": 11}, "opset=11 is too old"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(Net(), tmp_path / "net.onnx", **arguments)
