"""What differs between two models, or between two atlases: one ranked report, and its rows.

Of two models (folders, hub ids, an adapter as the second) every parameter vector is compared, see `vocabulary.changes`, and nothing is
built or run. Of two atlases every statistic that both have is compared unit by unit. How a report looks on a terminal belongs in `cli`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import torch

from microtome.atlas.build import LENSES, manifest_for
from microtome.atlas.folder import claimed, require_run_name, require_usable
from microtome.atlas.read import Atlas
from microtome.core import Refusal
from microtome.model import Checkpoint, Model, open_checkpoint
from microtome.model.adapter import adapted, holds_adapter
from microtome.numerics import benjamini_hochberg
from microtome.store import RunCard, digest, fingerprint, manifest_path, write_manifest, write_table
from microtome.store.schemas import TABLES
from microtome.vocabulary.changed import Significance, block_rows, change_findings, change_rows, embedding_rows, significance
from microtome.vocabulary.changes import BlockChange, EmbeddingChange, changes, embedding_changes, other_changes
from microtome.vocabulary.findings import Row
from microtome.vocabulary.lists import WordList, read_words, word_list
from microtome.vocabulary.subject import Preset, Subject, subject_of

__all__ = ["AtlasDifference", "Comparison", "ModelDifference", "diff"]

_WRITER: Final = "changes"
_NAME: Final = re.compile(r"[^\w-]+")
_LARGEST_Q: Final = 0.05


@dataclass(frozen=True)
class Comparison:
    """How two models are compared.

    `words` are one or two files of words to score differences against, see `vocabulary.lists`; `groups` the parameters to compare, all
    where none is named; `most` the vectors of each group and layer whose tokens are looked up (None: all), `draws` how often lists are
    shuffled.
    """

    words: tuple[str | Path, ...] = ()
    groups: tuple[str, ...] = ()
    most: int | None = 64
    k: int = 20
    draws: int = 1000
    seed: int = 0
    preset: Preset = "folded"

    def __post_init__(self) -> None:
        if self.draws < 100:
            raise Refusal(f"{self.draws} shuffles", why="no p-value could be small", instead="use 1000")


@dataclass(frozen=True, eq=False)
class ModelDifference:
    """What changed from one model to another. `elsewhere` names weights that differ and hold no vectors of the stream."""

    base: str
    tuned: str
    blocks: tuple[BlockChange, ...]
    significance: Significance
    embeddings: tuple[EmbeddingChange, ...]
    elsewhere: tuple[str, ...]
    words: WordList | None
    texts: Sequence[str]

    @property
    def identical(self) -> bool:
        """Whether no number differs."""
        return not (any(each.addresses for each in self.blocks) or self.embeddings or self.elsewhere)

    def findings(self) -> list[Row]:
        """Sentences, most telling first."""
        return change_findings(self.blocks, self.significance, self.base, self.texts, self.words)

    def tables(self, run: str) -> dict[str, Any]:
        """Rows of the tables changes, vocabulary_stats and findings."""
        stats = [block_rows(self.blocks, self.significance, run), embedding_rows(self.embeddings, run)]
        sentences = [{"run": run, "lens": "changes", "rank": rank, **row} for rank, row in enumerate(self.findings())]
        return {
            "changes": change_rows(self.blocks, self.significance, self.base, run),
            "vocabulary_stats": pa.concat_tables(stats),
            "findings": pa.Table.from_pylist(sentences, TABLES["findings"].schema),
        }


@dataclass(frozen=True, eq=False)
class AtlasDifference:
    """What differs between two atlases of models of one shape.

    `rows`: unit, stat, site, base, tuned, difference, effect (over the standard deviation between units in the base), z, q; those with
    q at most 0.05 first, then by |effect|. `matched` statistics are in both; `only_base` and `only_tuned` in one. `same_text` is whether
    they were computed from one text.
    """

    base: str
    tuned: str
    rows: pa.Table
    matched: int
    only_base: int
    only_tuned: int
    same_text: bool


Source = Model | Checkpoint | str | Path


def diff(
    base: Source,
    tuned: Source,
    *,
    output: str | Path | None = None,
    comparison: Comparison | None = None,
    run: str | None = None,
) -> ModelDifference | AtlasDifference:
    """Compare two models or, where both are folders of atlases, two atlases.

    `tuned` may be an adapter's folder, with the model it was trained on as `base`. With `output` the rows are written into an atlas of
    the tuned model, as a run of their own (`run`; named after the base where it is None). Of atlases, `run` names the run of both.

    Errors: `Refusal` where one cannot be opened, or they do not correspond.
    """
    atlases = [isinstance(each, str | Path) and manifest_path(Path(each)).is_file() for each in (base, tuned)]
    if any(atlases):
        if not all(atlases):
            one = base if atlases[0] else tuned
            raise Refusal(str(one), why="it is an atlas and the other is a model", instead="name two models or two atlases")
        if output is not None or (comparison is not None and comparison.words):
            why = "they are for models, and these are atlases"
            raise Refusal("an output, or a list of words", why=why, instead="leave them out")
        return _atlases(Atlas(str(base)), Atlas(str(tuned)), run)
    opened = _opened(base)
    other = _opened(tuned, opened)
    comparison = comparison or Comparison()
    opened, other = _one_tokenizer(opened, other)
    if output is not None:
        require_usable(Path(output))
    found = _models(opened, other, comparison)
    if output is not None:
        name = run or f"since-{_NAME.sub('-', found.base).strip('-')}"[:64]
        require_run_name(name)
        _write(found, opened, other, Path(output), comparison, name)
    return found


def _opened(source: Source, base: Model | Checkpoint | None = None) -> Model | Checkpoint:
    """A model; of an adapter's folder, `base` with the adapter."""
    if isinstance(source, Model | Checkpoint):
        return source
    if base is None or not holds_adapter(source):
        return open_checkpoint(source)
    if isinstance(base, Checkpoint):
        return adapted(base, source)
    raise Refusal(f"adapter {source}", why=f"{base.name} is built", instead="name the folder of the model it was trained on")


