"""Labels in an atlas: which units tell which label of a word, and from how few of them it can be read, layer by layer.

A lens of its own, because its windows are labelled texts: `microtome neurons MODEL TEXT --labels FILE -o ATLAS`. The methods are in `probes`.
Source: Gurnee et al. 2023, arXiv:2305.01610, section 3; Hewitt and Liang 2019, arXiv:1909.03368, section 2.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from microtome.capture.lens import Results, Rows, Run, Stage
from microtome.core import Fold, Half, Refusal
from microtome.corpus import Prompts, prompt_batch
from microtome.examples.findings import Finding, findings_table
from microtome.examples.rows import address_column, word_column
from microtome.model import Model
from microtome.neurons.basis import Neurons, neurons_of
from microtome.numerics import benjamini_hochberg, hash_parts
from microtome.probes.cases import Cases
from microtome.probes.class_moments import ClassMoments, f_statistic, mean_differences
from microtome.probes.evaluation import control_labels
from microtome.probes.folds import WordMoments, WordMomentsRecord, WordRows
from microtome.probes.labels import LabelledText, brown_class, distinct, merged, read_labels
from microtome.probes.linear import elastic_probe
from microtome.probes.sparse import Sparse, SparseProbe, probe_each, probe_first, shifted_p
from microtome.probes.words import LabelledWords, aligned
from microtome.store import fingerprint, rows_of

__all__ = ["LabelsLens", "labels_lens"]

_log = logging.getLogger(__name__)

_MOMENTS: Final = Stage(22, "labels")
_ROWS: Final = Stage(23, "labelled words")
_KS: Final = (1, 2, 4, 8, 16, 32)
_BEST: Final = 128
"""Units of a layer that a probe of all labels reads: those that differ most between labels in the discover half."""
_RANDOM: Final = 96
"""Random units of a layer, of which three sets are the control."""
_DRAWS: Final = 3
_WORDS: Final = 8192
"""Words whose activations are kept, at most."""
_FEWEST: Final = 50
"""Words that a class must have; the words of rarer ones are left out."""
_TOGETHER: Final = 150
"""Words of a document that are read together, where the model reads four times as many tokens."""
_APART: Final = 0.1
_HIGH: Final = 0.95
_LARGEST_Q: Final = 0.05
_RANDOM_UNITS: Final = "as many random units of the layer"
_RANDOM_UNIT: Final = "95 % of random units of the layer"
_CONTROL_TASK: Final = "a random label for every word"
_BROWN: Final = frozenset({"at", "nn", "np", "in", "jj", "vb"})


@dataclass(frozen=True, eq=False)
class LabelsLens:
    """Labelled words of texts that a model reads whole."""

    model: Model
    texts: tuple[LabelledText, ...]
    words: LabelledWords

    @property
    def name(self) -> str:
        """Writer of the tables."""
        return "labels"

    @cached_property
    def fingerprint(self) -> str:
        """Of all texts and labels."""
        return fingerprint(self.texts)

    @cached_property
    def _over(self) -> Prompts:
        context = self.model.shape.context
        return Prompts(prompt_batch(self.model.tokenizer, [each.text for each in self.texts], context=context))

    @cached_property
    def _bases(self) -> tuple[Neurons, ...]:
        return neurons_of(self.model.shape)

    def stages(self, run: Run) -> tuple[Stage, ...]:
        """All words for moments, then some words for probes."""
        return tuple(Stage(each.order, each.name, over=self._over) for each in (_MOMENTS, _ROWS))

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold]:
        """One for each layer."""
        if stage == _MOMENTS:
            control = torch.stack([control_labels(self.words, draw, run.seed) for draw in range(_DRAWS)])
            return {
                _named("moments", basis): WordMoments(basis.sites[0], basis.units, self.words, control) for basis in self._bases
            }
        rows = self.sampled(run.seed)
        found = {}
        for basis in self._bases:
            units = self.chosen(earlier.of(_MOMENTS, _named("moments", basis)), basis, run.seed).all
            found[_named("rows", basis)] = WordRows(basis.sites[0], units, self.words, rows)
        return found

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """probes, the label of every unit (unit_stats), and findings."""
        best = self._best_layers(results)
        probed = [_Probed.of(self, basis, run, results, best) for basis in self._bases]
        return {
            "probes": pa.concat_tables([*(each.rows(run.name) for each in probed), self._left_out(run)]),
            "unit_stats": pa.concat_tables([each.unit_rows(run.name) for each in probed]),
            "findings": findings_table(list(_findings(probed, self.words.classes)), run.name, "labels"),
        }

    def absent(self, run: Run) -> Mapping[str, str]:
        """Nothing."""
        return {}

    def _left_out(self, run: Run) -> pa.Table:
        """Rows of `probes` on labels that have too few words."""
        common = {"run": run.name, "k": 0, "layer": 0, "site": str(self._bases[0].sites[0])}
        left = self.words.rare.items()
        return rows_of(
            "probes", (common | {"label": name, "undefined": f"it has {n} words, and {_FEWEST} are needed"} for name, n in left)
        )

    def sampled(self, seed: int) -> Int64[Tensor, " row"]:
        """Words whose vectors are kept, in order: a sample, and of every label some of each half."""
        order = hash_parts(seed, torch.arange(len(self.words.y))).argsort(stable=True)
        group = (self.words.y * len(Half) + self.words.half)[order]
        some = [order[group == each][: _FEWEST // 2] for each in range(len(Half) * len(self.words.classes))]
        return torch.cat([order[:_WORDS], *some]).unique()

    def chosen(self, moments: WordMomentsRecord, basis: Neurons, seed: int) -> "_Chosen":
        """The units of a layer that are probed, by what the discover half says."""
        found = moments.task[Half.DISCOVER]
        k = min(max(_KS), basis.units)
        by_label = mean_differences(found).abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        tasks = (found, *(each[Half.DISCOVER] for each in moments.control))
        by_f = tuple(f_statistic(each).sort(descending=True, stable=True).indices[:_BEST] for each in tasks)
        random = hash_parts(seed, 1 + basis.layer, torch.arange(basis.units)).argsort(stable=True)[:_RANDOM]
        return _Chosen(by_label, by_f, random)

    def _best_layers(self, results: Results) -> list[int]:
        """Of each label the layer of the unit that differs most in the discover half."""
        found = [results.of(_MOMENTS, _named("moments", basis)).task[Half.DISCOVER] for basis in self._bases]
        differences = torch.stack([mean_differences(each).abs().amax(1) for each in found])
        return [self._bases[place].layer for place in differences.argmax(0).tolist()]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Numbers of units of a layer: the first of each label, those that tell all labels (of the words' own and of each control task), random ones."""

    by_label: Int[Tensor, "label k"]
    by_task: tuple[Int[Tensor, " unit"], ...]
    random: Int[Tensor, " unit"]

    @property
    def all(self) -> Int[Tensor, " unit"]:
        """Each once."""
        return torch.cat([self.by_label.flatten(), *self.by_task, self.random]).unique()


