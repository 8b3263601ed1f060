from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from microtome.core import Refusal
from microtome.report import (
    draw_context_map,
    draw_frequencies,
    draw_joint_cosines,
    draw_position_cosines,
    draw_spectra,
    draw_spiral,
    save,
)
from microtome.store import TABLES
from tests.unit.report import planted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWS: tuple[tuple[Callable[..., "Figure"], Callable[..., pa.Table]], ...] = (
    (draw_spiral, planted.positions),
    (draw_spectra, planted.spectra),
    (draw_frequencies, planted.frequencies),
    (draw_joint_cosines, planted.cosines),
    (draw_position_cosines, planted.cosines),
    (draw_context_map, planted.windows),
)
SHOWN = ["resid_pre.0", "resid_post.1", "resid_post.10"]


def _titles(figure: "Figure") -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_a_spiral_is_drawn_where_it_is() -> None:
    figure = draw_spiral(planted.positions())
    assert _titles(figure) == [site for site in SHOWN for _ in range(2)]
    expected = np.array([planted.spiral(place) for place in range(planted.POSITIONS)])
    plane, space = figure.axes[:2]
    (line,) = plane.get_lines()
    assert np.column_stack([line.get_xdata(), line.get_ydata()]) == pytest.approx(expected[:, :2])
    dots = plane.collections[0]
    assert np.asarray(dots.get_offsets()) == pytest.approx(expected[:, :2])
    colours = dots.get_array()
    assert colours is not None
    assert colours.tolist() == list(range(planted.POSITIONS))
    (curve,) = space.get_lines()
    assert np.column_stack(curve.get_data_3d()) == pytest.approx(expected)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_position_far_outside_is_left_out_and_named() -> None:
    rows = planted.positions().to_pylist()
    for row in rows:
        if row["position"] == 0:
            row["x"] = 1e5
    figure = draw_spiral(pa.Table.from_pylist(rows, TABLES["geometry_positions"].schema), sites=["resid_post.0"])
    assert _titles(figure) == ["resid_post.0\nwithout position 0, far outside"] * 2
    (line,) = figure.axes[0].get_lines()
    assert np.asarray(line.get_xdata()).tolist() == pytest.approx(
        [planted.spiral(place)[0] for place in range(1, planted.POSITIONS)]
    )


def test_position_without_a_third_direction_is_drawn_in_the_plane() -> None:
    rows = [row | {"z": None} for row in planted.positions().to_pylist()]
    figure = draw_spiral(pa.Table.from_pylist(rows, TABLES["geometry_positions"].schema), sites=["resid_post.0"])
    assert _titles(figure) == ["resid_post.0", "resid_post.0\nposition has fewer than 3 directions"]
    nowhere = [row | {"x": None, "y": None, "z": None} for row in rows]
    with pytest.raises(Refusal, match="position has no directions at these sites"):
        draw_spiral(pa.Table.from_pylist(nowhere, TABLES["geometry_positions"].schema))


def test_spectra_are_drawn_with_their_noise_and_without_negative_values() -> None:
    figure = draw_spectra(planted.spectra())
    assert _titles(figure) == SHOWN
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line for line in axes.get_lines()}
    names = {
        "position": "pos",
        "position, control: its noise": "pos noise",
        "position, cross-validated": "pos cross-validated",
        "context": "ctx",
    }
    assert list(lines) == list(names)
    for name, subject in names.items():
        many = 20 if subject == "pos cross-validated" else 60
        assert np.asarray(lines[name].get_xdata()).tolist() == list(range(1, many + 1))
        assert lines[name].get_ydata() == pytest.approx([planted.singular(subject, rank) for rank in range(many)])
    assert lines["position, control: its noise"].get_linestyle() == "--"


def test_frequencies_are_drawn_without_the_constant_on_a_symmetric_scale() -> None:
    figure = draw_frequencies(planted.frequencies(), sites=["resid_post.2"])
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert _titles(figure) == ["resid_post.2, Gram matrix", "resid_post.2, cosines"]
    for axes, subject, reach in zip(panels, ("pos", "cosines of pos"), (12.0, 12.0), strict=True):
        (image,) = axes.images
        assert np.asarray(image.get_array()) == pytest.approx(planted.transform(subject)[1:, 1:])
        assert image.get_clim() == (-reach, reach)
        left, right, bottom, top = image.get_extent()
        assert (left, right, bottom, top) == (0.5, 9.5, 9.5, 0.5)


def test_joint_cosines_are_drawn_in_blocks() -> None:
    figure = draw_joint_cosines(planted.cosines())
    axes = figure.axes[0]
    (image,) = axes.images
    assert np.asarray(image.get_array()) == pytest.approx(planted.joint())
    assert image.get_clim() == (-1.0, 1.0)
    across, along = axes.get_lines()
    assert set(np.asarray(across.get_ydata())) == {planted.PLACES - 0.5}
    assert set(np.asarray(along.get_xdata())) == {planted.PLACES - 0.5}
    ticks = dict(zip(axes.get_xticks().tolist(), [label.get_text() for label in axes.get_xticklabels()], strict=True))
    assert ticks == {0: "0", 1: "3", 3: "9", 5: "15", 7: "windows"}


