"""Every number of a reconstruction is what its formula says over all rows together, however they are cut, and has an interval that covers."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from microtome.core import Half, Refusal, Site
from microtome.factors.coding import Greedy, Lasso
from microtome.factors.dictionary import Above, Coder, Dictionary, Encoder
from microtome.factors.evaluation import Candidate, Evaluation, Stat, evaluated, jackknifed, stat_rows, usage, usage_stat
from microtome.factors.harvest import Rows
from microtome.factors.scaling import Scaling, identity
from tests.unit.factors.planted_dictionaries import planted_states

SITES = (Site("resid_pre", 0), Site("resid_pre", 1))


def rows_of_states(states: Tensor, window: int = 10) -> Rows:
    """States (row, place, d_model) as windows of ten tokens."""
    place = torch.arange(len(states))
    return Rows(
        states, place, place // window, place % window, torch.full((len(states),), int(Half.CONFIRM), dtype=torch.uint8)
    )


def cut(rows: Rows, size: int) -> Iterator[Rows]:
    for part in torch.arange(len(rows.id)).split(size):
        yield rows.take(part)


def dictionary_of(
    directions: Tensor, coder: Coder, scaling: Scaling | None = None, sites: tuple[Site, ...] = SITES[:1]
) -> Dictionary:
    width = directions.shape[1]
    return Dictionary(
        "planted",
        "shared",
        sites,
        sites,
        coder,
        scaling or identity(len(sites), width),
        directions[None],
        torch.zeros(1, width),
    )


def encoder(directions: Tensor) -> Encoder:
    return Encoder(directions.T[None].clone(), torch.zeros(len(directions)), Above(torch.zeros(len(directions))))


def only(found: dict[str, dict[Site, Evaluation]], site: Site = SITES[0]) -> dict[str, float]:
    (of,) = found.values()
    return {name: stat.value for name, stat in of[site].stats.items()}


def test_every_number_is_its_formula() -> None:
    """An independent computation by numpy in one piece, of states far from the origin."""
    planted = planted_states(600, units=24, d=16, k=3, seed=2)
    x = 5 * planted.x + 40
    dictionary = dictionary_of(planted.directions, Greedy(2), Scaling(torch.full((1, 16), 39.5), torch.tensor([5.0])))
    found = evaluated([Candidate("own", dictionary)], cut(rows_of_states(x[:, None]), 70), SITES[:1])
    codes = dictionary.encode({SITES[0]: x})
    a, b, c = x.double().numpy(), dictionary.decode(codes, SITES[0]).double().numpy(), codes.numpy()
    density = (c > 0).mean(0)
    expected = {
        "mse": ((a - b) ** 2).mean(),
        "normalised_mse": ((a - b) ** 2).sum() / (a**2).sum(),
        "explained_variance": 1 - (a - b).var(0).sum() / a.var(0).sum() - ((a - b).mean(0) ** 2).sum() / a.var(0).sum(),
        "cosine": ((a * b).sum(1) / ((a**2).sum(1) * (b**2).sum(1)) ** 0.5).mean(),
        "length_ratio": ((b**2).sum(1) ** 0.5 / (a**2).sum(1) ** 0.5).mean(),
        "relative_bias": (b**2).sum() / (a * b).sum(),
        "l0": (c > 0).sum(1).mean(),
        "l1": c.sum(1).mean(),
        "dead": (density == 0).mean(),
        "above_1pc": (density > 0.01).mean(),
        "above_10pc": (density > 0.1).mean(),
    }
    together = only(found)
    for name, value in expected.items():
        assert together[name] == pytest.approx(float(value), rel=1e-6), name


def test_planted_states_are_explained_by_their_own_directions() -> None:
    planted = planted_states(500, units=32, d=32, k=3, noise=0.0)
    found = only(
        evaluated(
            [Candidate("own", dictionary_of(planted.directions, Greedy(5)))], [rows_of_states(planted.x[:, None])], SITES[:1]
        )
    )
    assert found["explained_variance"] > 0.97
    assert 2.5 <= found["l0"] <= 5
    assert found["relative_bias"] == pytest.approx(1, abs=1e-4)
    states_themselves = dictionary_of(
        torch.cat([torch.eye(32), -torch.eye(32)]), encoder(torch.cat([torch.eye(32), -torch.eye(32)]))
    )
    exact = only(evaluated([Candidate("all", states_themselves)], [rows_of_states(planted.x[:, None])], SITES[:1]))
    assert exact["explained_variance"] == pytest.approx(1)
    assert exact["l0"] == pytest.approx(32, abs=0.1)


def test_cutting_does_not_matter() -> None:
    """The faulty formula, a mean over batches, would."""
    planted = planted_states(640, units=20, d=12, k=2)
    rows, dictionary = rows_of_states(planted.x[:, None]), dictionary_of(planted.directions, Greedy(2))
    whole, pieces = (
        evaluated([Candidate("own", dictionary)], cut(rows, size), SITES[:1])["own"][SITES[0]] for size in (640, 20)
    )
    assert torch.equal(whole.fired, pieces.fired)
    for name, stat in whole.stats.items():
        assert pieces.stats[name].value == pytest.approx(stat.value, rel=1e-9), name
        if not math.isnan(stat.low):
            assert pieces.stats[name].low == pytest.approx(stat.low, rel=1e-6), name


def test_a_penalty_makes_states_too_short_and_least_squares_mends_it() -> None:
    planted = planted_states(400, units=32, d=32, k=3, noise=0.02)
    dictionary = dictionary_of(planted.directions, Lasso(0.4))
    both = evaluated(
        [Candidate("lasso", dictionary), Candidate("debiased", dictionary, "refitted")],
        [rows_of_states(planted.x[:, None])],
        SITES[:1],
    )
    short, mended = (both[name][SITES[0]].stats for name in ("lasso", "debiased"))
    assert short["relative_bias"].value < 0.9
    assert mended["relative_bias"].value == pytest.approx(1, abs=1e-3)
    assert mended["mse"].value < short["mse"].value / 2
    assert mended["l0"].value <= short["l0"].value


def test_intervals_cover_what_other_documents_would_give() -> None:
    """A documents' effect: over documents the interval covers, over windows it is too narrow."""
    generator, covered, narrow = torch.Generator().manual_seed(0), 0, 0
    basis = torch.eye(4)[:2]
    dictionary = dictionary_of(torch.cat([basis, -basis]), encoder(torch.cat([basis, -basis])))
    for _ in range(40):
        size = 1 + 2 * torch.rand(16, 1, 1, generator=generator)  # of a document's other two coordinates
        x = torch.randn(16, 40, 4, generator=generator)
        x[..., 2:] *= size
        rows = rows_of_states(x.reshape(-1, 1, 4), window=5)
        truth = 2 * 13 / 3
        for documents in (torch.arange(16).repeat_interleave(8), None):
            stat = evaluated([Candidate("own", dictionary)], [rows], SITES[:1], documents)["own"][SITES[0]].stats["mse"]
            inside = stat.low <= truth / 4 <= stat.high
            covered += inside and documents is not None
            narrow += inside and documents is None
    assert covered >= 34 > narrow


