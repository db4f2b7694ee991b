# SPDX-License-Identifier: Apache-2.0
"""ImageNet's recipes: every config builds, says what its authors do, and trains a step."""

import copy

import numpy as np
import pytest
import timm
import torch

pytest.importorskip("mmengine")
pytest.importorskip("albumentations")

from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import HOOKS, MODELS, PARAM_SCHEDULERS  # noqa: E402

import visionattn  # noqa: E402
from visionattn.data import build_pipeline  # noqa: E402
from visionattn.models._registry import FAMILIES  # noqa: E402
from visionattn.openmmlab import load_config  # noqa: E402
from visionattn.openmmlab.config import builtin_configs  # noqa: E402
from visionattn.openmmlab.schedules import TimmSchedule  # noqa: E402

CONFIGS = sorted(name for name in builtin_configs() if name.startswith("imagenet/"))
# Families whose authors or trainers published no recipe for ImageNet, or none in detail.
WITHOUT = {
    "cswin", "pvt", "pvtv2", "botnet", "halonet", "haloregnetz", "ulsam", "das", "das_mobilenetv2", "psa", "psa_resnet",
    "efficient_attention", "residual_attention", "sparsifiner", "sparsifiner_lvvit", "pyramid", "vit",
    "convnext_pat",
}  # fmt: skip


def family(config):
    return visionattn.info(config.model.name).family


@pytest.fixture(scope="module")
def configs():
    return {name: load_config(name) for name in CONFIGS}


def test_every_family_with_a_recipe_has_a_config(configs):
    found = {family(config) for config in configs.values()}
    assert found == set(FAMILIES) - WITHOUT


def test_every_config_fits_its_model(configs):
    for name, config in configs.items():
        cfg = timm.get_pretrained_cfg(config.model.name)
        train, test = config.train_dataloader.dataset.pipeline, config.test_dataloader.dataset.pipeline
        assert config.model.num_classes == (21841 if "_22k-" in name else 1000), name
        assert train.size == test.size, name
        if "_ft-384-" not in name:  # weights of another tag
            assert test.size == cfg.input_size[-1], name
            assert test.crop_pct == pytest.approx(cfg.crop_pct, abs=1e-5), name
            assert test.crop_mode == cfg.crop_mode, name
        build_pipeline(train), build_pipeline(test)
        assert config.val_dataloader == config.test_dataloader
        assert int(name.rpartition("-")[2].rpartition("_")[2].rstrip("e")) == config.train_cfg.max_epochs, name
        overlay = (config.model.get("kwargs") or {}).get("pretrained_cfg_overlay")
        assert bool(config.model.get("pretrained")) == ("_ft-" in name) == bool(overlay), name
        if overlay and overlay.file.startswith("work_dirs/"):  # another recipe leaves it there
            assert any(other.endswith("/" + overlay.file.split("/")[1]) for other in CONFIGS), name


def test_every_schedule_begins_and_ends_as_it_should(configs):
    for name, config in configs.items():
        settings = copy.deepcopy(dict(config.param_scheduler))
        epochs = config.train_cfg.max_epochs
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        given = dict(optimizer=optimizer, epoch_length=10, end=epochs)  # as the runner does
        schedule = PARAM_SCHEDULERS.build(settings, default_args=given)
        assert isinstance(schedule, TimmSchedule)
        factors = [schedule.factor(step) for step in range(10 * epochs)]
        assert max(factors) <= 1.0 + 1e-9, name
        warmup = settings.get("warmup_epochs", 0)
        assert factors[0] == pytest.approx(settings.get("warmup_factor", 1e-3) if warmup else 1.0), name
        cooldown = settings.get("cooldown_epochs", 0)
        if settings["schedule"] == "cosine":
            assert factors[-1] == pytest.approx(settings["min_factor"], abs=1e-3), name
            assert len({round(f, 12) for f in factors[10 * (epochs - cooldown) :]}) <= 1, name


