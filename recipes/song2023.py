"""Song & Zhong 2023, arXiv:2310.04861: the tables of the paper for any model, and an untrained twin as a control.

usage: python -m recipes.song2023 MODEL TEXT [--seed N] [--protocol paper [--contexts N]]
       (TEXT: a folder with a folder for each topic gives the columns on topics)

Prints each measure as mean and standard deviation over sites, as the paper's tables do, beside what estimation noise alone would give,
beside the same model with random weights, and beside the paper's models. What differs from the paper is printed below, so
that no number is read as a reproduction that is none. `--protocol paper` adds a column by the paper's own sampling and definitions, and for
GPT-2 small lays it beside the published values; where one is off, the exit status is 1.
"""

import argparse
import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from microtome.corpus import Joined, Source
from microtome.geometry import Geometry, measure
from microtome.model import Model, load
from recipes.song2023_paper import acceptance, is_gpt2_small, paper_values, report

__all__ = ["DIFFERENCES", "LEFT", "PAPER", "Column", "column", "conclusions", "describe", "untrained"]

PAPER = {
    "GPT-2": {"rank": (11.38, 1.86), "relative norm": (0.307, 0.187), "within": (0.44, 0.04), "between": (0.10, 0.01)},
    "BERT": {"rank": (12.46, 2.76), "relative norm": (0.239, math.nan), "within": (0.26, 0.04), "between": (0.13, 0.04)},
    "BLOOM": {"rank": (10.23, 1.31), "relative norm": (0.159, math.nan), "within": (0.32, 0.09), "between": (0.15, 0.14)},
    "Llama-2": {"rank": (9.38, 1.15), "relative norm": (0.137, math.nan), "within": (1.00, 0.00), "between": (0.12, 0.13)},
}
"""Mean and standard deviation over 13 sites on OpenWebText, from the outputs stored with the published code; NaN: not stored."""

DIFFERENCES = (
    "windows lie within documents and are never drawn twice; the paper joins texts and draws windows with replacement",
    "windows have 256 tokens; the paper's have 512, of which the first is left out, as it is here",
    "all four parts come from one sample; the paper takes residuals from a second one",
    "topics are labels of documents; the paper takes 64 overlapping windows from each of four documents",
    "BERT is run with attention to both sides; the paper runs it with a causal mask and without special tokens",
    "the paper's Llama-2 windows of a topic are all the same one, hence its 1.00 within topics",
    "noise is what P would be without an effect of position; the paper has no such control, nor an untrained model",
)

LEFT = (
    "BERT is run with attention to both sides; its special tokens are left out, as in the paper",
    "the forward pass is in the precision of the load and without TF32, sums are in double precision; the paper's are in single",
    "texts that are no text (binary, undecodable) are left out; a file of more than 16 MiB is read as several records",
    "where there are labels a topic is all texts of a label, joined; the paper's topics are single documents",
    "models of more than 13 states are not thinned out to 13",
)
"""What differs from the paper by the paper's protocol."""

_MEASURES = {
    "rank": ("pos", "screenot_rank"),
    "stable rank": ("pos", "stable_rank"),
    "relative norm": ("pos", "relative_norm"),
    "low frequencies": ("pos", "low_frequency_energy_10"),
    "roughness": ("pos", "roughness"),
    "agreed energy": ("pos cross-validated", "energy"),
    "incoherence": ("pos and ctx", "mean_absolute_cosine"),
    "within": ("ctx", "absolute_cosine_within_labels_with_diagonal"),
    "between": ("ctx", "absolute_cosine_between_labels"),
}


@dataclass(frozen=True)
class Column:
    """A model's measures: by name the values at its sites, and at the same sites those of the control (NaN: none)."""

    name: str
    values: Mapping[str, Sequence[float]]
    controls: Mapping[str, Sequence[float]]

    def mean(self, measure: str) -> tuple[float, float]:
        """Mean and standard deviation (of the sites, not of the mean) over the sites where it is defined."""
        return _over_sites(self.values[measure])

    def chance(self, measure: str) -> tuple[float, float]:
        """The same of the control."""
        return _over_sites(self.controls[measure])


def _over_sites(values: Sequence[float]) -> tuple[float, float]:
    known = [value for value in values if not math.isnan(value)]
    return (statistics.fmean(known), statistics.pstdev(known)) if known else (math.nan, math.nan)