def test_a_jackknife_of_a_mean_is_its_standard_error() -> None:
    drawn = torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = torch.stack([torch.ones(30, dtype=torch.float64), drawn], 1)
    stat = jackknifed(sums, lambda of: {"mean": of[..., 1] / of[..., 0]})["mean"]
    assert (stat.high - stat.low) / 2 == pytest.approx(2.0452296 * float(drawn.std()) / 30**0.5, rel=1e-6)
    assert math.isnan(jackknifed(sums[:7], lambda of: {"mean": of[..., 1] / of[..., 0]})["mean"].low)


def test_density_dead_and_consistency_are_counts() -> None:
    """Four units: one always active, one at one row of each second window, one in all of the first window, one never."""
    x = torch.zeros(100, 1, 4)
    x[:, 0, 0] = 1
    x[::20, 0, 1] = 1
    x[:10, 0, 2] = 1
    rows, dictionary = rows_of_states(x), dictionary_of(torch.eye(4), encoder(torch.eye(4)))
    found = evaluated([Candidate("own", dictionary)], cut(rows, 50), SITES[:1])["own"][SITES[0]]
    assert found.fired.tolist() == [100, 5, 10, 0]
    assert found.stats["dead"].value == 0.25
    assert found.stats["above_10pc"].value == 0.25
    assert found.stats["above_1pc"].value == 0.75
    assert found.stats["consistency"].value == pytest.approx((10 + 1 + 10) / 3)
    assert found.histogram(torch.tensor([-2.0, -1.1, 0.0])).tolist() == [1, 0, 1, 1, 1]


