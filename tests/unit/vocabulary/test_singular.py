"""Singular directions against dense decompositions, planted directions and degenerate spectra."""

from dataclasses import replace
from typing import Literal

import pytest
import torch

from microtome.core import Refusal
from microtome.model import wrap
from microtome.vocabulary.circuits import LayerHeads
from microtome.vocabulary.heads import head_weights
from microtome.vocabulary.parameters import GROUPS, block_of
from microtome.vocabulary.singular import (
    Metric,
    head_spectra,
    matrix_spectrum,
    read_spectra,
    singular_findings,
    singular_rows,
    singular_stats,
    subspaces,
)
from microtome.vocabulary.subject import Subject, subject_of
from tests.unit.model.tiny import opened
from tests.unit.vocabulary.related import plain_gpt2

WIDTH, VOCAB = 32, 200


def subject() -> Subject:
    module = plain_gpt2(WIDTH, 2, 5, VOCAB)
    made = subject_of(wrap(module, name="toy"))
    return Subject(**{**vars(made), "texts": [f" w{i}" for i in range(VOCAB)]})


def with_heads(monkeypatch, v: torch.Tensor, o: torch.Tensor) -> None:
    heads = LayerHeads(0, v[None], v[None], v[None], o[None])
    monkeypatch.setattr(
        "microtome.vocabulary.singular.layer_heads", lambda weights, layer, **options: replace(heads, layer=layer)
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "bert"])
@pytest.mark.parametrize("metric", ["stream", "tokens"])
def test_spectra_of_heads_are_those_of_the_dense_matrices(name: str, metric: Metric) -> None:
    model = opened(name)
    of = subject_of(model, tokens="all")
    heads = head_weights(model.weights, 1)
    read, write = (
        torch.eye(16, dtype=torch.float64) if metric == "stream" else each.matrix.double() for each in (of.read, of.write)
    )
    for head, each in enumerate(head_spectra(of, 1, metric)):
        dense = read.T @ heads.v[head].double() @ heads.o[head].double() @ write
        left, values, right = torch.linalg.svd(dense)
        count = len(each.value)
        torch.testing.assert_close(each.value, values[:count].float(), rtol=1e-3, atol=1e-5)
        assert float(values[count:].max()) < 1e-5 * float(values[0])
        assert each.read is not None
        assert each.write is not None
        for met, expected in ((each.read.double() @ read, left.T), (each.write.double() @ write, right)):
            unit = met / met.norm(dim=1, keepdim=True)
            cosines = (unit * expected[:count]).sum(1).abs()
            torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-3, rtol=0)


def test_reading_and_writing_directions_belong_together_with_their_signs() -> None:
    of = subject()
    heads = head_weights(of.weights, 0)
    for each in read_spectra(of, k=3, layers=[0], most=8):
        head = each.spectrum.address.index
        read, write = each.spectrum.read, each.spectrum.write
        assert read is not None
        assert write is not None
        torch.testing.assert_close(
            read @ heads.v[head] @ heads.o[head], each.spectrum.value[:, None] * write, rtol=1e-3, atol=1e-4
        )
        if each.end == "write":
            first = each.top.scores[:, :, 0]
            assert bool((first[:, 0] >= -first[:, 1]).all())


def test_spectra_of_feed_forward_matrices_are_those_of_their_rows() -> None:
    of = subject()
    ends: tuple[tuple[str, Literal["read", "write"]], ...] = (("W_in", "read"), ("W_out", "write"))
    for name, end in ends:
        block = block_of(of.weights, GROUPS[name], 1)
        found = matrix_spectrum(block)
        _, values, right = torch.linalg.svd(block.rows.double(), full_matrices=False)
        count = len(found.value)
        torch.testing.assert_close(found.value, values[:count].float(), rtol=1e-3, atol=1e-4)
        cosines = (getattr(found, end).double() * right[:count]).sum(1).abs()
        torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-3, rtol=0)
        assert str(found.part(end, 3)) == f"svd_{name[2:]}.1/3"
    with pytest.raises(Refusal, match="singular directions of W_Q: they are read of heads and feed-forward matrices"):
        matrix_spectrum(block_of(of.weights, GROUPS["W_Q"], 1))


