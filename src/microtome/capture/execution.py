"""The execution class: everything besides model, corpus and plan on which the bytes of a result depend.

Within one class an atlas is the same to the byte however often it is interrupted; work of two classes is never mixed.
"""

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from typing import Final

import torch

from microtome.core import Fold, RowFold
from microtome.model import Model
from microtome.numerics import kernels

__all__ = ["device_type", "execution_class", "tokens_per_batch", "windows_per_unit"]

_TOKENS_PER_BATCH: Final = {"cpu": 4096, "mps": 8192, "cuda": 32768}
_FLOPS_PER_SECOND: Final = {"cpu": 5e11, "mps": 2e12, "cuda": 1e14}
"""Assumed, not measured: the cut into units must be the same in every run."""
_BYTES_PER_SECOND: Final = 3e8
_FORWARD_TO_WRITE: Final = 20


def tokens_per_batch(model: Model) -> int:
    """How many tokens, padding included, go through the model at once."""
    return _TOKENS_PER_BATCH.get(model.device.type, _TOKENS_PER_BATCH["cpu"])


def execution_class(model: Model) -> dict[str, str]:
    """The execution class of this process for `model`, by name of what decides it."""
    device = model.device.type
    return {
        "device": _named(model) if device == "cuda" else f"{device} {platform.machine()}",
        "instructions": torch.backends.cpu.get_cpu_capability() if device == "cpu" else device,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "tokens_per_batch": str(tokens_per_batch(model)),
        "kernels": kernels.name(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "microtome": importlib.metadata.version("microtome"),
    }


def _named(model: Model) -> str:
    """The kinds of GPU that hold a model: one, wherever its layers are, or those in their order."""
    return " and ".join(dict.fromkeys(map(torch.cuda.get_device_name, model.devices)))


def device_type(execution: Mapping[str, str]) -> str:
    """The kind of device that an execution class is of: cpu, mps or cuda."""
    named = execution["device"].split()[0]
    return named if named in _TOKENS_PER_BATCH else "cuda"


def flops_per_token(model: Model) -> float:
    """Multiplications and additions of one token's forward pass through the blocks: 2 per weight of a matrix."""
    embeddings = {id(m.weight) for m in model.module.modules() if isinstance(m, torch.nn.Embedding)}
    return 2.0 * sum(p.numel() for p in model.module.parameters() if p.ndim >= 2 and id(p) not in embeddings)


def windows_per_unit(model: Model, folds: Iterable[Fold | RowFold], window: int, device: str) -> int:
    """The fewest windows whose forward pass, on a kind of device, takes 20 times as long as writing the states of `folds`."""
    state = sum(tensor.numel() * tensor.element_size() for fold in folds for tensor in fold.init().values())
    write = state / _BYTES_PER_SECOND
    forward = window * flops_per_token(model) / _FLOPS_PER_SECOND.get(device, _FLOPS_PER_SECOND["cpu"])
    per_batch = max(1, _TOKENS_PER_BATCH.get(device, _TOKENS_PER_BATCH["cpu"]) // window)
    batches = max(1, round(_FORWARD_TO_WRITE * write / (forward * per_batch)))
    return batches * per_batch
