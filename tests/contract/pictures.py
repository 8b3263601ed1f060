"""Toy pictures and image processors for tiny vision models."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import BitImageProcessorPil, ViTImageProcessorPil


def write_pictures(folder: Path, count: int = 12) -> Path:
    """Pictures of two kinds in a folder each: smooth ramps and noise, of different sizes."""
    random = np.random.default_rng(0)
    for number in range(count):
        height, width = 20 + number, 30
        noise = random.integers(0, 255, (height, width, 3), np.uint8)
        ramp = np.add.outer(np.arange(height) * number, np.arange(width) * 3)[..., None].repeat(3, 2).astype(np.uint8)
        path = folder / ("noise" if number % 2 else "ramp") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise if number % 2 else ramp).save(path)
    return folder


def processor_for(name: str) -> Any:
    """What the family's checkpoints bring, for pictures of 8 x 8: ViT squeezes them, DINOv2 crops."""
    size = {"height": 8, "width": 8}
    if name.startswith("dinov2"):
        return BitImageProcessorPil(size={"shortest_edge": 10}, crop_size=size)
    return ViTImageProcessorPil(size=size)
