from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from microtome.core import Refusal
from microtome.report import draw_attention, save
from microtome.store import TABLES
from tests.unit.report import planted

PAIRS = ["pos · pos", "mu · resid", "ctx · ctx", "const · mu", "all others"]


def test_heads_of_a_layer_have_the_energies_of_their_pairs() -> None:
    figure = draw_attention(planted.attention(), layer=1)
    scores, control = figure.axes[:2]
    assert [label.get_text() for label in scores.get_xticklabels()] == PAIRS
    expected = [[*planted.energy(1, head).values(), 0.0] for head in range(2)]
    assert np.asarray(scores.images[0].get_array()) == pytest.approx(np.array(expected))
    assert np.asarray(control.images[0].get_array()) == pytest.approx(np.array([[0.25] * 4 + [0.0]] * 2))
    assert control.get_title() == "control: queries turned"
    assert scores.images[0].get_clim() == control.images[0].get_clim() == pytest.approx((0.0, 0.65))
    assert figure.get_suptitle() == "What attention scores are made of, layer 1"
    assert [text.get_text() for text in scores.texts] == ["60%", "36%", "65%", "31%"]


def test_layers_are_means_over_heads_and_small_pairs_are_added_up() -> None:
    table = pa.Table.from_pylist(
        [row | {"energy_control": None, "control_kind": None} for row in planted.attention().to_pylist()],
        TABLES["geometry_attention"].schema,
    )
    scores, control = draw_attention(table).axes[:2]
    assert [label.get_text() for label in scores.get_xticklabels()] == ["pos · pos", "mu · resid", "all others"]
    expected = [[0.525 + 0.1 * layer, 0.435 - 0.1 * layer, 0.04] for layer in range(3)]
    assert np.asarray(scores.images[0].get_array()) == pytest.approx(np.array(expected))
    drawn = np.ma.asarray(control.images[0].get_array())
    assert np.ma.getmaskarray(drawn)[:, :2].all()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    both = pa.concat_tables([planted.attention("main"), planted.attention("twin")])
    with pytest.raises(Refusal, match=r"it holds the runs main, twin; name one: run=\.\.\."):
        draw_attention(both)
    with pytest.raises(Refusal, match="there is no layer 7; name a layer that is there"):
        draw_attention(planted.attention(), layer=7)
    rows = [row | {"energy": None} for row in planted.attention().to_pylist()]
    with pytest.raises(Refusal, match="no head has two counted keys"):
        draw_attention(pa.Table.from_pylist(rows, TABLES["geometry_attention"].schema))
    first, second = (save(draw_attention(both, run="twin"), tmp_path / f"{name}.svg").read_bytes() for name in "ab")
    assert first == second
