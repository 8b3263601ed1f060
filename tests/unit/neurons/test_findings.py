"""Statistics rows and findings from planted records: numbers, controls, order, sentences."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from microtome.core import Half
from microtome.examples import Contexts, UnitSurveyRecord
from microtome.examples.detectors import next_detectors, token_detectors
from microtome.examples.findings import Finding, findings_table
from microtome.neurons import Neurons
from microtome.neurons.findings import dead_units, judged_findings, peaked_units
from microtome.neurons.statistics import Judged, Surveyed, judge, survey_of, unit_stats_table, written_stats_table
from microtome.numerics import moments
from microtome.readout.detected import detector_findings
from microtome.store.tables import write_table
from tests.unit.neurons.planted import contexts_at

WORDS = ["the", "his", "up", "pick", "set", "turn"]
COUNTS = torch.tensor([[897, 60, 40, 1, 1, 1]] * 2)


def detectors(judged: Sequence[Judged], texts: Sequence[str]) -> list[Finding]:
    return detector_findings([each.detected for each in judged], texts)


def record(contexts: Contexts, halves: tuple[torch.Tensor, ...]) -> UnitSurveyRecord:
    """What a survey of these rows of activations and these contexts would say."""
    states = [moments.init(halves[0].shape[1]) for _ in halves]
    for state, rows in zip(states, halves, strict=True):
        moments.update(state, rows)
    whole = moments.result(moments.merge(*states))
    return UnitSurveyRecord(whole, tuple(moments.result(state) for state in states), contexts)


def found_at(contexts: Contexts, layer: int = 24, halves: tuple[torch.Tensor, ...] = (torch.zeros(2, 3),) * 2) -> Surveyed:
    """A basis with these contexts."""
    tests = [test(contexts, COUNTS, torch.arange(COUNTS.shape[1]), 0) for test in (token_detectors, next_detectors)]
    norm = 1.0 + (torch.arange(halves[0].shape[1]) == 2).double()
    return survey_of(Neurons(layer, len(norm)), record(contexts, halves), norm, *tests)


@pytest.fixture
def surveyed() -> list[Judged]:
    """Unit 0 fires on `his`, unit 1 on nothing in particular, unit 2 is dead."""
    torch.manual_seed(0)
    halves = torch.randn(400, 3), torch.randn(300, 3)
    for rows in halves:
        rows[7, 1], rows[:, 2] = 90.0, rows[:, 2] * 1e-5
    his, any_, the = [1] * 10, [0, 1, 2, 0, 0, 1, 2, 0, 0, 1], [0] * 10
    confirm = [[1] * 9 + [0], any_, the]
    contexts = contexts_at([[his, any_, the], confirm, [the, the, the], [the, the, the]])
    return judge([found_at(contexts, halves=halves)])


def test_the_planted_detector_is_found_and_nothing_else(surveyed: list[Judged]) -> None:
    found = detectors(surveyed, WORDS)
    assert [finding.subject for finding in found] == ["neurons.24/0"]
    assert found[0].sentence.startswith("neurons.24/0 fires on ‘his’: 9 of 10 top contexts in held-out documents (chance ")
    assert found[0].value == 0.9
    assert found[0].q is not None
    assert found[0].q < 1e-6


def test_a_common_token_is_no_discovery(surveyed: list[Judged]) -> None:
    shares = surveyed[0].found.tokens.share
    assert shares[1].tolist() == [1.0, 1.0, 1.0]
    assert not [finding for finding in detectors(surveyed, WORDS) if "bottom" in finding.sentence]


def test_dead_units_are_bounded_by_the_half_that_did_not_choose_them(surveyed: list[Judged]) -> None:
    dead = dead_units(surveyed)
    assert [finding.subject for finding in dead] == ["neurons.24/2"]
    assert "over 700 tokens" in dead[0].sentence
    assert "300 of them held out: on at most 1.0e-02 of tokens" in dead[0].sentence
    assert (dead[0].q, dead[0].control_kind) == (None, "median unit of the block, no null")


def test_a_peaked_unit_is_one_in_both_halves() -> None:
    generator = torch.Generator().manual_seed(0)
    halves = torch.randn(500, 1000, generator=generator), torch.randn(400, 1000, generator=generator)
    for rows, units in zip(halves, ([5, 6, 7], [5, 6, 8]), strict=True):
        rows[3, units] = 70.0
    everywhere = [[[0] * 10] * 1000] * 2
    judged = judge([found_at(contexts_at(everywhere, signed=False), layer=3, halves=halves)])
    found = peaked_units(judged)
    assert {finding.subject for finding in found} == {"neurons.3/5", "neurons.3/6"}
    first, kurtosis = found[0], judged[0].found.confirm.kurtosis
    assert first.value == max(kurtosis[5], kurtosis[6])
    assert f"excess kurtosis {first.value:,.0f} in held-out documents, where 95 % of the 1,000 units" in first.sentence
    assert (first.control, first.control_kind) == (judged[0].found.peaks.median, "median unit of the block")
    assert first.q is not None
    assert first.q <= 0.05
    rows = {(row["unit"], row["stat"]): row for row in unit_stats_table(judged, "main").to_pylist()}
    stat = rows["neurons.3/5", "kurtosis_confirm"]
    assert (stat["value"], stat["control"], stat["q"]) == (float(kurtosis[5]), first.control, pytest.approx(first.q))
    assert rows["neurons.3/8", "kurtosis_confirm"]["q"] is None, "the discover half did not choose it"


def before(at: list[int], after: list[int], confirm_at: list[int], confirm_after: list[int]) -> list[Judged]:
    """One unit with these contexts in the two halves, and what follows them."""
    lists = contexts_at([[at], [confirm_at]], signed=False, following=[[after], [confirm_after]])
    return judge([found_at(lists, halves=(torch.zeros(2, 1),) * 2)])


def test_a_next_token_detector_fires_before_a_token_after_different_ones() -> None:
    different = [0, 1, 3, 4, 5, 0, 1, 3, 4, 5]
    found = detectors(before(different, [2] * 10, different, [2] * 8 + [0, 0]), WORDS)
    assert [(finding.kind, finding.subject) for finding in found] == [("next-token detector", "neurons.24/0")]
    assert found[0].sentence == (
        "neurons.24/0 fires before ‘up’: 8 of 10 top contexts in held-out documents are followed by it, "
        f"after 5 different tokens (chance {found[0].control * 10:.1f} of them)"
    )
    assert found[0].value == 0.8
    assert found[0].q == pytest.approx(0.04**5, rel=1e-6)


def test_of_two_the_kind_with_more_hits_is_the_finding_and_says_the_other() -> None:
    found = detectors(before([1] * 10, [2] * 10, [1] * 9 + [0], [2] * 8 + [0, 0]), WORDS)
    assert [finding.kind for finding in found] == ["token detector"]
    assert found[0].sentence.endswith("of them); 8 of 10 are followed by ‘up’")
    mixed = [1, 1, 1, 1, 1, 1, 3, 4, 5, 0]
    found = detectors(before(mixed, [2] * 10, mixed, [2] * 10), WORDS)
    assert [finding.kind for finding in found] == ["next-token detector"]
    assert found[0].sentence.endswith("of them); 6 of 10 are at ‘his’")


def test_where_both_are_as_often_the_token_itself_is_the_finding() -> None:
    at, after = [1, 1, 1, 1, 1, 1, 3, 4, 5, 0], [2, 2, 2, 0, 0, 0, 2, 2, 2, 0]
    judged = before(at, after, at, after)
    assert judged[0].found.tokens.hits.tolist() == judged[0].found.following.hits.tolist() == [[6]]
    assert float(judged[0].following_q[0, 0]) < 1e-4
    assert [finding.kind for finding in detectors(judged, WORDS)] == ["token detector"]


def test_findings_become_rows_in_order(surveyed: list[Judged], tmp_path: Path) -> None:
    write_table(tmp_path, "findings", "neurons", findings_table(judged_findings(surveyed, WORDS), "main", "neurons"))
    rows = pq.read_table(tmp_path / "tables" / "findings" / "neurons.parquet").to_pylist()
    assert [row["rank"] for row in rows] == list(range(len(rows)))
    assert rows[0]["kind"] == "token detector"
    assert rows[0]["control"] == pytest.approx(surveyed[0].found.tokens.chance)
    assert {row["kind"] for row in rows} == {"token detector", "dead unit"}


def test_statistics_become_rows(surveyed: list[Judged], tmp_path: Path) -> None:
    write_table(tmp_path, "unit_stats", "neurons", unit_stats_table(surveyed, "main"))
    rows = pq.read_table(tmp_path / "tables" / "unit_stats" / "neurons.parquet").to_pylist()
    named = {(row["unit"], row["stat"]): row for row in rows}
    assert len(rows) == 3 * 13
    assert named["neurons.24/2", "write_norm"]["value"] == 2.0
    assert named["neurons.24/1", "max"]["value"] == 90.0
    assert named["neurons.24/1", "density"]["control"] is None
    assert named["neurons.24/1", "density"]["control_kind"] is None
    share = named["neurons.24/0", "token_share_top"]
    assert (share["value"], share["site"], share["run"]) == (0.9, "mlp_act.24", "main")
    assert (share["lo"], share["hi"]) == (pytest.approx(0.5550, abs=1e-4), pytest.approx(0.9975, abs=1e-4))
    assert share["control"] == pytest.approx(surveyed[0].found.tokens.chance)
    assert share["control_kind"] == "unigram draws"
    assert share["q"] < 1e-6
    following = named["neurons.24/0", "next_share_top"]
    assert (following["value"], following["lo"], following["hi"], following["q"]) == (0.0, 0.0, 1.0, 1.0)


def test_without_text_there_are_norms_only() -> None:
    table = written_stats_table([Neurons(0, 2)], [torch.tensor([3.0, 4.0]).double()], "main")
    assert table["stat"].to_pylist() == ["write_norm"] * 2
    assert table["value"].to_pylist() == [3.0, 4.0]


def test_halves_are_numbered_as_the_lists_are() -> None:
    assert (Half.DISCOVER, Half.CONFIRM) == (0, 1)


def test_layers_take_turns() -> None:
    his, up, the = [1] * 10, [2] * 10, [0] * 10
    one, two = ([[his, the, the]] * 2, [[his, up, the]] * 2)
    layers = [(24, one), (5, two), (3, one)]
    found = detectors(judge([found_at(contexts_at(lists, signed=False), layer) for layer, lists in layers]), WORDS)
    assert [finding.subject for finding in found] == ["neurons.5/1", "neurons.24/0", "neurons.3/0", "neurons.5/0"]


def test_both_ends_and_all_bases_are_one_family_of_tests() -> None:
    his, the = [1] * 10, [0] * 10
    alone = judge([found_at(contexts_at([[his, the, the]] * 2, signed=False))])[0]
    both = judge([found_at(contexts_at([[his, the, the]] * 2 + [[the, the, the]] * 2)) for _ in range(2)])[0]
    assert alone.token_q[0, 0] == pytest.approx(3 * alone.found.tokens.p[0, 0])
    assert both.token_q[0, 0] == pytest.approx(2 * 6 / 2 * both.found.tokens.p[0, 0])
