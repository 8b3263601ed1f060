"""Fingerprints change with what matters and with nothing else."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
import torch

from microtome.core import CONTENT, Role, Site
from microtome.store import fingerprint


@dataclass(frozen=True)
class _Fold:
    site: Site
    rate: float
    edges: torch.Tensor
    cache: object = field(default=None, compare=False)
    kind: ClassVar[str] = "fold"
    version: ClassVar[int] = 1


@dataclass(frozen=True)
class _Other:
    site: Site
    rate: float
    edges: torch.Tensor


def test_equal_values_agree_and_every_field_matters() -> None:
    fold = _Fold(Site("resid_post", 3), 0.5, torch.arange(6.0).reshape(2, 3))
    assert fingerprint(fold) == fingerprint(replace(fold, edges=fold.edges.clone()))
    assert fingerprint(fold) == fingerprint(replace(fold, cache=object()))
    different = [
        replace(fold, site=Site("resid_post", 4)),
        replace(fold, rate=0.5000000001),
        replace(fold, edges=fold.edges.double()),
        replace(fold, edges=fold.edges.reshape(3, 2)),
        replace(fold, edges=-fold.edges),
        _Other(fold.site, fold.rate, fold.edges),
    ]
    assert len({fingerprint(value) for value in [fold, *different]}) == len(different) + 1


def test_order_of_sets_and_mappings_does_not_matter_but_types_do() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(frozenset({Role.FIRST, Role.CONTENT})) == fingerprint(frozenset({Role.CONTENT, Role.FIRST}))
    assert len({fingerprint(v) for v in (1, 1.0, True, "1", b"1", [1], {1}, {1: 1}, None, CONTENT)}) == 10


def test_the_same_in_another_process_with_another_hash_seed() -> None:
    value = "{'s': frozenset({'a', 'b', 'c'}), 'x': (1, 2.5)}"
    code = f"from microtome.store import fingerprint; print(fingerprint({value}))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {fingerprint({"s": frozenset({"a", "b", "c"}), "x": (1, 2.5)})}


def test_what_has_no_canonical_form_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="no canonical form for object"):
        fingerprint(object())