def _one_tokenizer(base: Model | Checkpoint, tuned: Model | Checkpoint) -> tuple[Model | Checkpoint, Model | Checkpoint]:
    """A model saved without its tokenizer has the other's."""
    if base.tokenizer is None:
        return replace(base, tokenizer=tuned.tokenizer), tuned
    return base, replace(tuned, tokenizer=base.tokenizer) if tuned.tokenizer is None else tuned


def _models(base: Model | Checkpoint, tuned: Model | Checkpoint, comparison: Comparison) -> ModelDifference:
    before, after = (subject_of(model, preset=comparison.preset) for model in (base, tuned))
    words = _words(comparison, after)
    found = tuple(
        changes(
            before, after, comparison.groups,
            words=words, most=comparison.most, k=comparison.k, draws=comparison.draws, seed=comparison.seed,
        )
    )  # fmt: skip
    embeddings, elsewhere = embedding_changes(before, after, comparison.k), other_changes(before, after)
    return ModelDifference(
        before.name, after.name, found, significance(found), tuple(embeddings), tuple(elsewhere), words, after.texts
    )


def _words(comparison: Comparison, subject: Subject) -> WordList | None:
    if not comparison.words:
        return None
    first, second = read_words(comparison.words)
    return word_list(" and ".join(Path(path).name for path in comparison.words), first, second, subject)


def _write(
    found: ModelDifference,
    base: Model | Checkpoint,
    tuned: Model | Checkpoint,
    output: Path,
    comparison: Comparison,
    run: str,
) -> None:
    """Write the tables as a run of the atlas in folder `output`; the same comparison again replaces its own."""
    parts = {"base": base.fingerprint, "words": [digest(Path(path)) for path in comparison.words]}
    parts |= {name: str(getattr(comparison, name)) for name in ("groups", "most", "k", "draws", "seed", "preset")}
    identity = fingerprint((tuned.fingerprint, sorted(parts.items())))
    with claimed(output, run) as folder:
        manifest = manifest_for(tuned, folder)
        existing = manifest.runs.get(run)
        if existing is not None and existing.identity != identity:
            instead = "use --run NAME for another run in the same atlas, or another folder"
            raise Refusal(f"run {run}", why="it is of something else than this comparison", instead=instead)
        missing = {lens.name: f"this run says what changed since {found.base}" for lens in LENSES}
        card = RunCard(
            status="building", identity=identity, seed=comparison.seed, window=0, execution={}, certificate={}, absent=missing
        )
        manifest.runs[run] = card
        write_manifest(folder, manifest)
        files = [write_table(folder, name, f"{_WRITER}.{run}", rows) for name, rows in found.tables(run).items()]
        recorded = {str(file.relative_to(folder)): digest(file) for file in files}
        manifest.runs[run] = card.model_copy(update={"status": "complete", "files": recorded})
        write_manifest(folder, manifest)