def test_usage_counts_the_sites_of_a_factor() -> None:
    x = torch.zeros(40, 2, 3)
    x[:, :, 0] = 1
    x[:20, 0, 1] = 1
    found = evaluated(
        [Candidate("own", dictionary_of(torch.eye(3), encoder(torch.eye(3)), sites=SITES))], [rows_of_states(x)], SITES
    )["own"]
    sites = usage(found)
    assert sites[:2].tolist() == pytest.approx([2, 1])
    assert math.isnan(sites[2])
    assert usage_stat(found).value == pytest.approx(1.5)
    assert usage_stat({SITES[0]: found[SITES[0]]}).undefined


def test_crosscoders_and_transcoders_are_judged_at_what_they_write() -> None:
    x = torch.randn(60, 2, 3, generator=torch.Generator().manual_seed(3))
    both = torch.cat([torch.eye(6), -torch.eye(6)])
    crosscoder = Dictionary(
        "both", "crosscoder", SITES, SITES,
        Encoder(both.T.reshape(2, 3, 12), torch.zeros(12), Above(torch.zeros(12))), identity(2, 3),
        both.view(12, 2, 3).transpose(0, 1), torch.zeros(2, 3),
    )  # fmt: skip
    signed = torch.cat([torch.eye(3), -torch.eye(3)])
    transcoder = Dictionary(
        "across", "transcoder", SITES[:1], SITES[1:], encoder(signed), identity(1, 3), 2 * signed[None], torch.zeros(1, 3)
    )
    x[:, 1] = 2 * x[:, 0]
    found = evaluated([Candidate("both", crosscoder), Candidate("across", transcoder)], [rows_of_states(x)], SITES)
    assert list(found["both"]) == list(SITES)
    assert list(found["across"]) == [SITES[1]]
    for of in (*found["both"].values(), *found["across"].values()):
        assert of.stats["explained_variance"].value == pytest.approx(1, abs=1e-6)
    with pytest.raises(Refusal, match="refitted"):
        evaluated([Candidate("both", crosscoder, "refitted")], [rows_of_states(x)], SITES)


def test_massive_tokens_are_counted_and_not_judged() -> None:
    planted = planted_states(200, units=20, d=12, k=2)
    x = planted.x[:, None].clone()
    plain = evaluated(
        [Candidate("own", dictionary_of(planted.directions, Greedy(2)))],
        [rows_of_states(x).take(torch.arange(10, 200))],
        SITES[:1],
    )
    x[:10] *= 1000
    wary = Scaling(torch.zeros(1, 12), torch.ones(1), torch.tensor([50.0]))
    both = [
        Candidate("own", dictionary_of(planted.directions, Greedy(2), wary)),
        Candidate("other", dictionary_of(torch.eye(12), Greedy(2))),
    ]
    found = evaluated(both, [rows_of_states(x)], SITES[:1])
    for of in found.values():
        assert (of[SITES[0]].rows, of[SITES[0]].massive) == (190, 10)
    for name, value in only({"own": plain["own"]}).items():
        assert found["own"][SITES[0]].stats[name].value == pytest.approx(value), name


def test_rows_of_the_table_have_a_line_for_each_control() -> None:
    own = {"mse": Stat(1.0, 0.5, 1.5), "consistency": Stat(math.nan, undefined="no factor is active")}
    table = stat_rows("main", "tiny", SITES[0], own, {"pca": {"mse": Stat(2.0)}, "random": {"mse": Stat(3.0)}}).to_pylist()
    assert [(row["stat"], row["control_kind"], row["control"]) for row in table] == [
        ("mse", "pca", 2.0), ("mse", "random", 3.0), ("consistency", "", None),
    ]  # fmt: skip
    assert table[0]["lo"] == 0.5
    assert table[2]["value"] is None
    assert table[2]["undefined"] == "no factor is active"


def test_what_cannot_be_judged_is_refused() -> None:
    dictionary = dictionary_of(torch.eye(3), encoder(torch.eye(3)))
    with pytest.raises(Refusal, match="no row"):
        evaluated([Candidate("own", dictionary)], [], SITES[:1])
    with pytest.raises(Refusal, match="same name"):
        evaluated([Candidate("own", dictionary)] * 2, [], SITES[:1])
    with pytest.raises(Refusal, match="resid_pre.0"):
        evaluated([Candidate("own", dictionary)], [rows_of_states(torch.ones(4, 1, 3))], SITES[1:])
