"""Two devices that no machine lacks: tensors that say they are on `pretend:0` or `pretend:1`, and do not meet those of another device.

What is computed of them is computed by the CPU, so numbers are real; an operation on tensors of several devices, or on one of them and the CPU, fails
as it does on GPUs. So code that forgets where a tensor is fails in any test run, not first on a machine with two GPUs. Speed, memory, streams and kernels
of a GPU are not pretended, nor is `device.type == "cuda"`. What torch is told of devices lasts as long as a process, and changes what it does elsewhere:
such tests run in a process of their own, by `apart`.
"""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from microtome.model import placement
from tests.tree import IMPORTABLE, ROOT

_INDEXED = ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_")
"""Operations that take indices from the CPU on all devices."""
_MOVING = ("_to_copy", "_copy_from", "copy_", "to")


def apart(function: Callable[..., None], *arguments: object) -> None:
    """Call a function of a module in an interpreter of its own, with arguments as text; what it raises fails the test that asks."""
    call = f"import sys; from {function.__module__} import {function.__name__} as called; called(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", call, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": IMPORTABLE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


class _Module:
    """What torch asks of the module of a kind of device."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def current_device(self) -> int:
        return 0

    def device(self, *_: Any) -> Any:
        return nullcontext()

    def _lazy_init(self) -> None: ...

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...


@functools.cache
def _registered() -> Any:
    """Tell torch of the devices; that lasts as long as the process."""
    _setup_privateuseone_for_python_backend("pretend", _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_computed, "PrivateUse1")
    return library


class Pretended(Tensor):
    """A tensor of a pretended device, around one of the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device | None = None, requires_grad: bool = False) -> "Pretended":
        if isinstance(inner, Pretended):
            return inner
        with torch.inference_mode(mode=False):
            made = Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=device,
                requires_grad=requires_grad,
            )
        made.numbers = inner
        return made

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"{self.numbers!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operation, *args, **(kwargs or {}))


def _inner(value: Any) -> Any:
    return value.numbers if isinstance(value, Pretended) else torch.device("cpu") if isinstance(value, torch.device) else value


def _computed(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """An operation, by the CPU, of tensors that must all be on one device."""
    leaves = tree_leaves((args, kwargs))
    tensors = [each for each in leaves if isinstance(each, Tensor)]
    pretended = [each for each in tensors if isinstance(each, Pretended)]
    name = operation.overloadpacket.__name__
    named = [each for each in leaves if isinstance(each, torch.device)]
    if name not in _MOVING:
        indexed = name in _INDEXED
        met = {each.device for each in tensors if not (each.device.type == "cpu" and (indexed or not each.dim()))}
        if indexed and tensors and not isinstance(tensors[0], Pretended):
            met.add(tensors[0].device)
        if len(met) > 1:
            raise RuntimeError(f"{operation}: tensors are on {' and '.join(sorted(map(str, met)))}")
    of = tensors[:1] if name in _MOVING else pretended
    device = _numbered(named[0]) if named else of[0].device if of else torch.device("cpu")
    found = operation(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    known = {id(each.numbers): each for each in pretended}

    def outer(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        same = known.get(id(value))
        if same is not None and same.device == device:
            return same  # it was written to in place
        fresh = value.clone() if same is not None else value
        return fresh if device.type == "cpu" else Pretended(fresh, device)

    return tree_map(outer, found)


def _numbered(device: torch.device) -> torch.device:
    return torch.device("pretend", device.index or 0) if device.type == "pretend" else device


class _Factories(TorchFunctionMode):
    """Makes new tensors of pretended devices: those calls never come to an operation that could be told of them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        asked = kwargs.get("device")
        if asked is not None and torch.device(asked).type == "pretend" and not any(isinstance(each, Tensor) for each in args):
            return function(*args, **{**kwargs, "device": "cpu"}).to(asked)
        if function is Tensor.new_tensor and isinstance(args[0], Pretended):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(args[0].device)
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(each) if isinstance(each, list) else each for each in index), *args[2:])
        return function(*args, **kwargs)


@contextmanager
def pretending(auto: str | None = None) -> Iterator[None]:
    """Let models be opened on `pretend:0`, and on `pretend:0,pretend:1`, within a `with` block; and where no device is asked for, on `auto`."""
    _registered()
    known = placement.choose_device
    with pytest.MonkeyPatch.context() as patch, _Factories():
        patch.setattr(placement, "choose_device", lambda device: _pretended(_asked(device, auto)) or known(device))
        yield


def _asked(device: str | torch.device, auto: str | None) -> str | torch.device:
    return auto if auto is not None and device == "auto" else device


def _pretended(device: str | torch.device) -> torch.device | None:
    return torch.device(device) if str(device).startswith("pretend") else None
