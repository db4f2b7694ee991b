# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are read without running code from them, by mmengine's loader too."""

import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")
typer_testing = pytest.importorskip("typer.testing")

from mmengine.logging import HistoryBuffer, MessageHub  # noqa: E402
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from visionattn import cli  # noqa: E402
from visionattn.openmmlab import read_checkpoint  # noqa: E402


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture
def state():
    return {"weight": torch.randn(3, 4), "bias": torch.randn(3)}


def message_hub():
    """As mmengine saves it: histories of floats, NumPy numbers and arrays."""
    hub = MessageHub("safe")
    for _ in range(5):
        hub.update_scalar("train/loss", float(torch.rand(())))
        hub.update_scalar("train/accuracy", np.float32(np.random.default_rng().random()))
    hub.update_info("best", np.float64(0.5))
    hub.update_info("counts", np.random.default_rng().integers(0, 9, (2, 3)))
    return hub.state_dict()


def test_what_mmengine_saves_is_read(state, tmp_path):
    hub = message_hub()
    meta = {"epoch": np.int64(3), "name": np.str_("run"), "half": np.float16(0.5), "ready": np.bool_(True)}
    torch.save({"state_dict": state, "message_hub": hub, "meta": meta}, tmp_path / "m.pth")
    content = read_checkpoint(tmp_path / "m.pth")
    assert content["meta"] == meta
    loss = content["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(loss, HistoryBuffer)
    assert loss.current() == hub["log_scalars"]["train/loss"].current()
    assert loss.mean(3) == pytest.approx(hub["log_scalars"]["train/loss"].mean(3))
    info = content["message_hub"]["runtime_info"]
    assert info["best"] == 0.5
    assert np.array_equal(info["counts"], hub["runtime_info"]["counts"])
    assert all(torch.equal(content["state_dict"][k], v) for k, v in state.items())


def test_a_checkpoint_of_mmengines_own_runner_is_read(tmp_path):
    model = torch.nn.Linear(4, 3)
    wrapper = dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9))
    loader = dict(batch_size=1, dataset=torch.utils.data.TensorDataset(torch.randn(2, 4)), sampler=None)
    runner = Runner(
        model, str(tmp_path), loader, optim_wrapper=wrapper, train_cfg=dict(by_epoch=True, max_epochs=1),
        experiment_name="own",
    )  # fmt: skip
    runner.message_hub.update_scalar("train/loss", np.float64(2.5))
    content = {"state_dict": model.state_dict(), "message_hub": runner.message_hub.state_dict(), "meta": {"iter": 1}}
    torch.save(content, tmp_path / "own.pth")
    found = read_checkpoint(tmp_path / "own.pth")
    assert found["message_hub"]["log_scalars"]["train/loss"].current() == 2.5


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
@pytest.mark.parametrize("place", ["meta", "state_dict"])
def test_code_is_refused_by_mmengines_loader_and_conversion_is_offered(legacy, place, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": state, "meta": {}}
    content[place] = {**content[place], "code": Code()}
    path = tmp_path / "evil.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    model = torch.nn.Linear(4, 3)
    for load in (read_checkpoint, CheckpointLoader.load_checkpoint, lambda file: load_checkpoint(model, str(file))):
        with pytest.raises(ValueError, match=r"could run code: (posix|os|nt)\.system.*visionattn convert") as error:
            load(str(path))
        assert "weights_only" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_getattr_is_for_histories_alone(state, tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (np.ndarray, "tofile")

    torch.save({"state_dict": state, "meta": Reach()}, tmp_path / "reach.pth")
    with pytest.raises(ValueError, match="is refused"):
        read_checkpoint(tmp_path / "reach.pth")


@pytest.mark.parametrize("function", [np.save, np.fromfile, pickle.loads, print], ids=lambda f: f.__name__)
def test_other_functions_of_numpy_and_python_are_refused(function, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    class Call:
        def __reduce__(self):
            return function, ("written.npy", b"x")[: 1 if function in (np.fromfile, pickle.loads) else 2]

    torch.save({"state_dict": state, "meta": Call()}, tmp_path / "call.pth")
    with pytest.raises(ValueError, match="is refused"):
        read_checkpoint(tmp_path / "call.pth")
    assert not (tmp_path / "written.npy").exists()


def test_the_environment_cannot_switch_to_unsafe_loading(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"state_dict": state, "meta": Code()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "executed").exists()


def test_addresses_and_safetensors_are_read_the_same_way(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(state, tmp_path / "w.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "w.safetensors")["state_dict"]["weight"], state["weight"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    fetched = []

    def fetch(url, target, digest, progress):
        fetched.append(url)
        torch.save({"state_dict": state, "message_hub": message_hub(), "meta": Code() if "evil" in url else {}}, target)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    for _ in range(2):
        content = CheckpointLoader.load_checkpoint("https://example.org/good.pth?download=1")
        assert torch.equal(content["state_dict"]["weight"], state["weight"])
    assert len(fetched) == 1
    with pytest.raises(ValueError, match="evil.pth is refused"):
        CheckpointLoader.load_checkpoint("http://example.org/evil.pth")
    assert not (tmp_path / "executed").exists()


def test_init_detector_reads_what_mmengine_saved_and_refuses_code(state, tmp_path, monkeypatch):
    pytest.importorskip("mmdet")
    monkeypatch.chdir(tmp_path)
    from mmdet.apis import init_detector

    from visionattn.openmmlab import dense, load_config

    cfg = load_config(Path(__file__).parent / "tiny_detection.py")
    weights = dense.load_model(cfg).state_dict()
    meta = {"dataset_meta": {"classes": ("rectangle", "disc")}}
    torch.save({"state_dict": weights, "message_hub": message_hub(), "meta": meta}, tmp_path / "good.pth")
    detector = init_detector(cfg, str(tmp_path / "good.pth"), device="cpu", palette="random")
    assert all(torch.equal(value, weights[key]) for key, value in detector.state_dict().items())
    torch.save({"state_dict": weights, "meta": Code()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth is refused"):
        init_detector(cfg, str(tmp_path / "evil.pth"), device="cpu", palette="random")
    assert not (tmp_path / "executed").exists()


class Settings(dict):
    """A dictionary with other things in it, as training scripts save them."""


class Command:
    def __reduce__(self):
        return subprocess.call, (["touch", "executed"],)


def convert(path, output):
    return typer_testing.CliRunner().invoke(cli.app, ["convert", str(path), "-o", str(output)])


def test_conversion_keeps_the_tensors_and_runs_nothing(state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = torch.randn(6)
    entries = {**state, "a": shared, "b": shared[:3]}
    settings = Settings(path=Path("somewhere"), values=Settings(lr=0.1))
    torch.save({"state_dict": entries, "meta": Command(), "settings": settings}, tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match="visionattn convert"):
        read_checkpoint(tmp_path / "foreign.pth")
    result = convert("foreign.pth", "good.safetensors")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "executed").exists()
    found = load_file(tmp_path / "good.safetensors")
    assert found.keys() == entries.keys()
    assert all(torch.equal(found[key], value) for key, value in entries.items())
    assert torch.equal(read_checkpoint(tmp_path / "good.safetensors")["state_dict"]["weight"], state["weight"])


@pytest.mark.parametrize("kind", ["functions of the system", "no tensors", "cut off", "missing"])
def test_conversion_of_what_holds_no_weights_is_an_error(kind, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"meta": Command()} if kind == "no tensors" else {"state_dict": state, "meta": Code()}
    if kind != "missing":
        torch.save(content, "file.pth")
    if kind == "cut off":
        whole = Path("file.pth").read_bytes()
        Path("file.pth").write_bytes(whole[: len(whole) // 2])
    result = convert("file.pth", "good.safetensors")
    assert result.exit_code == 1
    assert "file.pth" in result.stderr
    assert "Traceback" not in result.output
    assert not Path("good.safetensors").exists() and not Path("executed").exists()
