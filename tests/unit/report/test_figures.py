from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from microtome.core import Refusal
from microtome.report import draw_losses, draw_shares, draw_stat, save
from microtome.report.figures import title_of
from microtome.store import TABLES
from tests.unit.report import planted


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


def test_a_measure_has_its_control_their_band_and_its_interval() -> None:
    (axes,) = draw_stat(planted.stats(), "pos", "stable_rank").axes
    named = {line.get_label(): line for line in axes.get_lines()}
    assert list(named) == ["control: noise", "stable rank"]
    values = np.asarray(named["stable rank"].get_ydata())
    assert values.tolist() == pytest.approx([5.0, 6.0, float("nan"), 8.0, 9.0], nan_ok=True)
    assert np.asarray(named["control: noise"].get_ydata()).tolist() == [20.0] * 5
    assert named["control: noise"].get_linestyle() == "--"
    band, intervals = axes.collections
    heights = np.concatenate([path.vertices for path in band.get_paths()])[:, 1]
    assert (heights.min(), heights.max()) == (18.0, 23.0)
    assert isinstance(intervals, LineCollection)
    ends = [np.asarray(segment)[:, 1].tolist() for segment in intervals.get_segments()]
    assert ends == [[order + 4.0, order + 7.0] for order in range(5)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["in", "0", "1", "2", "10"]
    assert (axes.get_title(), axes.get_ylabel()) == ("stable rank of position", "stable rank")


def test_a_measure_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refusal, match="rank of pos: of pos there are stable_rank; name one that is there"):
        draw_stat(planted.stats(), "pos", "rank")
    with pytest.raises(Refusal, match="there is no subject nothing"):
        draw_stat(planted.stats(), "nothing", "rank")
    with pytest.raises(Refusal, match="clusters of ctx: too few windows; draw another measure"):
        draw_stat(planted.stats(), "ctx", "clusters")
    with pytest.raises(Refusal, match="it holds the runs main, twin"):
        draw_stat(pa.concat_tables([planted.stats("main"), planted.stats("twin")]), "pos", "stable_rank")


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


@pytest.mark.parametrize(
    ("subject", "stat", "title"),
    [
        ("pos", "kl_keep_5", "change of the predictions (KL divergence) with only the 5 lowest frequencies of position"),
        ("pos", "loss_change_keep_0", "rise of the loss without position"),
        ("pos", "pseudo_f", "variance of positions beside that within them (pseudo-F): position"),
        ("token", "types", "different token ids: token ids"),
        ("pos noise", "low_frequency_10", "part of the cosine transform in the 10 lowest frequencies: the noise of position"),
        ("pos", "frequencies_for_90_percent", "frequencies that hold 90 % of the energy: position"),
        ("pos", "stable_rank", "stable rank of position"),
    ],
)
def test_titles_say_what_a_number_is(subject: str, stat: str, title: str) -> None:
    assert title_of(subject, stat) == title
