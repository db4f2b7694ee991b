# SPDX-License-Identifier: Apache-2.0
"""Tiny data laid out like COCO and like ADE20K: bright rectangles and discs on noise."""

import json

import cv2
import numpy as np

CLASSES = ("rectangle", "disc")
SEGMENTS = ("background", *CLASSES)
SIZE = (48, 64)


def scene(rng, size=SIZE):
    """An image, its class map (values of SEGMENTS plus 1), and its objects: class, box and mask."""
    height, width = size
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    labels = np.ones((height, width), dtype=np.uint8)
    objects = []
    for place in range(2):
        label = int(rng.integers(2))
        h, w = (int(v) for v in rng.integers(16, 26, 2))
        x = int(rng.integers(0, width // 2 - w)) + place * width // 2
        y = int(rng.integers(0, height - h))
        mask = np.zeros((height, width), dtype=np.uint8)
        if label == 0:
            mask[y : y + h, x : x + w] = 1
        else:
            cv2.ellipse(mask, (x + w // 2, y + h // 2), (w // 2 - 1, h // 2 - 1), 0, 0, 360, 1, -1)
        image[mask > 0] = rng.integers(150, 255, 3, dtype=np.uint8)
        labels[mask > 0] = label + 2
        ys, xs = mask.nonzero()
        box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
        objects.append((label, box, mask))
    return image, labels, objects


def annotation(number, image_id, label, box, mask):
    contour = max(cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": box,
        "area": float(mask.sum()),
        "iscrowd": 0,
        "segmentation": [contour.reshape(-1).astype(float).tolist()],
    }


def write_coco(root, rng, train=8, val=4, classes=CLASSES):
    """Folders and annotations like COCO 2017's; the contents of the annotation files by split."""
    contents = {}
    for split, count in (("train", train), ("val", val)):
        (root / f"{split}2017").mkdir(parents=True)
        images, annotations = [], []
        for i in range(count):
            image, _, objects = scene(rng)
            name = f"{i:04}.png"
            cv2.imwrite(str(root / f"{split}2017" / name), image)
            images.append({"id": i + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            for item in objects:
                annotations.append(annotation(len(annotations) + 1, i + 1, *item))
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
        contents[split] = {"images": images, "annotations": annotations, "categories": categories}
        write_annotations(root, split, contents[split])
    return contents


def write_annotations(root, split, content):
    file = root / "annotations" / f"instances_{split}2017.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content))


def write_ade(root, rng, train=8, val=4, size=SIZE):
    """Folders like ADE20K's: 0 of a class map is ignored, then come SEGMENTS."""
    for split, count in (("training", train), ("validation", val)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            image, labels, _ = scene(rng, size)
            cv2.imwrite(str(root / "images" / split / f"{i:04}.jpg"), image)
            cv2.imwrite(str(root / "annotations" / split / f"{i:04}.png"), labels)