def test_a_planted_direction_is_the_first_and_is_read_as_its_token(monkeypatch) -> None:
    of = subject()
    source, target = (each.matrix[:, index] for each, index in ((of.read, 11), (of.write, 23)))
    noise = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.01
    v, o = noise[0], noise[1]
    v[0], o[0] = source, -target
    with_heads(monkeypatch, v, o)
    written, read = (each for each in read_spectra(of, k=3, layers=[1], most=2))
    assert written.addresses[0] == "heads.1/0.svd0"
    assert read.addresses[0] == "heads.1/0.svdin0"
    assert int(written.top.tokens[0, 0, 0]) == 23
    assert int(read.top.tokens[0, 1, 0]) == 11, "what is read is turned with what is written"
    rows = singular_rows([written, read]).to_pylist()
    assert (rows[0]["unit"], rows[0]["end"], rows[0]["token"]) == ("heads.1/0.svd0", "+", 23)
    stats = singular_stats([written, read], "run").to_pylist()
    values = {row["unit"]: row["value"] for row in stats if row["stat"] == "singular_value"}
    assert values["heads.1/0.svd0"] == pytest.approx(float(source.norm() * target.norm()), rel=0.02)
    assert all(row["control"] is not None for row in stats if row["stat"] == "read_top")


def test_directions_of_equal_value_are_one_subspace_and_have_no_rows(monkeypatch) -> None:
    of = subject()
    basis = torch.linalg.qr(torch.randn(WIDTH, 4, generator=torch.Generator().manual_seed(1))).Q.T
    sizes = torch.tensor([5.0, 2.0, 1.995, 1.0])
    with_heads(monkeypatch, basis, sizes[:, None] * basis)
    (spectrum,) = head_spectra(of, 0)
    assert spectrum.group.tolist() == [0, 1, 1, 2]
    ((members, tokens),) = subspaces(of, spectrum, "write", k=3)
    assert members == [1, 2]
    share = (basis[1:3] @ of.write.matrix).norm(dim=0) / of.write.matrix.norm(dim=0)
    assert tokens == share.argsort(descending=True)[:3].tolist()
    found = list(read_spectra(of, k=3, layers=[0], most=2))
    assert len(found[0].spectrum.value) == 3, "a subspace is not cut"
    assert {row["unit"] for row in singular_rows(found[:1]).to_pylist()} == {"heads.0/0.svd0"}


def test_heads_that_hold_nan_are_refused(monkeypatch) -> None:
    noise = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    noise[1, 0, 3] = torch.nan
    with_heads(monkeypatch, *noise)
    with pytest.raises(Refusal, match="heads of layer 1: W_V or W_O of the layer holds NaN or infinity"):
        head_spectra(subject(), 1)


def test_what_stands_out_is_said_and_random_heads_are_silent(monkeypatch) -> None:
    of = subject()
    assert singular_findings(list(read_spectra(of, k=3, most=2)), of.texts) == []
    far = of.write.matrix.norm(dim=0).argmax()
    o = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2)) * 0.01
    o[0] = of.write.matrix[:, far]
    with_heads(monkeypatch, torch.linalg.qr(o.T).Q.T, o)
    found = list(read_spectra(of, k=3, layers=[0], most=1))
    written, read = found
    rows = singular_findings([replace(written, top=replace(written.top, strength=torch.tensor([[50.0, 0.0]]))), read], of.texts)
    assert len(rows) == 1
    assert rows[0]["q"] < 0.005, "the tail is that of all mixtures: those of one end alone allow 4 / 1025"
    assert rows[0]["sentence"].startswith(
        f"Singular direction heads.0/0.svd0+ (value {float(found[0].spectrum.value[0]):.2f}) writes ‘w{int(far)}’"
    )
    assert rows[0]["value"] == 50
