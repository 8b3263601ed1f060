"""Pairings of directions and token vectors, each against the dense formula."""

import pytest
import torch

from microtome.core import Refusal
from microtome.readout import input_reader, output_reader
from microtome.readout.bases import (
    BASES,
    cosine,
    paired,
    population_of,
    pseudo_inverse,
    ridge,
    standardised,
    whitened,
)
from microtome.readout.reader import Reader
from tests.toys import toy_decoder


@pytest.fixture
def raw() -> Reader:
    return output_reader(toy_decoder().weights, folding="raw")


def scores(reader: Reader, rows: torch.Tensor) -> torch.Tensor:
    return reader.entering(rows).double() @ reader.matrix.double()


@pytest.fixture
def rows(raw: Reader) -> torch.Tensor:
    return torch.randn(5, len(raw.matrix), generator=torch.Generator().manual_seed(3))


def test_raw_token_vectors_are_those_that_are_stored_and_folded_ones_are_not(raw: Reader) -> None:
    weights = toy_decoder().weights
    torch.testing.assert_close(raw.matrix, weights.get("W_U").float())
    torch.testing.assert_close(raw.mean, weights.get("W_U").double().mean(1))
    assert output_reader(weights).mean is None


def test_the_input_reader_has_the_embedding(raw: Reader) -> None:
    weights = toy_decoder().weights
    torch.testing.assert_close(input_reader(weights, folding="raw").matrix, weights.get("W_E").float().T)
    stored = weights.get("W_E").float()
    torch.testing.assert_close(input_reader(weights).matrix, (stored - stored.mean(0)).T)


def test_pseudo_inverse_is_numpys_and_takes_a_direction_back(raw: Reader, rows: torch.Tensor) -> None:
    found = scores(pseudo_inverse(raw), rows)
    torch.testing.assert_close(found, rows.double() @ torch.linalg.pinv(raw.matrix.double()).T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found @ raw.matrix.double().T, rows.double(), rtol=1e-4, atol=1e-4)


def test_ridge_lies_between(raw: Reader, rows: torch.Tensor) -> None:
    e = raw.matrix.double()
    gram = e @ e.T
    inverse = torch.linalg.inv(gram + 0.5 * gram.trace() / len(gram) * torch.eye(len(gram)))
    torch.testing.assert_close(scores(ridge(raw, 0.5), rows), rows.double() @ inverse @ e, rtol=1e-4, atol=1e-6)


def test_cosine_is_free_of_token_norms(raw: Reader, rows: torch.Tensor) -> None:
    e = raw.matrix.double()
    torch.testing.assert_close(scores(cosine(raw), rows), rows.double() @ (e / e.norm(dim=0)), rtol=1e-5, atol=1e-6)


def test_whitening_both_sides_is_the_pseudo_inverse_on_one(raw: Reader, rows: torch.Tensor) -> None:
    white = whitened(raw)
    other = torch.randn(5, rows.shape[1], generator=torch.Generator().manual_seed(4))
    both = (scores(white, rows) * scores(white, other)).sum(1)
    torch.testing.assert_close(both, (rows * other).sum(1).double(), rtol=1e-4, atol=1e-4)


def test_right_inverses_keep_inner_products_when_nothing_is_cut_off(raw: Reader, rows: torch.Tensor) -> None:
    other = torch.randn(5, rows.shape[1], generator=torch.Generator().manual_seed(5))
    for basis in ("pseudo-inverse", "whitened"):
        pairing = paired(raw, basis)
        both = (scores(pairing.read, rows) * scores(pairing.write, other)).sum(1)
        torch.testing.assert_close(both, (rows * other).sum(1).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("basis", list(BASES))
def test_mean_and_spread_are_closed_forms_in_every_basis(raw: Reader, rows: torch.Tensor, basis) -> None:
    for reader in (paired(raw, basis).read, paired(raw, basis).write):
        found = scores(reader, rows)
        torch.testing.assert_close(reader.average(rows), found.mean(1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(reader.spread(rows), found.std(1, correction=0), rtol=1e-4, atol=1e-6)


def test_standardised_scores_have_mean_0_and_deviation_1_over_the_population_at_every_token(raw: Reader) -> None:
    turn = torch.randn(len(raw.matrix), len(raw.matrix), generator=torch.Generator().manual_seed(6))
    directions = torch.randn(400, len(raw.matrix), generator=torch.Generator().manual_seed(7)) @ turn + 2
    population = population_of(directions)
    for reader in (raw, pseudo_inverse(raw)):
        found = scores(standardised(reader, population), directions - population.mean.float())
        torch.testing.assert_close(found.mean(0), torch.zeros_like(found[0]), rtol=0, atol=1e-4)
        torch.testing.assert_close(found.std(0, correction=0), torch.ones_like(found[0]), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_inverted_and_unknown_names_are_refused(raw: Reader) -> None:
    weights = toy_decoder().weights
    few = output_reader(weights, exclude=range(5, weights.get("W_U").shape[1]), folding="raw")
    with pytest.raises(Refusal, match="5 tokens do not span"):
        pseudo_inverse(few)
    with pytest.raises(Refusal, match="basis inverse: there is none of that name"):
        paired(raw, "inverse")
