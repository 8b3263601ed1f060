from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.patches import Rectangle

from microtome.core import Refusal
from microtome.report import draw_losses, draw_shares, save
from microtome.store import TABLES


def _shares(run: str = "main") -> pa.Table:
    rows = []
    for place, (site, layer) in enumerate(
        [("resid_post.10", 10), ("resid_post.2", 2), ("resid_pre.0", 0), ("resid_post.0", 0)]
    ):
        for part, share, control in (
            ("mu", None, None),
            ("pos", 0.1, 0.02),
            ("ctx", 0.2 + 0.1 * place, 0.03),
            ("resid", 0.7 - 0.1 * place, None),
        ):
            rows.append(
                {"run": run, "site": site, "layer": layer, "part": part, "share": share, "control": control, "norm": 1.0}
            )
    return pa.Table.from_pylist(rows, TABLES["geometry_shares"].schema)


def _losses() -> pa.Table:
    rows = [
        {
            "run": "main",
            "objective": "next_token",
            "site": f"resid_post.{n}",
            "layer": n,
            "loss": 9.0 - n,
            "control": 11.0,
            "control_kind": "another token's target",
        }
        for n in range(3)
    ]
    rows.append(
        {
            "run": "main",
            "objective": "next_token_unigram",
            "site": None,
            "layer": None,
            "loss": 6.3,
            "control": None,
            "control_kind": None,
        }
    )
    return pa.Table.from_pylist(rows, TABLES["layer_loss"].schema)


def test_shares_are_stacked_in_the_order_of_the_forward_pass() -> None:
    stacked, tested = draw_shares(_shares()).axes
    assert [label.get_text() for label in stacked.get_xticklabels()] == ["in", "0", "2", "10"]
    bars = [bar for bar in stacked.patches if isinstance(bar, Rectangle)]
    heights = [bar.get_height() for bar in bars]
    assert heights == pytest.approx([0.1] * 4 + [0.4, 0.5, 0.3, 0.2] + [0.5, 0.4, 0.6, 0.7])
    bottoms = [bar.get_y() for bar in bars]
    assert bottoms[8:] == pytest.approx([0.5, 0.6, 0.4, 0.3])
    named = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in tested.get_lines()}
    assert named["context"] == pytest.approx([0.4, 0.5, 0.3, 0.2])
    assert named["position, control"] == pytest.approx([0.02] * 4)


def test_losses_have_their_control_and_the_level_of_token_frequencies() -> None:
    (axes,) = draw_losses(_losses()).axes
    named = {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()}
    assert named["loss"] == [9.0, 8.0, 7.0]
    assert named["control: another token's target"] == [11.0] * 3
    assert named["token frequencies alone"] == [6.3, 6.3]
    assert axes.get_title() == "Loss by layer, next token"


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_the_same_figure_is_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first = save(draw_shares(_shares()), tmp_path / f"a.{suffix}").read_bytes()
    second = save(draw_shares(_shares()), tmp_path / f"b.{suffix}").read_bytes()
    assert first == second
    assert len(first) > 5000


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    both = pa.concat_tables([_shares("main"), _shares("twin")])
    with pytest.raises(Refusal, match=r"it holds the runs main, twin; name one: run=\.\.\."):
        draw_shares(both)
    assert len(draw_shares(both, run="twin").axes) == 2
    with pytest.raises(Refusal, match="it has no run third"):
        draw_shares(both, run="third")
    with pytest.raises(Refusal, match="the table geometry_shares: it has no rows"):
        draw_shares(TABLES["geometry_shares"].schema.empty_table())
    with pytest.raises(Refusal, match="no row of it has a site"):
        draw_losses(_losses().slice(3))
    with pytest.raises(Refusal, match=r"\.jpg is not a format; end it in \.pdf, \.png, \.svg"):
        save(draw_shares(_shares()), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []
