"""Top tokens at both ends, their chance level, and their rows."""

import pytest
import torch

from microtome.readout import Reader, chance, random_directions, read_random, tokens_table, top_tokens
from microtome.store.schemas import TABLES


def reader_of(matrix: torch.Tensor, tokens: torch.Tensor | None = None) -> Reader:
    centred = matrix - matrix.mean(1, keepdim=True)
    tokens = torch.arange(matrix.shape[1]) if tokens is None else tokens
    return Reader(centred, tokens, "W_U", (centred @ centred.T / centred.shape[1]).double())


@pytest.fixture
def reader() -> Reader:
    return reader_of(torch.randn(64, 300, generator=torch.Generator().manual_seed(0)))


def test_both_ends_equal_a_full_sort(reader) -> None:
    directions = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    top = top_tokens(directions, reader, random_directions(reader, k=6, draws=50, seed=0))
    scores = directions @ reader.matrix
    for end, descending in enumerate((True, False)):
        values, order = scores.sort(dim=1, descending=descending, stable=True)
        assert torch.equal(top.tokens[:, end], order[:, :6])
        torch.testing.assert_close(top.scores[:, end], values[:, :6])


def test_ties_go_to_the_lower_token() -> None:
    matrix = torch.zeros(2, 6)
    matrix[0] = torch.tensor([1.0, 3.0, 3.0, -2.0, 3.0, -2.0])
    tied = reader_of(matrix, tokens=torch.tensor([10, 11, 12, 13, 14, 15]))
    top = top_tokens(torch.tensor([[1.0, 0.0]]), tied, random_directions(tied, k=4, draws=10, seed=0))
    assert top.tokens.tolist() == [[[11, 12, 14, 10], [13, 15, 10, 11]]]


def test_planted_directions_stand_out_and_random_ones_do_not(reader) -> None:
    random = random_directions(reader, k=5, draws=1000, seed=0)
    towards = torch.stack([reader.matrix[:, 42], -3 * reader.matrix[:, 7]])
    top = top_tokens(towards, reader, random)
    assert int(top.tokens[0, 0, 0]) == 42
    assert int(top.tokens[1, 1, 0]) == 7
    p = chance(top.strength, random)
    assert float(p[0, 0]) < 0.01
    assert float(p[1, 1]) < 0.01
    others = top_tokens(torch.randn(400, 64, generator=torch.Generator().manual_seed(9)), reader, random)
    uniform = chance(others.strength, random).flatten()
    assert 0.4 < float(uniform.mean()) < 0.6
    assert float((uniform < 0.1).double().mean()) == pytest.approx(0.1, abs=0.04)


def test_strength_ignores_length_and_control_follows_it(reader) -> None:
    random = random_directions(reader, k=3, draws=2000, seed=0)
    direction = torch.randn(1, 64, generator=torch.Generator().manual_seed(2))
    small, large = top_tokens(direction, reader, random), top_tokens(10 * direction, reader, random)
    torch.testing.assert_close(small.strength, large.strength, rtol=1e-6, atol=0)
    torch.testing.assert_close(10 * small.control, large.control)
    assert torch.equal(small.control[:, 1], -small.control[:, 0])
    own = torch.randn(2000, 64, generator=torch.Generator().manual_seed(3))
    own = own / own.norm(dim=1, keepdim=True) * direction.norm()
    expected = (own @ reader.matrix).topk(3, dim=1).values.mean(0)
    torch.testing.assert_close(small.control[0, 0], expected, rtol=0.03, atol=0)
    spread = (direction @ reader.matrix).std(correction=0)
    assert float(small.strength[0, 1]) == pytest.approx(float(-(direction @ reader.matrix).min() / spread), rel=1e-5)


def test_p_values_count_the_draws_at_least_as_strong(reader) -> None:
    random = random_directions(reader, k=1, draws=100, seed=0)
    assert random.strength.shape == (100, 2)
    ends = random.strength.flatten().sort().values
    values = torch.stack([ends[0], ends[-1], ends[-1] + 1])
    assert chance(values, random).tolist() == pytest.approx([1.0, 2 / 201, 1 / 201])


def test_scores_are_float64_sums_rounded_once(reader) -> None:
    directions = torch.randn(40, 64, generator=torch.Generator().manual_seed(5)) * torch.logspace(-6, 6, 40)[:, None]
    top = top_tokens(directions, reader, random_directions(reader, k=6, draws=50, seed=0))
    exact = directions.double() @ reader.matrix.double()
    assert torch.equal(top.scores[:, 0], exact.sort(dim=1, descending=True).values[:, :6].float())
    assert torch.equal(top.scores[:, 1], exact.sort(dim=1).values[:, :6].float())


def test_a_token_that_float32_puts_too_low_is_found() -> None:
    """Small differences of large numbers: added up in float32, 2^24 + j / 8 - 2^24 is 0 for all of these tokens."""
    large = torch.full((8,), 2.0**24)
    near = Reader(torch.stack([large, torch.arange(8) / 8, -large]), torch.arange(8), "W_U", torch.eye(3, dtype=torch.float64))
    top = top_tokens(torch.ones(1, 3), near, random_directions(near, k=3, draws=10, seed=0))
    assert top.tokens.tolist() == [[[7, 6, 5], [0, 1, 2]]]
    assert top.scores.tolist() == [[[0.875, 0.75, 0.625], [0.0, 0.125, 0.25]]]


def test_given_random_directions_are_read_at_length_1(reader) -> None:
    directions = torch.randn(30, 64, generator=torch.Generator().manual_seed(6))
    long, short = read_random(1000 * directions, reader, k=3), read_random(directions.double() / 7, reader, k=3)
    torch.testing.assert_close(long.scores, short.scores)
    unit = directions / directions.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        long.strength[:, 0], (unit @ reader.matrix).amax(1).double() / reader.spread(unit), rtol=1e-5, atol=0
    )
    low, high = long.interval
    assert int(((long.strength >= low) & (long.strength <= high)).sum()) == 56


def test_fewer_tokens_than_asked_for() -> None:
    tiny = reader_of(torch.randn(3, 4, generator=torch.Generator().manual_seed(4)))
    assert top_tokens(torch.randn(2, 3), tiny, random_directions(tiny, k=10, draws=10, seed=0)).tokens.shape == (2, 2, 4)


def test_the_same_seed_gives_the_same_chance(reader) -> None:
    first, second, third = (random_directions(reader, draws=20, seed=seed).strength for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_rows_of_the_table(reader) -> None:
    top = top_tokens(torch.randn(2, 64), reader, random_directions(reader, k=2, draws=10, seed=0))
    table = tokens_table(["neurons.0/0", "neurons.0/1"], top).cast(TABLES["tokens"].schema)
    rows = table.to_pylist()
    assert [(row["unit"], row["end"], row["rank"]) for row in rows[1:5]] == [
        ("neurons.0/0", "+", 1),
        ("neurons.0/0", "-", 0),
        ("neurons.0/0", "-", 1),
        ("neurons.0/1", "+", 0),
    ]
    assert rows[2]["token"] == int(top.tokens[0, 1, 0])
    assert rows[2]["score"] == pytest.approx(float(top.scores[0, 1, 0]))
    assert rows[2]["control"] < 0