def test_cosines_among_positions_are_their_block() -> None:
    figure = draw_position_cosines(planted.cosines(), sites=["resid_post.10"])
    (image,) = figure.axes[0].images
    assert np.asarray(image.get_array()) == pytest.approx(planted.joint()[: planted.PLACES, : planted.PLACES])
    assert figure.axes[0].get_lines()[:] == []
    windows_only = [row for row in planted.cosines().to_pylist() if row["subject"] == "ctx"]
    with pytest.raises(Refusal, match=r"resid_pre\.0 has no rows of pos"):
        draw_position_cosines(pa.Table.from_pylist(windows_only, TABLES["geometry_cosines"].schema))


@pytest.mark.parametrize(
    ("label", "cluster", "by", "groups"),
    [
        ("topic", True, "by label", {"topic 0": [2, 4, 6, 8], "topic 1": [1, 3, 5, 7], "others": [0]}),
        (None, True, "by cluster", {f"cluster {rest}": [rest, rest + 3, rest + 6] for rest in range(3)}),
        (None, False, "no labels or clusters", {"windows": list(range(9))}),
    ],
)
def test_maps_are_coloured_by_what_there_is(label: str | None, cluster: bool, by: str, groups: dict[str, list[int]]) -> None:
    figure = draw_context_map(planted.windows(label=label, cluster=cluster), planted.stats(), sites=["resid_post.0"])
    (axes,) = figure.axes
    assert axes.get_title() == f"resid_post.0, {by}\ntrustworthiness 0.88 (random arrangement 0.50)"
    found = {str(dots.get_label()): np.asarray(dots.get_offsets()) for dots in axes.collections}
    assert {name: points[:, 0].tolist() for name, points in found.items()} == groups
    assert all((points[:, 1] == -points[:, 0]).all() for points in found.values())
    assert len({tuple(np.asarray(dots.get_facecolor())[0]) for dots in axes.collections}) == len(groups)


def test_labels_beyond_the_colours_are_grey() -> None:
    rows = [row | {"label": f"topic {row['window']}"} for row in planted.windows().to_pylist()]
    table = pa.Table.from_pylist(rows, TABLES["geometry_windows"].schema)
    figure = draw_context_map(table, sites=["resid_post.0"])
    found = {str(dots.get_label()): len(np.asarray(dots.get_offsets())) for dots in figure.axes[0].collections}
    assert found == {"others": 3} | {f"topic {place}": 1 for place in range(6)}
    assert figure.axes[0].get_title() == "resid_post.0, by label"


def test_windows_without_a_place_have_no_map() -> None:
    rows = [row | {"x": None, "y": None} for row in planted.windows().to_pylist()]
    with pytest.raises(Refusal, match="no window has a place on one"):
        draw_context_map(pa.Table.from_pylist(rows, TABLES["geometry_windows"].schema))


@pytest.mark.parametrize(("draw", "table"), DRAWS)
def test_what_cannot_be_drawn_is_refused(draw: Callable[..., "Figure"], table: Callable[..., pa.Table]) -> None:
    both = pa.concat_tables([table("main"), table("twin")])
    with pytest.raises(Refusal, match=r"it holds the runs main, twin; name one: run=\.\.\."):
        draw(both)
    assert _titles(draw(both, run="twin")) == _titles(draw(table()))
    with pytest.raises(Refusal, match="it has no run third"):
        draw(both, run="third")
    with pytest.raises(Refusal, match=r"resid_post\.7 of the table geometry_\w+: it has resid_pre\.0, resid_post\.0, "):
        draw(table(), sites=["resid_post.7"])
    with pytest.raises(Refusal, match="it has no rows"):
        draw(table().slice(0, 0))


@pytest.mark.parametrize(("draw", "table"), DRAWS)
def test_the_same_figure_is_the_same_bytes(
    tmp_path: Path, draw: Callable[..., "Figure"], table: Callable[..., pa.Table]
) -> None:
    first, second = (save(draw(table(), sites=["resid_post.2"]), tmp_path / f"{name}.svg").read_bytes() for name in "ab")
    assert first == second
    assert len(first) > 5000


def test_singular_values_that_are_0_up_to_rounding_are_left_out() -> None:
    table = planted.spectra()
    largest = max(row["value"] for row in table.to_pylist() if row["site"] == "resid_post.2")
    rows = [
        {**row, "value": 1e-7 * largest if row["rank"] > 2 and row["subject"] == "ctx" else row["value"]}
        for row in table.to_pylist()
    ]
    (axes,) = draw_spectra(pa.Table.from_pylist(rows, table.schema), sites=["resid_post.2"]).axes
    lines = {line.get_label(): np.asarray(line.get_xdata()) for line in axes.lines}
    assert list(lines["context"]) == [1, 2, 3]
    assert min(float(np.min(line.get_ydata())) for line in axes.lines) >= 1e-6 * largest
