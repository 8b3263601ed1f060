"""Figures of the vocabulary lens: what they show is what the tables hold, and nothing is drawn of what is not there."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import Rectangle

from microtome.core import Refusal
from microtome.report import save
from microtome.report.vocabulary import draw_group_stat, draw_head_scores, draw_pairs, draw_types, vocabulary_figures
from microtome.store import TABLES

GROUPS = ("W_in", "W_out")
LAYERS = (10, 0, 2, 1)


def _table(name: str, rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, TABLES[name].schema)


def value(group: str, layer: int) -> float:
    return 0.1 + 0.01 * layer + 0.2 * GROUPS.index(group)


def stats(run: str = "main") -> pa.Table:
    rows = []
    for layer in LAYERS:
        at = {"run": run, "layer": layer}
        for group in GROUPS:
            held = value(group, layer)
            beside = {"control": 0.05, "control_kind": "shuffled", "control_lo": 0.04, "control_hi": 0.07}
            row = at | beside | {"group": group, "stat": "similarity", "lo": held - 0.01, "hi": held + 0.02}
            rows.append(row | {"value": held, "q": 0.5 if layer == 2 else 0.001})
        shares = {"enrichment": 0.1 * layer / 10, "depletion": 0.25, "orthogonal output": 0.75 - 0.1 * layer / 10}
        for name, share in shares.items():
            control = {"control": float(name == "orthogonal output"), "control_kind": "different units"}
            rows.append(at | control | {"group": "units", "stat": f"type:{name}", "value": share, "q": 0.5})
        rows.append(at | {"group": "units", "stat": "nothing", "undefined": "too few units"})
    rows.append({"run": run, "group": "normal", "stat": "keep_k/transpose/all/k=10/n=300", "value": 0.5})
    return _table("vocabulary_stats", rows)


def units(run: str = "main") -> pa.Table:
    rows = [
        {
            "unit": f"heads.{layer}/{head}",
            "stat": "copying_score",
            "value": (-1) ** head * (layer + head / 10),
            "control": 0.05,
            "control_kind": "rotated",
            "q": 0.001 if layer == 2 else 0.2,
            "run": run,
        }
        for layer in reversed(range(3))
        for head in range(4)
    ]
    rows.append({"unit": "neurons.7/30", "stat": "copying_score", "value": 99.0, "run": run})
    rows.append({"unit": "heads.0/0", "stat": "ov_norm", "value": 2.0, "run": run})
    return _table("unit_stats", rows)


def pairs(heads: int = 14, end: str = "+") -> pa.Table:
    sign = -1 if end == "-" else 1
    rows = [
        {
            "head": f"heads.{head % 3}/{head}",
            "circuit": "ov",
            "end": end,
            "rank": rank,
            "token": rank,
            "other": 20 + rank,
            "score": 1.0,
            "z": sign * (30.0 + head - rank),
            "control": sign * 8.0,
        }
        for head in range(heads)
        for rank in reversed(range(12))
    ]
    return _table("pairs", rows)


def vocabulary() -> pa.Table:
    texts = [f" a{token}" for token in range(40)]
    texts[1], texts[21] = " A0", "a20"  # rank 1 is rank 0 again
    texts[2], texts[3] = "costs $5 or $6", " " + "long" * 9
    return _table("vocabulary", [{"token": token, "text": text} for token, text in enumerate(texts) if token != 24])


def test_a_measure_has_a_panel_for_each_group_with_its_control_and_its_interval() -> None:
    panels = draw_group_stat(stats(), "similarity").axes
    assert [axes.get_title() for axes in panels] == list(GROUPS)
    for axes, group in zip(panels, GROUPS, strict=True):
        named = {str(line.get_label()): line for line in axes.get_lines()}
        drawn = np.asarray(named["value"].get_ydata())
        assert {layer: drawn[layer] for layer in LAYERS} == pytest.approx({layer: value(group, layer) for layer in LAYERS})
        assert np.isnan(drawn[3:10]).all()
        assert set(np.asarray(named["control"].get_ydata())[[0, 1, 2, 10]]) == {0.05}
        assert np.asarray(named["q above 0.01"].get_xdata()).tolist() == [2]
        band, intervals = axes.collections
        heights = np.concatenate([path.vertices for path in band.get_paths()])[:, 1]
        assert (heights.min(), heights.max()) == (0.04, 0.07)
        assert isinstance(intervals, LineCollection)
        segments = [np.asarray(segment) for segment in intervals.get_segments() if len(segment)]
        ends = {round(segment[0, 0]): segment[:, 1].tolist() for segment in segments}
        assert ends[10] == pytest.approx([value(group, 10) - 0.01, value(group, 10) + 0.02])
    assert len({axes.get_ylim() for axes in panels}) == 1, "panels are to be compared"


def test_what_has_no_value_in_a_layer_is_refused_with_the_reason() -> None:
    with pytest.raises(Refusal, match="nothing by layer: too few units"):
        draw_group_stat(stats(), "nothing")
    with pytest.raises(Refusal, match="measures by layer are similarity, type:depletion"):
        draw_group_stat(stats(), "keep_k/transpose/all/k=10/n=300")
    with pytest.raises(Refusal, match="it holds the runs main, twin"):
        draw_group_stat(pa.concat_tables([stats("main"), stats("twin")]), "similarity")
    with pytest.raises(Refusal, match="no head has it"):
        draw_head_scores(units(), "matching_score")
    with pytest.raises(Refusal, match=r"pairs of heads\.0/99, ov \+: the table pairs has none"):
        draw_pairs(pairs(), vocabulary(), heads=["heads.0/99"])
    with pytest.raises(Refusal, match="types of units: there are none"):
        draw_types(stats().slice(0, 2))


def test_types_are_stacked_beside_those_of_the_control() -> None:
    model, control = draw_types(stats()).axes

    def stack(axes) -> dict[tuple[float, float], float]:
        bars = [bar for bar in axes.patches if isinstance(bar, Rectangle) and bar.get_height() > 0]
        return {(round(bar.get_x() + bar.get_width() / 2), round(bar.get_y(), 6)): bar.get_height() for bar in bars}

    assert [label.get_text() for label in model.get_xticklabels()] == ["0", "1", "2", "10"]
    assert stack(model) == pytest.approx(
        {(0, 0.0): 0.75, (0, 0.75): 0.25}
        | {(1, 0.0): 0.01, (1, 0.01): 0.74, (1, 0.75): 0.25}
        | {(2, 0.0): 0.02, (2, 0.02): 0.73, (2, 0.75): 0.25}
        | {(3, 0.0): 0.1, (3, 0.1): 0.65, (3, 0.75): 0.25}
    )
    assert stack(control) == {(place, 0.0): 1.0 for place in range(4)}
    assert "different units" in control.get_title()


def test_heads_beyond_their_control_are_marked_and_units_of_other_kinds_left_out() -> None:
    axes = draw_head_scores(units(), "copying_score").axes[0]
    shown = np.asarray(axes.images[0].get_array())
    assert shown == pytest.approx(np.array([[(-1) ** head * (layer + head / 10) for head in range(4)] for layer in range(3)]))
    above, below = (each for each in axes.collections if isinstance(each, PathCollection))
    assert np.asarray(above.get_offsets()).tolist() == [[0, 2], [2, 2]]
    assert np.asarray(below.get_offsets()).tolist() == [[1, 2], [3, 2]]
    assert str(below.get_label()).startswith("below")
    assert axes.images[0].get_clim() == pytest.approx((-2.3, 2.3)), "the scale is symmetric about 0"
    assert draw_head_scores(units(), "ov_norm").axes[0].images[0].get_clim() == (0, 2)


@pytest.mark.parametrize("end", ["+", "-", "±"])
def test_the_strongest_heads_come_first_with_their_pairs(end: str, tmp_path: Path) -> None:
    figure = draw_pairs(pairs(end=end), vocabulary(), end=end)
    panels = figure.axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles[:2] == ["layer 1, head 13: 38.5 sd (8.0)", "layer 0, head 12: 37.5 sd (8.0)"]
    assert len(titles) == 12
    texts = [text.get_text() for text in panels[0].texts]
    assert texts[:9] == ["a0", "→", "a20", "costs $5 or $6", "→", "a22", "longlonglonglo…", "→", "a23"]
    assert texts[9:12] == ["a4", "→", "token 24"], "a token without a text is a number"
    assert len(texts) == 3 * 8, "spellings of one pair are shown once, and eight pairs"
    widths = [bar.get_width() for bar in panels[0].patches if isinstance(bar, Rectangle)]
    assert widths[:2] == pytest.approx([0.28, 0.28 * 41 / 43])
    assert save(figure, tmp_path / "pairs.png").stat().st_size > 10_000


def test_heads_can_be_named() -> None:
    figure = draw_pairs(pairs(), vocabulary(), heads=["heads.2/2", "heads.0/0"])
    assert [axes.get_title(loc="left")[:15] for axes in figure.axes] == ["layer 2, head 2", "layer 0, head 0"]


def test_every_figure_has_a_name() -> None:
    tables = {"vocabulary_stats": stats(), "unit_stats": units().slice(0, 12), "pairs": pairs(), "vocabulary": vocabulary()}
    found = dict(vocabulary_figures(lambda query: tables[query.split()[3]], "main"))
    assert list(found) == [
        "vocabulary_types",
        "vocabulary_nothing",
        "vocabulary_similarity",
        "heads_copying_score",
        "pairs_ov_most",
    ]
    assert "have in common" in found["vocabulary_similarity"]().get_suptitle()
    none = {name: TABLES[name].schema.empty_table() for name in tables}
    (left,) = vocabulary_figures(lambda query: none[query.split()[3]], "main")
    with pytest.raises(Refusal, match="it has no rows"):
        left[1]()


@pytest.mark.parametrize(
    ("stat", "title"),
    [
        ("activated_100", "share of a state's 100 first tokens that its most active parameters promote, too"),
        ("activated_last_dominant_50", "share of the last state's 50 first tokens that its dominant parameters promote, too"),
        ("activated_50_excess", "beyond those of other tokens"),
        ("unheard_of", "unheard of"),
    ],
)
def test_titles_say_what_a_number_is(stat: str, title: str) -> None:
    row = {"run": "main", "group": "W_out", "layer": 0, "stat": stat, "value": 1.0}
    figure = draw_group_stat(_table("vocabulary_stats", [row]), stat)
    assert title in " ".join(figure.get_suptitle().split())
