"""Where a model is: on one device, or, larger than one, its blocks one after another on several.

Here it is decided; transformers loads each part to its place and moves what passes from one to the next. Hidden states stay where they are
made, and what is computed of them is computed there. Dtypes belong in `precision`.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

import torch
from torch import nn

from microtome.core import Refusal
from microtome.model.precision import choose_device

__all__ = ["device_of", "devices_named", "room_on", "split"]

_SPARE: Final = 1.25
"""A device is filled by parameters to four fifths at most: the rest is for states, and for what is kept of them."""


def devices_named(device: str | torch.device) -> tuple[torch.device, ...]:
    """What was asked for: one device as `choose_device` has it, or several, with commas between (`cuda:0,cuda:1`).

    Errors: `Refusal` for a device that is not there, is named twice, or is no GPU and named beside others.
    """
    names = [each.strip() for each in str(device).split(",")]
    chosen = tuple(choose_device(each) for each in names)
    if len(chosen) > 1:
        if len(set(chosen)) < len(chosen) or any(each.index is None for each in chosen):
            raise Refusal(f"device {device}", why="several devices are told apart by number", instead="name cuda:0,cuda:1")
        if len({each.type for each in chosen}) > 1:
            why = "a model is spread over devices of one kind"
            raise Refusal(f"device {device}", why=why, instead="name GPUs only, as cuda:0,cuda:1, or cpu")
    return chosen


def room_on(asked: str | torch.device, size: int) -> tuple[torch.device, ...]:
    """The devices for a model of `size` bytes: those that were asked for; for `auto`, or `cuda`, all GPUs where it does not fit on the first.

    Errors: `Refusal` as of `devices_named`.
    """
    devices = devices_named(asked)
    (first, *others) = devices
    if others or first.type != "cuda" or first.index is not None or torch.cuda.device_count() < 2:
        return devices
    free, _ = torch.cuda.mem_get_info(0)
    return devices if _SPARE * size <= free else tuple(torch.device("cuda", each) for each in range(torch.cuda.device_count()))


def split(module: nn.Module, blocks: Sequence[str], devices: Sequence[torch.device]) -> dict[str, str]:
    """Which part goes to which device, as transformers' `device_map`: `blocks` in their order, each device with about as many bytes.

    What is used beside the blocks is on the first device; what has parameters and comes after the last block on the last one, but for a head whose
    matrix is that of the embeddings.
    Errors: `Refusal` where there are fewer blocks than devices, as where layers share one.
    """
    order = list(dict.fromkeys(blocks))
    if len(order) < len(devices):
        why = f"it has {len(order)} blocks that are not shared, and a block is not cut"
        raise Refusal(f"a model on {len(devices)} devices", why=why, instead=f"name {len(order)} at most")
    last, shared = devices[-1], set[int]()
    found, filled = {}, dict.fromkeys(devices, 0)
    names = [name for name, _ in module.named_modules()]
    for name in _beside(module, "", order):
        part = module.get_submodule(name) if name in names else None
        own = {id(each): each.numel() * each.element_size() for each in part.parameters()} if part else {}
        behind = bool(own) and names.index(name) > names.index(order[-1]) and shared.isdisjoint(own)
        found[name] = last if behind else devices[0]
        filled[found[name]] += sum(size for each, size in own.items() if each not in shared)
        shared |= own.keys()
    sizes = [_bytes(module.get_submodule(each)) for each in order]
    share = (sum(sizes) + sum(filled.values())) / len(devices)
    for number, (name, reached) in enumerate(zip(order, accumulate(sizes, initial=filled[devices[0]]), strict=False)):
        middle = int((reached + sizes[number] / 2) // share)
        fewest = len(devices) - (len(order) - number)  # every device has a block
        found[name] = devices[min(max(middle, fewest), number, len(devices) - 1)]
    return {name: str(device) for name, device in found.items()}


def device_of(module: nn.Module) -> torch.device | None:
    """Where a module's first parameter is; None for one that has none, and works wherever it is given something."""
    return next((each.device for each in module.parameters()), None)


def _beside(module: nn.Module, prefix: str, blocks: Sequence[str]) -> Iterator[str]:
    """The fewest parts that have all tensors outside of the blocks."""
    yield from (f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False))
    yield from (f"{prefix}{name}" for name, _ in module.named_buffers(recurse=False))
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if path in blocks:
            continue
        if any(each.startswith(f"{path}.") for each in blocks):
            yield from _beside(child, f"{path}.", blocks)
        else:
            yield path


def _bytes(module: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in module.parameters())
