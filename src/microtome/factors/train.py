"""A dictionary of a model's hidden states over a text, in memory: what `microtome factors train` writes into an atlas, as values.

Call `train`. Which choices there are is said in `plan`, what the numbers of quality mean in `evaluation`.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from microtome.capture import MAIN, Progress, Results, Run, Silent, material_of, run_stages, writing_to
from microtome.capture.lens import Rows, Stage
from microtome.core import Refusal, RowFold
from microtome.corpus import Reading, Source
from microtome.factors.dictionary import Dictionary
from microtome.factors.harvest import Harvest, Harvested, Live
from microtome.factors.judgement import judged_by
from microtome.factors.plan import Plan, default_units, sites_of, trained
from microtome.model import Model, load

__all__ = ["Made", "train"]

_RUN = "main"


@dataclass(frozen=True, eq=False)
class Made:
    """A dictionary, rows of the table `dictionary_stats` that say how good it is on held-out text, and the sentence about it."""

    dictionary: Dictionary
    quality: pa.Table
    finding: str


def train(
    model: Model | str | Path,
    text: Source,
    plan: Plan | None = None,
    *,
    window: int = 256,
    seed: int = 0,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> Made:
    """Learn of which sparse directions hidden states of `model` over `text` are sums: on one half of the documents, judged on the other.

        made = mt.factors.train("HuggingFaceTB/SmolLM2-135M", "speeches/", mt.factors.Plan(units=1024))
        codes = made.dictionary.encode({site: states})

    `text` is anything that `microtome build` reads. States are kept in a temporary folder, or, as the plan says, nowhere.
    Errors: `Refusal` where the model or the text cannot be used, for fewer states than factors, and where a text is too short for any.
    Cost: a forward pass, or one for each pass of training; then see `plan.trained`.
    Source: Yun et al. 2021, arXiv:2103.15949, section 2.
    """
    plan = plan or Plan()
    subject = model if isinstance(model, Model) else load(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = material_of(subject, text, reading or Reading(), window=window, seed=seed).prepare(
            writing_to(folder, _RUN), _RUN
        )
        sites = sites_of(plan, subject)
        form = "bfloat16" if plan.keep == "nothing" else plan.keep
        harvest = Harvest(sites, min(1.0, plan.tokens / max(1, corpus.tokens)), seed, form)
        harvested: Harvested | Live = Live(harvest, subject, corpus)
        if plan.keep != "nothing":
            run = Run(_RUN, subject, corpus, seed, "quick")
            harvested = run_stages(run, (_Kept(harvest),), folder / "work", progress or Silent()).of(MAIN, _Kept.fold)
        states = min(plan.tokens, corpus.tokens) // 2 * (len(sites) if plan.arrangement == "shared" else 1)
        units = default_units(states) if plan.units is None else plan.units
        if not units:
            raise Refusal(
                "a dictionary",
                why=f"the text has about {states:,} states to learn from",
                instead="give more text, or name units",
            )
        dictionary = trained(plan, plan.name or _RUN, units, harvested, subject, seed=seed)
        judged = judged_by(dictionary, harvested, corpus.documents_of_windows(), _RUN, seed)
    return Made(dictionary, judged.rows, "" if judged.finding is None else judged.finding.sentence)


@dataclass(frozen=True)
class _Kept:
    """States, and nothing else."""

    harvest: Harvest
    name: str = "factors"
    fold: str = "factors.states"

    def stages(self, run: Run) -> tuple[Stage, ...]:
        return (MAIN,)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> dict[str, RowFold]:
        return {self.fold: self.harvest}

    def tables(self, run: Run, results: Results) -> dict[str, Rows]:
        return {}

    def absent(self, run: Run) -> dict[str, str]:
        return {}