def test_the_authors_numbers_are_in_the_configs(configs):
    def figures(name):
        config = configs[f"imagenet/{name}"]
        optimizer, schedule = config.optim_wrapper.optimizer, config.param_scheduler
        clip = (config.optim_wrapper.get("clip_grad") or {}).get("max_norm")
        ema = config.default_hooks.get("ema")
        return (
            optimizer.lr, config.auto_scale_lr.base_batch_size, optimizer.weight_decay, schedule.get("warmup_epochs"),
            config.train_cfg.max_epochs, clip, ema and round(1 - ema.momentum, 6),
        )  # fmt: skip

    assert figures("nat/nat-tiny_310e") == (1e-3, 1024, 0.05, 20, 310, 5.0, None)
    assert figures("swin/swin-base-384_ft-30e") == (4e-5, 1024, 1e-8, 5, 30, 5.0, None)
    assert figures("swin/swin-large_22k-90e") == (1e-3, 4096, 0.05, 5, 90, 5.0, None)
    assert figures("swinv2/swinv2-base-window12_22k-90e") == (1e-3, 4096, 0.1, 5, 90, 5.0, None)
    assert figures("dat/dat-base_300e") == (8e-4, 1024, 0.05, 50, 300, 1.0, None)
    assert figures("hornet/hornet-base-gf_300e") == (4e-3, 4096, 0.05, 20, 300, 1.0, 0.9999)
    assert figures("mambaout/mambaout-tiny_310e") == (4e-3, 4096, 0.05, 20, 310, None, None)
    assert figures("agent/agent-cswin-base_310e") == (5e-4, 512, 0.1, 20, 310, None, 0.99992)
    assert figures("vim/vim-tiny_300e") == (1e-3, 1024, 0.1, 5, 300, None, 0.99996)
    assert figures("triplet/triplet-mobilenetv2_400e") == (0.045, 96, 4e-5, 0, 400, None, None)
    assert configs["imagenet/twins/twins-svt-large_300e"].model.kwargs.drop_path_rate == 0.5
    assert configs["imagenet/hornet/hornet-base-gf_300e"].train_dataloader.dataset.pipeline.auto_augment == (
        "rand-m15-mstd0.5-inc1"
    )
    assert configs["imagenet/biformer/biformer-small_310e"].train_dataloader.sampler.type == "RepeatedAugmentation"


def images_of(config):
    """Images a step in the run that the config is written for: eight processes, accumulated steps."""
    return 8 * config.train_dataloader.batch_size * config.optim_wrapper.get("accumulative_counts", 1)


def test_eight_processes_have_the_images_that_the_learning_rate_is_for(configs):
    exceptions = {"dat-base-384", "datpp-base-384", "vim-small", "vim-small-stride8", "triplet-mobilenetv2"}
    for name, config in configs.items():
        short = name.split("/")[-1].split("_")[0].removesuffix("-k3")
        if short not in exceptions:
            assert images_of(config) == config.auto_scale_lr.base_batch_size, name


@pytest.mark.parametrize("name", ["imagenet/nat/nat-mini_310e", "imagenet/cbam/cbam-resnet18_100e"])
def test_models_build_on_the_meta_device(name):
    build(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_builds_on_the_meta_device(name):
    build(name)


def build(name):
    config = load_config(name)
    model = dict(config.model)
    model["pretrained"] = False  # there are no weights on that device
    with torch.device("meta"):
        network = MODELS.build(model)
    wrapper = build_optim_wrapper(network, copy.deepcopy(config.optim_wrapper))
    counted = sum(p.numel() for group in wrapper.optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in network.parameters() if p.requires_grad)
    for hook in (*config.custom_hooks, *filter(None, config.default_hooks.values())):
        HOOKS.build(hook)


def first_of_each_family():
    found = {}
    for name in CONFIGS:
        found.setdefault(name.split("/")[1] + ("+" if "_ft-" in name else ""), name)
    return sorted(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", first_of_each_family())
def test_a_step_of_each_family_trains(name, tmp_path):
    train_step(name)


def test_a_step_of_a_small_model_trains():
    train_step("imagenet/nat/nat-mini_310e")


def train_step(name):
    config = load_config(name)
    model = dict(config.model, num_classes=10, pretrained=False)
    info = FAMILIES[family(config)]
    if model["name"] in info.micros:
        model["kwargs"] = {**(model.get("kwargs") or {}), **info.micros[model["name"]]}
    model["kwargs"] = {k: v for k, v in (model.get("kwargs") or {}).items() if k != "pretrained_cfg_overlay"}
    size = (model["kwargs"].get("img_size")) or config.test_dataloader.dataset.pipeline.size
    side = size if isinstance(size, int) else size[0]
    pipeline = build_pipeline({**config.train_dataloader.dataset.pipeline, "size": side})
    rng = np.random.default_rng()
    photos = [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(2)]
    batch = {"inputs": torch.stack([pipeline(image=photo)["image"] for photo in photos]), "label": torch.tensor([3, 7])}
    network = MODELS.build(model).train()
    settings = copy.deepcopy(config.optim_wrapper)
    settings["accumulative_counts"] = 1
    wrapper = build_optim_wrapper(network, settings)
    before = [p.detach().clone() for p in network.parameters()]
    losses = network.train_step(batch, wrapper)
    assert torch.isfinite(losses["loss"])
    changed = [not torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True)]
    # Norms that begin at zero, as Swin V2's, hide the rest of their branches from the first step.
    assert sum(changed) > len(changed) / 5
