"""Hashes that decide samples: the same on every machine, under every split of the stream.

A token is in a sample because its hash is low, never because of when it was seen. Not for security: splitmix64 is a mixer, not
a cipher. Digests of files belong in `store`.
"""

from hashlib import blake2b

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["hash_parts", "hash_text", "splitmix64", "uniform"]


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def splitmix64(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The next output of the splitmix64 generator whose state is x: a bijection of 64-bit integers, here as signed ones.

    Arithmetic wraps around. Cost: 9 passes over int64 in memory.

    >>> int(splitmix64(torch.tensor(0))) == 0xE220A8397B1DCDAF - (1 << 64)
    True
    """
    z = x + _GOLDEN
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def hash_parts(*parts: int | Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """One hash of several integers, in order: h = splitmix64(h ^ part), from h = 0; tensors broadcast.

    >>> hash_parts(7, torch.arange(3)[:, None], torch.arange(2)).shape
    torch.Size([3, 2])
    """
    device = next((part.device for part in parts if isinstance(part, Tensor)), torch.device("cpu"))
    h = torch.zeros((), dtype=torch.int64, device=device)
    for part in parts:
        h = splitmix64(h ^ (part.to(torch.int64) if isinstance(part, Tensor) else _signed(part)))
    return h


def hash_text(text: str) -> int:
    """64 bits of BLAKE2b of the text's UTF-8 bytes, as a signed integer: the hash of a document's name, say."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True)


def uniform(hashes: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The upper 53 bits of each hash as a float64 in [0, 1)."""
    return _shifted(hashes, 11).to(torch.float64) * 2.0**-53


def _shifted(z: Int[Tensor, "*shape"], bits: int) -> Int[Tensor, "*shape"]:
    """Logical right shift: torch's keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
