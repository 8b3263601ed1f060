import re
from pathlib import Path

import pyarrow as pa
import pytest

from microtome.core import Refusal
from microtome.report import figures_of, save_all
from microtome.store import TABLES
from tests.unit.report import planted

NAMED = {
    "geometry_shares": planted.shares,
    "geometry_stats": planted.stats,
    "geometry_positions": planted.positions,
    "geometry_spectra": planted.spectra,
    "geometry_frequencies": planted.frequencies,
    "geometry_windows": planted.windows,
    "geometry_cosines": planted.cosines,
    "geometry_alignment": planted.alignment,
    "geometry_attention": planted.attention,
    "layer_loss": planted.losses,
}
SITES = ["losses", "shares", "spiral", "spectra", "frequencies", "position_cosines", "joint_cosines", "context_map"]


class _Atlas:
    """Answers the queries of an atlas that has some of the tables, of some runs."""

    def __init__(self, *runs: str, without: tuple[str, ...] = ()) -> None:
        self.runs, self.without = runs, without

    def sql(self, query: str) -> pa.Table:
        name, asked = query.split(" from ")[1].split()[0], query.removeprefix("select ").split(" from ")[0]
        tables = [NAMED[name](run) for run in self.runs if name in NAMED and name not in self.without]
        found = pa.concat_tables([TABLES[name].schema.empty_table(), *tables])
        return found if asked == "*" else found.select(asked.split(", "))


def test_every_figure_that_there_is_has_a_name() -> None:
    found = dict(figures_of(_Atlas("main").sql))
    attention = ["attention", "attention_layer_0", "attention_layer_1", "attention_layer_2"]
    # no `stat_ctx_clusters`: it has no value anywhere
    assert list(found) == [*SITES, "alignment", *attention, "stat_pos_stable_rank", "stat_ctx_map_trustworthiness"]
    assert found["stat_pos_stable_rank"].axes[0].get_title() == "stable rank of position"
    assert "trustworthiness" in found["context_map"].axes[0].get_title()


def test_what_a_run_does_not_have_is_left_out() -> None:
    missing = ("geometry_alignment", "geometry_attention", "geometry_windows", "geometry_stats")
    shallow = _Atlas("main", without=missing)
    assert [name for name, _ in figures_of(shallow.sql)] == SITES[:-1]


def test_one_run_must_be_chosen() -> None:
    with pytest.raises(Refusal, match="it holds the runs main, twin"):
        next(figures_of(_Atlas("main", "twin").sql))
    assert len(list(figures_of(_Atlas("main", "twin").sql, "twin"))) == 15
    with pytest.raises(Refusal, match="it has no run third; name one that is there: main"):
        next(figures_of(_Atlas("main").sql, "third"))
    with pytest.raises(Refusal, match=r"geometry_\* or vocabulary_stats: it has no rows; build the atlas with a text"):
        next(figures_of(_Atlas().sql))


def test_all_are_saved_and_twice_the_same(tmp_path: Path) -> None:
    few = _Atlas("main", without=tuple(NAMED.keys() - {"geometry_stats", "geometry_shares"}))
    first = save_all(figures_of(few.sql), tmp_path / "new" / "one")
    second = save_all(figures_of(few.sql), tmp_path / "two")
    names = ["shares.svg", "stat_pos_stable_rank.svg", "stat_ctx_map_trustworthiness.svg"]
    assert [path.name for path in first] == [path.name for path in second] == names
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    with pytest.raises(Refusal, match=r"\.jpg is not a format"):
        save_all(figures_of(few.sql), tmp_path, ".jpg")
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(Refusal, match="file: it is a file, and figures are saved in a folder; name a folder"):
        save_all(figures_of(few.sql), file)
    assert file.read_text() == "mine"


def test_a_page_lists_all_figures_with_their_titles(tmp_path: Path) -> None:
    few = _Atlas("main", without=tuple(NAMED.keys() - {"geometry_stats", "geometry_shares"}))
    for suffix in (".svg", ".pdf"):
        saved = save_all(figures_of(few.sql), tmp_path / suffix, suffix)
        page = (tmp_path / suffix / "index.html").read_text()
        assert [file.name for file in saved] == re.findall(r'<a href="([^"]+)"', page)
        assert page.count("<img") == (len(saved) if suffix == ".svg" else 0)
        assert ">What hidden states are made of; Against chance</a>" in page
        assert ">stable rank of position</a>" in page
