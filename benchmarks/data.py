# SPDX-License-Identifier: Apache-2.0
"""Images a second and core of our ImageNet pipelines and of timm's loader, on JPEG files as large as ImageNet's.

    OMP_NUM_THREADS=1 python benchmarks/data.py

One process, one thread, no loader workers, files in memory (the page cache). The contenders take turns; the clock is
the process's own time on the processor, of which other jobs on the machine take little. The files are parts of the
photographs that come with scikit-image and scikit-learn, about 500x375 pixels, as JPEG of quality 90.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader

from visionattn._files import replacing
from visionattn.benchmarking import Settings, machine
from visionattn.data import ImageFolderDataset, drop_bad
from visionattn.data.scenes import SceneMaker, SceneSettings

OUTPUT = Path(__file__).parent / "results" / "data_cpu.json"
POLICY = "rand-m9-inc1"  # without mstd0.5, with which timm's loader now and then asks Pillow for 0 bits, and fails
RECIPES: dict[str, dict[str, Any]] = {
    "training: crop, flip": {"train": True},
    "training: crop, flip, jitter": {"train": True, "color_jitter": 0.4},
    "training: DeiT": {"train": True, "auto_augment": POLICY, "erase_prob": 0.25},
    "evaluation": {"train": False},
}
BATCH = 32


def write_photographs(root: Path, count: int, size: tuple[int, int], seed: int = 0) -> float:
    """Class folders of JPEG files under `root / "train"` and `root / "val"`; returns their mean size in bytes."""
    rng = np.random.default_rng(seed)
    maker = SceneMaker("training", SceneSettings())
    photographs = [image for image in maker.photographs.values() if min(image.shape[:2]) >= 150]
    sizes = []
    for index in range(count):
        height, width = (int(side * rng.uniform(0.9, 1.1)) for side in size)
        if rng.random() < 0.3:
            height, width = width, height
        photograph = photographs[index % len(photographs)]
        # As much of the photograph as has the wanted proportions, from a random place.
        zoom = rng.uniform(0.7, 1.0) * min(photograph.shape[0] / height, photograph.shape[1] / width)
        rows, columns = int(height * zoom), int(width * zoom)
        top = int(rng.integers(photograph.shape[0] - rows + 1))
        left = int(rng.integers(photograph.shape[1] - columns + 1))
        image = cv2.resize(
            photograph[top : top + rows, left : left + columns], (width, height), interpolation=cv2.INTER_CUBIC
        )
        file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        sizes.append(len(file))
        for split in ("train", "val"):
            path = root / split / f"class{index % 2}" / f"{index:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
    return statistics.mean(sizes)


def ours(root: Path, recipe: dict[str, Any], backend: str, batch: int) -> DataLoader:
    """Loader of our data set."""
    settings = {name: value for name, value in recipe.items() if name != "train"}
    if recipe["train"]:
        pipeline = {"type": "ImageNetTrain", "color_jitter": None, "backend": backend, **settings}
    else:
        pipeline = {"type": "ImageNetEval", "backend": backend}
    dataset = ImageFolderDataset(root, pipeline, "train" if recipe["train"] else "test")
    return DataLoader(dataset, batch, shuffle=recipe["train"], collate_fn=drop_bad)


def timms(root: Path, recipe: dict[str, Any], prefetcher: bool, batch: int) -> Any:
    """timm's loader; with its prefetcher it normalises and erases batches of bytes."""
    dataset = create_dataset("", root=str(root), split="train" if recipe["train"] else "validation")
    return create_loader(
        dataset,
        input_size=(3, 224, 224),
        batch_size=batch,
        is_training=recipe["train"],
        interpolation="bicubic",
        color_jitter=recipe.get("color_jitter"),
        auto_augment=recipe.get("auto_augment"),
        re_prob=recipe.get("erase_prob", 0.0),
        re_mode="pixel",
        num_workers=0,
        persistent_workers=False,
        use_prefetcher=prefetcher,
        device=torch.device("cpu"),
    )


def processor_seconds(loader: Any) -> float:
    """Processor seconds an image of one pass."""
    begin, images = time.process_time(), 0
    for batch in loader:
        inputs = batch["inputs"] if isinstance(batch, dict) else batch[0]
        images += len(inputs)
    return (time.process_time() - begin) / images


def measure(root: Path, rounds: int, batch: int) -> list[dict[str, Any]]:
    """Records of all recipes and contenders."""
    contenders: dict[str, Callable[[dict[str, Any]], Any]] = {
        "timm's loader": lambda recipe: timms(root, recipe, True, batch),
        "timm's loader, no prefetcher": lambda recipe: timms(root, recipe, False, batch),
        "ours": lambda recipe: ours(root, recipe, "albumentations", batch),
        "ours, backend='timm'": lambda recipe: ours(root, recipe, "timm", batch),
    }
    records = []
    for name, recipe in RECIPES.items():
        loaders = {contender: build(recipe) for contender, build in contenders.items()}
        times: dict[str, list[float]] = {contender: [] for contender in contenders}
        for turn in range(rounds + 1):
            for contender, loader in loaders.items():
                took = processor_seconds(loader)
                if turn:  # the first round is a warm-up
                    times[contender].append(took)
        for contender, took in times.items():
            low, middle, high = statistics.quantiles(took, n=4)
            ratios = [theirs / own for theirs, own in zip(times["timm's loader"], took, strict=True)]
            records.append(
                {
                    "recipe": name,
                    "contender": contender,
                    "images_per_second_and_core": round(1 / middle, 1),
                    "ms": round(1e3 * middle, 3),
                    "q1_ms": round(1e3 * low, 3),
                    "q3_ms": round(1e3 * high, 3),
                    "rounds": rounds,
                    "times_timm": round(statistics.median(ratios), 2),
                }
            )
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--images", type=int, default=96, help="files, each read once a round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--size", default="375x500", help="height and width of the files, about")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    height, width = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        size = write_photographs(Path(folder), options.images, (height, width))
        records = measure(Path(folder), options.rounds, min(BATCH, options.images))
    here = machine(Settings(device="cpu")) | {
        "clock": "processor time",
        "opencv": cv2.__version__,
        "images": f"{options.images} of about {width}x{height}, {size / 1000:.0f} kB",
    }
    with replacing(options.out) as temporary:
        temporary.write_text(json.dumps({"machine": here, "records": records}, indent=1) + "\n")
    table = Table(title=f"Images a second and core ({here['images']})")
    for column in ("recipe", "contender", "images/s", "ms", "quartiles", "times timm"):
        table.add_column(column)
    for row in records:
        quartiles = f"{row['q1_ms']:.2f}-{row['q3_ms']:.2f}"
        rate, ratio = f"{row['images_per_second_and_core']:.0f}", f"{row['times_timm']:.2f}"
        table.add_row(row["recipe"], row["contender"], rate, f"{row['ms']:.2f}", quartiles, ratio)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
