"""Figures of alignment show what the table says."""

import numpy as np
import pyarrow as pa
import pytest

from microtome.core import Refusal
from microtome.report import draw_alignment
from microtome.report.drawing import labels_of
from microtome.store import TABLES
from tests.unit.report import planted


def test_matrices_are_symmetric_with_a_blank_diagonal_and_hold_the_values() -> None:
    figure = draw_alignment(planted.alignment())
    for axes, subject in zip(figure.axes, ("pos", "ctx"), strict=False):
        shown = np.ma.filled(np.ma.asarray(axes.images[0].get_array()), np.nan)
        assert shown.shape == (len(planted.SITES),) * 2
        assert np.isnan(np.diag(shown)).all()
        for one in range(len(shown)):
            for other in range(len(shown)):
                if one != other:
                    assert shown[one, other] == pytest.approx(planted.alike(subject, one, other))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["in", "0", "1", "2", "10"]


def test_overlaps_stand_at_the_later_site_beside_their_control() -> None:
    lines = {line.get_label(): np.asarray(line.get_ydata()) for line in draw_alignment(planted.alignment()).axes[2].lines}
    assert np.allclose(lines["position"][1:], [0.75, 0.76, 0.77, 0.78])
    assert np.isnan(lines["position"][0])
    assert np.allclose(lines["position, control"][1:], 0.01)
    assert np.isnan(lines["context"]).all()


def test_a_table_without_values_is_refused() -> None:
    with pytest.raises(Refusal, match="it has no rows"):
        draw_alignment(TABLES["geometry_alignment"].schema.empty_table())


def test_sites_of_several_names_are_labelled_in_full() -> None:
    assert labels_of(["resid_pre.0", "resid_post.0", "resid_post.3"]) == ["in", "0", "3"]
    assert labels_of(["attn_out.0", "mlp_out.0"]) == ["attn_out.0", "mlp_out.0"]


def test_two_sites_are_no_picture() -> None:
    table = planted.alignment()
    two = [row for row in table.to_pylist() if {row["site"], row["other"]} <= {"resid_pre.0", "resid_post.0"}]
    assert two
    with pytest.raises(Refusal, match="a picture of it takes 3 sites, and here are 2"):
        draw_alignment(pa.Table.from_pylist(two, table.schema))