def column(name: str, found: Geometry) -> Column:
    """The paper's measures of a model, from the table `geometry_stats`."""
    rows = {(row["subject"], row["stat"], row["site"]): row for row in found.tables["geometry_stats"].to_pylist()}
    sites = [str(site) for site in found.sites]
    values, controls = (
        {measure: [_number(rows.get((*key, site), {}).get(field)) for site in sites] for measure, key in _MEASURES.items()}
        for field in ("value", "control")
    )
    return Column(name, values, controls)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def paper_column(values: Mapping[str, Sequence[float]]) -> Column:
    """The measures that the paper defines, by its protocol; it has no controls."""
    nothing = dict.fromkeys(_MEASURES, (math.nan,))
    return Column("paper's protocol", nothing | dict(values), nothing)


def untrained(model: Model, *, seed: int = 0) -> Model:
    """The same architecture with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = load(type(model.module)(model.module.config))
    return dataclasses.replace(twin, tokenizer=model.tokenizer, processor=model.processor)


def columns(model: Model, text: Source, *, seed: int = 0) -> tuple[Column, Column]:
    """The model and its untrained twin over the same text."""
    twin = untrained(model, seed=seed)
    trained, random = (measure(each, text, depth="quick", seed=seed) for each in (model, twin))
    return column(model.name, trained), column("untrained", random)


def conclusions(trained: Column, random: Column) -> dict[str, bool]:
    """What the paper concludes, as far as these measures can say it: of the median site, trained against untrained and against chance."""

    def middle(values: Sequence[float]) -> float:
        known = [value for value in values if not math.isnan(value)]
        return statistics.median(known) if known else math.nan

    smooth, chance = (middle(trained.values["low frequencies"]), middle(trained.controls["low frequencies"]))
    return {
        "position is smooth: its lowest frequencies hold more than in a random order": smooth > 3 * chance,
        "training makes it so: more than in the untrained twin": smooth > middle(random.values["low frequencies"]),
        "position has few directions: a lower stable rank than its noise": (
            middle(trained.values["stable rank"]) < middle(trained.controls["stable rank"])
        ),
        "contexts cluster by topic: more alike within topics than between": (
            middle(trained.values["within"]) > middle(trained.values["between"])
        ),
    }


def describe(trained: Column, random: Column, paper: Column | None = None) -> str:
    """The table, with a column by the paper's protocol where there is one, the conclusions, and what differs from the paper."""
    more = () if paper is None else (paper,)
    heads = ("measure", trained.name[:18], "noise or null", random.name, *(each.name for each in more), *PAPER)
    lines = ["".join(f"{head:>20}" for head in heads)]
    for name in _MEASURES:
        cells = [trained.mean(name), trained.chance(name), random.mean(name), *(each.mean(name) for each in more)]
        cells += [published.get(name, (math.nan, math.nan)) for published in PAPER.values()]
        lines.append(f"{name:>20}" + "".join(f"{_cell(*cell):>20}" for cell in cells))
    lines += ["", "What the paper concludes:"]
    lines += [f"  {'yes' if holds else 'no ':3}  {says}" for says, holds in conclusions(trained, random).items()]
    lines += ["", "What differs from the paper:", *(f"  - {each}" for each in DIFFERENCES)]
    if paper is not None:
        lines += ["", f"What differs from the paper in the column {paper.name}:", *(f"  - {each}" for each in LEFT)]
    return "\n".join(lines)


def _cell(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:.3g}" if math.isnan(spread) else f"{mean:.3g} ({spread:.2g})"


def by_site(values: Mapping[str, Sequence[float]]) -> str:
    """Values site by site, from the embeddings on."""
    return "\n".join(f"{name:>20}  " + " ".join(f"{value:.3g}" for value in row) for name, row in values.items())


def main() -> int:
    """Measure and print; 1 where a published value is known and ours is another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--protocol", choices=("clean", "paper"), default="clean")
    parser.add_argument("--contexts", type=int, default=Joined().contexts, help="windows of the paper's protocol")
    options = parser.parse_args()
    model = load(options.model)
    pair = columns(model, options.text, seed=options.seed)
    if options.protocol == "clean":
        sys.stdout.write(describe(*pair) + "\n")
        return 0
    values = paper_values(model, options.text, joined=Joined(contexts=options.contexts), seed=options.seed)
    sys.stdout.write(f"{describe(*pair, paper_column(values))}\n\nBy the paper's protocol, site by site:\n{by_site(values)}\n")
    checks = acceptance(values) if is_gpt2_small(model) else []
    if checks:
        sys.stdout.write(f"\n{report(checks)}\n")
    return int(not all(each.holds for each in checks))


if __name__ == "__main__":
    sys.exit(main())
