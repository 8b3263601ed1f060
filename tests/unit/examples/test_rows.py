"""Rows of the tables `contexts` and `units`: schema, one row per filled place, what they say."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from microtome.core import Half
from microtome.examples import (
    DecileContexts,
    UnitSurvey,
    contexts_table,
    histograms_table,
    in_order_of_text,
    units_table,
)
from microtome.neurons.basis import Neurons
from microtome.store.schemas import TABLES
from microtome.store.tables import write_table
from tests.unit.examples.planted import Plain, cut, folded, plant


def test_contexts_become_rows(tmp_path: Path) -> None:
    windows = plant(0, 15, units=3)
    basis = Plain(3)
    fold = UnitSurvey(basis, k=4)
    found = fold.result(folded(fold, cut(windows, [4]))).contexts
    write_table(tmp_path, "contexts", "test", contexts_table(basis, [found], "main"))
    table = pq.read_table(tmp_path / "tables" / "contexts" / "test.parquet")
    assert table.schema.equals(TABLES["contexts"].schema)
    assert len(table) == int((found.window >= 0).sum())
    for row in table.to_pylist():
        group = found.ends.index(row["end"]) + (row["half"] == "confirm")
        unit = int(row["unit"].removeprefix("plain.0/"))
        place = (group, unit, row["rank"])
        assert row["window"] == int(found.window[place])
        assert row["value"] == float(found.value[place])
        assert row["first"] == row["position"] - 16
        assert row["activations"] == found.activations[place].tolist()
        assert row["half"] == Half(windows[row["window"]].half).name.lower()
        assert np.isclose(row["activations"][16] * row["scale"], row["value"], atol=row["scale"] / 2)
        assert (row["site"], row["run"]) == ("resid_post.0", "main")


def test_histograms_become_rows_of_the_units_that_were_seen(tmp_path: Path) -> None:
    windows = plant(0, 20, units=3)
    values = torch.cat([window.values[window.counted()] for window in windows])
    for window in windows:
        window.values[:, 1] = -1.0  # of "active" it is at no token
    fold = DecileContexts(Plain(3), torch.quantile(values, torch.linspace(0, 1, 11), 0), of="active")
    found = fold.result(folded(fold, cut(windows, [7])))
    write_table(tmp_path, "histograms", "test", histograms_table(Plain(3), found, "main"))
    table = pq.read_table(tmp_path / "tables" / "histograms" / "test.parquet")
    assert table.schema.equals(TABLES["histograms"].schema)
    rows = {row["unit"]: row for row in table.to_pylist()}
    assert set(rows) == {"plain.0/0", "plain.0/2"}
    for unit in (0, 2):
        row, own = rows[f"plain.0/{unit}"], values[:, unit].numpy()
        low, high = own.min(), own.max()
        inside, _ = np.histogram(own[own > 0], bins=64, range=(low, high))
        assert (row["low"], row["high"], row["site"], row["run"]) == (low, high, "resid_post.0", "main")
        assert row["counts"] == [0, *inside.tolist(), 0]


@pytest.mark.parametrize("experts", [(None,), (0, 1, 2, 10)])
def test_bases_come_in_the_order_of_their_addresses_as_text(experts: tuple[int | None, ...]) -> None:
    layers = [Neurons(layer, 12, expert) for expert in experts for layer in (0, 1, 2, 10)]
    ordered = in_order_of_text(layers)
    texts = [sorted(str(basis.address(unit)) for unit in range(basis.units)) for basis in ordered]
    assert len(ordered) == len(layers)
    assert [text for basis in texts for text in basis] == sorted(text for basis in texts for text in basis)


def test_units_become_rows(tmp_path: Path) -> None:
    write_table(tmp_path, "units", "test", units_table([Plain(3)]))
    rows = pq.read_table(tmp_path / "tables" / "units" / "test.parquet").to_pylist()
    assert rows[2] == {"unit": "plain.0/2", "basis": "plain", "name": None, "layer": 0, "expert": None, "index": 2}
