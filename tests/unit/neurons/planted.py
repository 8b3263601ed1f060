"""Planted context lists."""

import torch

from microtome.core import Half
from microtome.examples import Contexts

Lists = list[list[list[int]]]


def contexts_at(tokens: Lists, signed: bool = True, following: Lists | None = None) -> Contexts:
    """Lists whose entries are at the tokens given, by group and unit; -1 for a place that nothing fills.

    Nothing follows them unless `following` says so, where -1 is nothing as well.
    """
    token = torch.tensor(tokens, dtype=torch.int32)
    groups, _, k = token.shape
    places = torch.arange(k).expand(token.shape)
    filled = token >= 0
    half = torch.tensor([int(Half.DISCOVER), int(Half.CONFIRM)] * (groups // 2), dtype=torch.uint8)
    ends = ("top", "top", "bottom", "bottom") if signed else ("top", "top")
    sign = torch.tensor([-1.0 if end == "bottom" else 1.0 for end in ends])
    return Contexts(
        ends=ends,
        value=(k - places) * sign[:, None, None],
        window=torch.where(filled, places, -1),
        position=torch.ones_like(token),
        token=token.clamp_min(0),
        following=torch.full_like(token, -1) if following is None else torch.tensor(following, dtype=torch.int32),
        half=half[:, None, None].expand(token.shape).contiguous(),
        scale=torch.ones(token.shape),
        activations=torch.zeros((*token.shape, 33), dtype=torch.int8),
    )