_JOINED: Final = """
with one as (select unit::varchar as unit, stat::varchar as stat, site::varchar as site, value, lo, hi from base),
     other as (select unit::varchar as unit, stat::varchar as stat, site::varchar as site, value, lo, hi from tuned),
     spreads as (select stat, site, stddev_samp(value) as spread from one group by stat, site)
select one.unit as unit, one.stat as stat, one.site as site, one.value as base, other.value as tuned,
       other.value - one.value as difference, (other.value - one.value) / nullif(spread, 0) as effect,
       (other.value - one.value)
           / nullif(sqrt(power((one.hi - one.lo) / 3.92, 2) + power((other.hi - other.lo) / 3.92, 2)), 0) as z
from one join other on one.unit = other.unit and one.stat = other.stat and one.site is not distinct from other.site
     left join spreads on one.stat = spreads.stat and one.site is not distinct from spreads.site
order by stat, site, unit
"""
"""Statistics of both atlases; the standard error of each is its 95 % interval over 2 x 1.96."""


def _atlases(base: Atlas, tuned: Atlas, run: str | None) -> AtlasDifference:
    import duckdb

    one, other = base.manifest.model, tuned.manifest.model
    sizes = {key for key in one.shape if one.shape[key] != other.shape.get(key)} - {"vocab", "head", "context"}
    if one.family != other.family or sizes:
        why = f"one is of {one.name} and the other of {other.name}, whose units do not correspond"
        raise Refusal(f"{base.path} and {tuned.path}", why=why, instead="name atlases of a model and what it was fine-tuned to")
    cards = [_card(atlas, run) for atlas in (base, tuned)]
    tables = [
        atlas.sql("select unit, stat, site, value, lo, hi from unit_stats where run = ? and isfinite(value)", [name])
        for atlas, (name, _) in zip((base, tuned), cards, strict=True)
    ]
    with duckdb.connect() as connection:
        connection.register("base", tables[0])
        connection.register("tuned", tables[1])
        rows = connection.sql(_JOINED).to_arrow_table()
    texts = [(card.corpus or {}).get("fingerprint") for _, card in cards]
    return AtlasDifference(
        str(base.path), str(tuned.path), _ranked(rows), rows.num_rows,
        tables[0].num_rows - rows.num_rows, tables[1].num_rows - rows.num_rows, texts[0] == texts[1],
    )  # fmt: skip


def _card(atlas: Atlas, run: str | None) -> tuple[str, RunCard]:
    """The run that is compared: the one named, or the only one that a lens has been in."""
    runs = {name: card for name, card in atlas.manifest.runs.items() if card.depths}
    if run is None and len(runs) == 1:
        return next(iter(runs.items()))
    if run not in runs:
        why = f"there is no run {run}" if run else f"it has {len(runs)} runs"
        raise Refusal(str(atlas.path), why=why, instead=f"name one by --run: {', '.join(runs) or 'build it first'}")
    return run, runs[run]


def _ranked(rows: pa.Table) -> pa.Table:
    """With q over the units of each statistic at a site, by a normal distribution; statistics without an interval have none."""
    z = torch.tensor(rows["z"].fill_null(float("nan")).to_pylist(), dtype=torch.float64)
    p = torch.special.erfc(z.abs() / 2**0.5)
    keys = [f"{stat}\0{site}" for stat, site in zip(rows["stat"].to_pylist(), rows["site"].to_pylist(), strict=True)]
    names = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = torch.tensor([names[key] for key in keys], dtype=torch.int64)
    q = torch.full_like(p, torch.nan)
    for number in names.values():
        q[group == number] = benjamini_hochberg(p[group == number])
    effect = torch.tensor(rows["effect"].fill_null(float("nan")).to_pylist(), dtype=torch.float64).abs().nan_to_num(-1.0)
    found = (q <= _LARGEST_Q).double()
    order = torch.argsort(-effect, stable=True)
    order = order[torch.argsort(-found[order], stable=True)]
    return rows.append_column("q", pa.array(q.numpy(), pa.float64(), from_pandas=True)).take(pa.array(order.numpy()))
