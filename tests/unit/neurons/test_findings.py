"""Statistics rows and findings from planted records: numbers, controls, order, sentences."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from microtome.core import Half
from microtome.neurons import Neurons
from microtome.neurons.detectors import token_detectors
from microtome.neurons.findings import dead_units, detectors, findings_table, peaked_units
from microtome.neurons.statistics import Surveyed, unit_stats_table, written_stats_table
from microtome.numerics import moments
from microtome.store.tables import write_table
from tests.unit.neurons.planted import contexts_at

WORDS = ["the", "his", "up"]
COUNTS = torch.tensor([[900, 60, 40], [900, 60, 40]])


@pytest.fixture
def surveyed() -> list[Surveyed]:
    """Unit 0 fires on `his`, unit 1 on nothing in particular, unit 2 is dead; unit 1 is peaked."""
    torch.manual_seed(0)
    rows = torch.randn(400, 3)
    rows[7, 1], rows[:, 2] = 90.0, rows[:, 2] * 1e-5
    state = moments.init(3)
    moments.update(state, rows)
    his, any_, the = [1] * 10, [0, 1, 2, 0, 0, 1, 2, 0, 0, 1], [0] * 10
    confirm = [[1] * 9 + [0], any_, the]
    contexts = contexts_at([[his, any_, the], confirm, [the, the, the], [the, the, the]])
    return [
        Surveyed(
            Neurons(24, 3),
            moments.result(state),
            torch.tensor([1.0, 1.0, 2.0]).double(),
            token_detectors(contexts, COUNTS, torch.arange(3), 0),
        )
    ]


def test_the_planted_detector_is_found_and_nothing_else(surveyed: list[Surveyed]) -> None:
    found = detectors(surveyed, WORDS)
    assert [finding.subject for finding in found] == ["neurons.24/0"]
    assert found[0].sentence.startswith("neurons.24/0 fires on ‘his’: 9 of 10 top contexts in held-out documents (chance ")
    assert found[0].value == 0.9
    assert found[0].q is not None
    assert found[0].q < 1e-6


def test_a_common_token_is_no_discovery(surveyed: list[Surveyed]) -> None:
    shares = surveyed[0].detectors.share
    assert shares[1].tolist() == [1.0, 1.0, 1.0]
    assert not [finding for finding in detectors(surveyed, WORDS) if "bottom" in finding.sentence]


def test_dead_and_peaked_units_are_found(surveyed: list[Surveyed]) -> None:
    dead, peaked = dead_units(surveyed), peaked_units(surveyed)
    assert [finding.subject for finding in dead] == ["neurons.24/2"]
    assert "over 400 tokens" in dead[0].sentence
    assert "7.5e-03 of tokens" in dead[0].sentence
    assert peaked[0].subject == "neurons.24/1"
    assert peaked[0].q is None


def test_findings_become_rows_in_order(surveyed: list[Surveyed], tmp_path: Path) -> None:
    write_table(tmp_path, "findings", "neurons", findings_table(surveyed, WORDS, "main"))
    rows = pq.read_table(tmp_path / "tables" / "findings" / "neurons.parquet").to_pylist()
    assert [row["rank"] for row in rows] == list(range(len(rows)))
    assert rows[0]["kind"] == "token detector"
    assert rows[0]["control"] == pytest.approx(surveyed[0].detectors.chance)
    assert {row["kind"] for row in rows} == {"token detector", "peaked unit", "dead unit"}


def test_statistics_become_rows(surveyed: list[Surveyed], tmp_path: Path) -> None:
    write_table(tmp_path, "unit_stats", "neurons", unit_stats_table(surveyed, "main"))
    rows = pq.read_table(tmp_path / "tables" / "unit_stats" / "neurons.parquet").to_pylist()
    named = {(row["unit"], row["stat"]): row for row in rows}
    assert len(rows) == 3 * 10
    assert named["neurons.24/2", "write_norm"]["value"] == 2.0
    assert named["neurons.24/1", "max"]["value"] == 90.0
    assert named["neurons.24/1", "density"]["control"] is None
    assert named["neurons.24/1", "density"]["control_kind"] is None
    share = named["neurons.24/0", "token_share_top"]
    assert (share["value"], share["site"], share["run"]) == (0.9, "mlp_act.24", "main")
    assert (share["lo"], share["hi"]) == (pytest.approx(0.5550, abs=1e-4), pytest.approx(0.9975, abs=1e-4))
    assert share["control"] == pytest.approx(surveyed[0].detectors.chance)
    assert share["control_kind"] == "unigram draws"
    assert share["q"] < 1e-6


def test_without_text_there_are_norms_only() -> None:
    table = written_stats_table([Neurons(0, 2)], [torch.tensor([3.0, 4.0]).double()], "main")
    assert table["stat"].to_pylist() == ["write_norm"] * 2
    assert table["value"].to_pylist() == [3.0, 4.0]


def test_halves_are_numbered_as_the_lists_are() -> None:
    assert (Half.DISCOVER, Half.CONFIRM) == (0, 1)


def test_layers_take_turns(surveyed: list[Surveyed]) -> None:
    other = replace(surveyed[0], basis=Neurons(3, 3))
    tokens = contexts_at([[[1] * 10, [2] * 10, [0] * 10]] * 2, signed=False)
    two = replace(surveyed[0], basis=Neurons(5, 3), detectors=token_detectors(tokens, COUNTS, torch.arange(3), 0))
    found = detectors([surveyed[0], two, other], WORDS)
    assert [finding.subject for finding in found] == ["neurons.5/1", "neurons.24/0", "neurons.3/0", "neurons.5/0"]