@dataclass(frozen=True, eq=False)
class _Probed:
    """Probes of a layer.

    `alone` has, for labels whose best unit is in this layer, the F1 that random units reach by themselves, and the p-value of the best.
    """

    basis: Neurons
    classes: tuple[str, ...]
    moments: WordMomentsRecord
    order: Int[Tensor, "label k"]
    probes: tuple[SparseProbe, ...]
    alone: Mapping[int, tuple[Float64[Tensor, " other"], float]]
    all_units: Int[Tensor, " unit"]
    accuracy: float
    majority: float
    control: tuple[float, ...]

    @staticmethod
    def of(lens: LabelsLens, basis: Neurons, run: Run, results: Results, best: Sequence[int]) -> "_Probed":
        """From what the stages have found; `best` is the layer of each label's best unit."""
        words, rows = lens.words, lens.sampled(run.seed)
        moments: WordMomentsRecord = results.of(_MOMENTS, _named("moments", basis))
        chosen = lens.chosen(moments, basis, run.seed)
        kept = chosen.all
        order, random = (torch.searchsorted(kept, each.contiguous()) for each in (chosen.by_label, chosen.random))
        x: Float[Tensor, "row unit"] = results.of(_ROWS, _named("rows", basis)).float()
        half, y = words.half[rows], words.y[rows]
        settings = Sparse(_KS, draws=_DRAWS, seed=run.seed)
        others = list(random.split(max(1, len(random) // _DRAWS)))[:_DRAWS]
        probes = tuple(probe_first(x, y == label, half, own, others, settings) for label, own in enumerate(order))
        alone = {
            label: _alone(x, y == label, half, int(order[label, 0]), random, run.seed)
            for label, layer in enumerate(best)
            if layer == basis.layer
        }
        tasks = (y, *(control_labels(words, draw, run.seed)[rows] for draw in range(_DRAWS)))
        columns = (x[:, torch.searchsorted(kept, units)] for units in chosen.by_task)
        cases = [Cases(each, y, words.classes, words.document[rows], half, words.kind[rows]).standardised() for each in columns]
        accuracy, *control = (_accuracy(each, task) for each, task in zip(cases, tasks, strict=True))
        own, units = chosen.by_label, chosen.by_task[0]
        return _Probed(basis, words.classes, moments, own, probes, alone, units, accuracy, cases[0].majority, tuple(control))

    def rows(self, run: str) -> pa.Table:
        """Rows of `probes`."""
        found: list[dict[str, object]] = []
        for name, own, probe in zip(self.classes, self.order, self.probes, strict=True):
            for place, (k, score) in enumerate(zip(probe.ks, probe.scores, strict=True)):
                random = [draw[place].f1 for draw in probe.random]
                found.append(
                    {
                        "label": name,
                        "k": k,
                        "units": self._addresses(own[:k]),
                        **{each: getattr(score, each) for each in ("f1", "precision", "recall", "mcc", "auroc")},
                        "base": probe.base,
                        **_controlled(random, _RANDOM_UNITS),
                    }
                )
        whole = {"label": "", "k": len(self.all_units), "units": self._addresses(self.all_units[:10])}
        found.append(
            whole | {"accuracy": self.accuracy, "base": self.majority, **_controlled(list(self.control), _CONTROL_TASK)}
        )
        common = {"run": run, "site": str(self.basis.sites[0]), "layer": self.basis.layer}
        return rows_of("probes", (common | row for row in found))

    def unit_rows(self, run: str) -> pa.Table:
        """Of every unit the label that it tells best in the discover half, and by how much in the confirm half, in standard deviations.

        The control is the same search with a random label for every word: the label told best there, in the direction found there.
        """
        best, sign, value = _told(self.moments.task)
        _, other, beside = _told(self.moments.control[0])
        control = beside * other * sign
        zeros = np.zeros(self.basis.units, np.int16)
        return pa.table(
            {
                "unit": address_column(self.basis, np.arange(self.basis.units)),
                "site": word_column([str(self.basis.sites[0])], zeros),
                "stat": word_column([f"tells {name}" for name in self.classes], best.numpy().astype(np.int16)),
                "value": pa.array(value.numpy(), pa.float64()),
                "control": pa.array(control.numpy(), pa.float64()),
                "control_kind": word_column([_CONTROL_TASK], zeros),
                **{name: pa.nulls(self.basis.units, pa.float64()) for name in ("lo", "hi", "q")},
                "run": word_column([run], zeros),
            }
        )

    def _addresses(self, units: Int[Tensor, " unit"]) -> list[str]:
        return [str(self.basis.address(unit)) for unit in units.tolist()]


def labels_lens(model: Model, path: Path) -> LabelsLens:
    """The labelled words of a file or folder for a model: columns of the CoNLL kind, or word/TAG; tags of the Brown corpus by their classes.

    Errors: `Refusal` for a mixture of experts, as of `read_labels` and `aligned`, and where a half of the documents lacks a class.
    """
    if model.shape.experts:
        why = "units inside experts are met by some tokens only"
        raise Refusal(f"labels for {model.name}", why=why, instead="name a model without a mixture of experts")
    texts = read_labels(path)
    tags = {label for text in texts for label in text.labels}
    if tags >= _BROWN:
        texts = read_labels(path, brown_class)
    once = distinct(texts)
    if len(once) < len(texts):
        _log.warning("%d of %d labelled sentences were there before and are left out", len(texts) - len(once), len(texts))
    if not any(count >= _FEWEST for count in _counts(once).values()):
        why = f"no label has {_FEWEST} words"
        raise Refusal(f"labels in {path.name}", why=why, instead="give more labelled text")
    texts = merged(once, min(_TOGETHER, (model.shape.context or 4 * _TOGETHER) // 4))
    words = aligned(model.tokenizer, texts, fewest=_FEWEST)
    if words.rare:
        named = ", ".join(f"{name} ({count})" for name, count in words.rare.items())
        _log.warning("labels of fewer than %d words are left out: %s", _FEWEST, named)
    require_halves(words)
    return LabelsLens(model, tuple(texts), words)


def require_halves(words: LabelledWords) -> None:
    """Refuse words of which a half has no example of a class."""
    for label, name in enumerate(words.classes):
        for side in Half:
            if int(((words.y == label) & (words.half == side)).sum()) < 2:
                why = f"the {side.name.lower()} half of the documents has fewer than two words of it"
                raise Refusal(f"label {name!r}", why=why, instead="give more documents, or leave the label out")


def _told(moments: tuple[ClassMoments, ...]) -> tuple[Int[Tensor, " unit"], Float64[Tensor, " unit"], Float64[Tensor, " unit"]]:
    """Of each unit the label that it tells best in the discover half, the sign of its difference there, and the difference in the confirm half."""
    found, confirmed = (mean_differences(moments[half]) for half in (Half.DISCOVER, Half.CONFIRM))
    best = found.abs().argmax(0)
    of_best = best[None]
    return best, found.gather(0, of_best)[0].sign(), confirmed.gather(0, of_best)[0]


def _findings(probed: Sequence[_Probed], classes: Sequence[str]) -> Iterator[Finding]:
    """Of each label the unit that tells it best, chosen in the discover half, where it beats random units; and the layer that tells all."""
    bests = [next(each for each in probed if label in each.alone) for label in range(len(classes))]
    p = torch.tensor([best.alone[label][1] for label, best in enumerate(bests)])
    q = benjamini_hochberg(p)
    for label, (name, best) in enumerate(zip(classes, bests, strict=True)):
        probe = best.probes[label]
        alone, chance = probe.scores[0].f1, float(best.alone[label][0].quantile(_HIGH))
        if alone - chance < _APART or float(q[label]) > _LARGEST_Q:
            continue
        many = probe.scores[-1].f1
        unit = str(best.basis.address(int(best.order[label, 0])))
        sentence = (
            f"{unit} tells the label ‘{name}’ by itself: F1 {alone:.2f} on held-out documents (95 % of random units of its layer: up to "
            f"{chance:.2f}), {probe.ks[-1]} units of the layer reach {many:.2f}; {100 * probe.base:.0f} % of words have the label"
        )
        yield Finding("label", unit, sentence, alone, chance, _RANDOM_UNIT, float(q[label]), float(p[label]))
    # no layer is chosen here: the best of many by its own held-out accuracy would be too good
    ordered = sorted(probed, key=lambda each: each.accuracy)
    low, top = ordered[0], ordered[len(ordered) // 2]
    sentence = (
        f"labels are told from {len(top.all_units)} units of a layer: {100 * top.accuracy:.0f} % of held-out words are right in the median layer, "
        f"{top.basis.layer} (the commonest label: {100 * top.majority:.0f} %; with random labels for words: {100 * float(np.mean(top.control)):.0f} %), "
        f"{100 * low.accuracy:.0f} to {100 * ordered[-1].accuracy:.0f} % over all {len(ordered)}, most in layer {ordered[-1].basis.layer}"
    )
    yield Finding("labels", "", sentence, top.accuracy, float(np.mean(top.control)), _CONTROL_TASK)


def _accuracy(cases: Cases, y: Int[Tensor, " row"]) -> float:
    """Of a probe of all labels `y`, on the confirm half."""
    mine = cases.half == Half.DISCOVER
    probe = elastic_probe(cases.x[mine], y[mine], len(cases.classes), most=200)
    return float((probe(cases.x[~mine]) == y[~mine]).double().mean())


def _alone(
    x: Float[Tensor, "row unit"],
    y: Bool[Tensor, " row"],
    half: Int[Tensor, " row"],
    unit: int,
    random: Int[Tensor, " k"],
    seed: int,
) -> tuple[Float64[Tensor, " other"], float]:
    """The F1 of random units by themselves, `unit` left out, and the p-value of `unit`."""
    others = probe_each(x, y, half, random[random != unit])
    return torch.tensor([each.f1 for each in others], dtype=torch.float64), shifted_p(x[:, unit], y, half, seed=seed)


def _counts(texts: Sequence[LabelledText]) -> dict[str, int]:
    labels, counts = np.unique([label for text in texts for label in text.labels], return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def _controlled(draws: Sequence[float], kind: str) -> dict[str, object]:
    return {"control": float(np.mean(draws)), "control_lo": min(draws), "control_hi": max(draws), "control_kind": kind}


def _named(what: str, basis: Neurons) -> str:
    return f"labels.{what}.{basis.layer}"
