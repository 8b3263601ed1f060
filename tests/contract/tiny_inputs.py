"""What the tiny models of every family read: a tokenizer of fewer than 50 words, pictures, image processors."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BitImageProcessorPil, PreTrainedTokenizerFast, ViTImageProcessorPil

from tests import toys

_SPECIAL = {"unk_token": "<unk>", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


@cache
def word_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Words of the toy texts, ids below 50, padding at the id that the tiny configurations say."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.train_from_iterator(toys.toy_texts(), trainers.WordLevelTrainer(special_tokens=[*_SPECIAL.values()]))
    marks = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]") if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_SPECIAL)


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
