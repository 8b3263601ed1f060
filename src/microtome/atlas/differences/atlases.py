"""What differs between two atlases of models of one shape: every statistic that both have, unit by unit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import torch

from microtome.atlas.differences.comparison import differing_sizes
from microtome.atlas.read import Atlas
from microtome.core import Refusal
from microtome.numerics import benjamini_hochberg
from microtome.store import RunCard

__all__ = ["LARGEST_Q", "AtlasDifference", "compare_atlases", "compare_statistics"]

LARGEST_Q: Final = 0.05
"""A statistic with q at most this differs."""


@dataclass(frozen=True, eq=False)
class AtlasDifference:
    """What differs between two atlases of models of one shape.

    `rows`: unit, stat, site, base, tuned, difference, effect (over the standard deviation between units in the base), z, q; those with
    q at most 0.05 first, then by |effect|. `matched` statistics are in both; `only_base` and `only_tuned` in one. `same_text` is false
    where they were computed from two texts, or from one that was cut or dealt to its halves otherwise.

    z = difference / (e + e'), where e is what the farther end of a statistic's 95 % interval is from it, over 1.96: its standard error. Two
    statistics of the same windows, or of the same pairs of words, are not independent, and an atlas does not keep how they vary together.
    Whatever that is, the standard error of their difference is at most e + e'. So q is not too small for that, and as a rule too large:
    where both err independently z could be up to 1.4 times as large, where they err alike larger still.
    """

    base: str
    tuned: str
    rows: pa.Table
    matched: int
    only_base: int
    only_tuned: int
    same_text: bool


_JOINED: Final = """
with spreads as (select stat, site, stddev_samp(value) as spread from base group by stat, site)
select base.unit as unit, base.stat as stat, base.site as site, base.value as base, tuned.value as tuned,
       tuned.value - base.value as difference, (tuned.value - base.value) / nullif(spread, 0) as effect,
       (tuned.value - base.value) * 1.96
           / nullif(greatest(base.hi - base.value, base.value - base.lo)
                    + greatest(tuned.hi - tuned.value, tuned.value - tuned.lo), 0) as z
from base join tuned on base.unit = tuned.unit and base.stat = tuned.stat and base.site is not distinct from tuned.site
     left join spreads on base.stat = spreads.stat and base.site is not distinct from spreads.site
order by stat, site, unit
"""
"""Statistics of both atlases."""
_COUNTED: Final = "select count(*) from joined group by stat, site order by stat, site"
_RANKED: Final = f"""
select * exclude (place) from tested order by coalesce(q <= {LARGEST_Q}, false) desc, abs(effect) desc nulls last, place
"""


def compare_atlases(base: Atlas, tuned: Atlas, run: str | None) -> AtlasDifference:
    """Match statistics by unit, statistic and site. Errors: `Refusal` where the atlases are of models of different shapes."""
    import duckdb

    one, other = base.manifest.model, tuned.manifest.model
    if one.family != other.family or differing_sizes(one.shape, other.shape):
        why = f"one is of {one.name} and the other of {other.name}, whose units do not correspond"
        instead = "name atlases of a model and what it was fine-tuned to, or the two models themselves"
        raise Refusal(f"{base.address} and {tuned.address}", why=why, instead=instead)
    cards = [_card(atlas, run) for atlas in (base, tuned)]
    tables = [
        atlas.sql("select unit, stat, site, value, lo, hi from unit_stats where run = ? and isfinite(value)", [name])
        for atlas, (name, _) in zip((base, tuned), cards, strict=True)
    ]
    tested = compare_statistics(*tables)
    with duckdb.connect() as connection:
        connection.register("tested", tested.append_column("place", pa.array(torch.arange(len(tested)).numpy())))
        rows = connection.sql(_RANKED).to_arrow_table()
    texts = [(card.corpus or {}).get("fingerprint") for _, card in cards]
    return AtlasDifference(
        base.address, tuned.address, rows, rows.num_rows,
        tables[0].num_rows - rows.num_rows, tables[1].num_rows - rows.num_rows, None in texts or texts[0] == texts[1],
    )  # fmt: skip


def compare_statistics(base: pa.Table, tuned: pa.Table) -> pa.Table:
    """Statistics that are in both: unit, stat, site, base, tuned, difference, effect, z, q, in order of stat, site and unit.

    Both have a row for each unit, stat and site, with value, lo and hi; a unit is an address, or any number that stands for it. q is over
    the units of each statistic at a site, by a normal distribution; statistics without an interval have none.
    """
    import duckdb

    with duckdb.connect() as connection:
        connection.register("base", base)
        connection.register("tuned", tuned)
        joined = connection.sql(_JOINED).to_arrow_table()
        connection.register("joined", joined)
        counts = [count for (count,) in connection.sql(_COUNTED).fetchall()]
    p = torch.special.erfc(torch.tensor(joined["z"].to_numpy()).abs() / 2**0.5)
    q = torch.cat([benjamini_hochberg(part) for part in p.split(counts)]) if counts else p
    return joined.append_column("q", pa.array(q.numpy(), pa.float64(), from_pandas=True))


def _card(atlas: Atlas, run: str | None) -> tuple[str, RunCard]:
    """The run that is compared: the one named, or the only one that a lens has been in."""
    every = atlas.manifest.runs
    runs = {name: card for name, card in every.items() if card.depths}
    if run is None and len(runs) == 1:
        return next(iter(runs.items()))
    if run in runs:
        return run, runs[run]
    if run is not None and run not in every:
        why = f"there is no run {run}"
    elif run is None and runs:
        why = f"it has {len(runs)} runs"
    else:
        why = _empty({name: card for name, card in every.items() if run in (None, name)})
    instead = f"name one by --run: {', '.join(runs)}" if runs else "build it first, with microtome build"
    raise Refusal(atlas.address, why=why, instead=instead)


def _empty(runs: Mapping[str, RunCard]) -> str:
    """Why runs that no lens has been in have no statistics."""
    if not runs:
        return "it has no runs"
    begun = [name for name, card in runs.items() if card.pending]
    if begun:
        return f"run {begun[0]} is not built yet"
    names = " and ".join(runs)
    return f"run {names} says how two models differ" if len(runs) == 1 else f"runs {names} say how two models differ"
