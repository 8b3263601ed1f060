"""Adapter folders as the package peft writes them: adapter_config.json and adapter_model.safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

DEFAULTS: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "base",
    "r": 2,
    "lora_alpha": 6,
    "target_modules": [],
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "init_lora_weights": True,
}


def save_adapter(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """A folder with these tensors (names without the prefix that all have in such files) and the usual settings, but for `config`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**DEFAULTS, **config}))
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def linear(path: str, inputs: int, outputs: int, rank: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Random factors of a linear layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{path}.lora_A.weight": torch.randn(rank, inputs, generator=generator),
        f"{path}.lora_B.weight": torch.randn(outputs, rank, generator=generator),
    }
