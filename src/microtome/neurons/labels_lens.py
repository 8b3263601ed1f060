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
from jaxtyping import Float, Int, Int64
from torch import Tensor

from microtome.capture.lens import Results, Rows, Run, Stage
from microtome.core import Fold, Half, Refusal
from microtome.corpus import Prompts, prompt_batch
from microtome.examples.rows import address_column, word_column
from microtome.model import Model
from microtome.neurons.basis import Neurons, neurons_of
from microtome.neurons.findings import Finding, findings_table
from microtome.numerics import hash_parts
from microtome.probes.cases import Cases
from microtome.probes.class_moments import ClassMoments, f_statistic, mean_differences
from microtome.probes.evaluation import control_labels
from microtome.probes.folds import WordMoments, WordMomentsRecord, WordRows
from microtome.probes.labels import LabelledText, brown_class, merged, read_labels
from microtome.probes.linear import elastic_probe
from microtome.probes.sparse import Sparse, SparseProbe, probe_first
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
_RANDOM_UNITS: Final = "as many random units of the layer"
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
            control = control_labels(self.words, 0, run.seed)
            return {
                _named("moments", basis): WordMoments(basis.sites[0], basis.units, self.words, control) for basis in self._bases
            }
        rows = self.sampled(run.seed)
        found = {}
        for basis in self._bases:
            units = torch.cat(self.chosen(earlier.of(_MOMENTS, _named("moments", basis)), basis, run.seed)).unique()
            found[_named("rows", basis)] = WordRows(basis.sites[0], units, self.words, rows)
        return found

    def tables(self, run: Run, results: Results) -> Mapping[str, Rows]:
        """probes, the label of every unit (unit_stats), and findings."""
        probed = [_Probed.of(self, basis, run, results) for basis in self._bases]
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

    def chosen(self, moments: WordMomentsRecord, basis: Neurons, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Units of each label, (label and place), of all labels, and random ones: numbers of units of the layer."""
        found = moments.task[Half.DISCOVER]
        k = min(max(_KS), basis.units)
        by_label = mean_differences(found).abs().sort(dim=1, descending=True, stable=True).indices[:, :k]
        by_f = f_statistic(found).sort(descending=True, stable=True).indices[:_BEST]
        random = hash_parts(seed, 1 + basis.layer, torch.arange(basis.units)).argsort(stable=True)[:_RANDOM]
        return by_label.flatten(), by_f, random


@dataclass(frozen=True, eq=False)
class _Probed:
    """Probes of a layer."""

    basis: Neurons
    classes: tuple[str, ...]
    moments: WordMomentsRecord
    order: Int[Tensor, "label k"]
    probes: tuple[SparseProbe, ...]
    all_units: Int[Tensor, " unit"]
    accuracy: float
    majority: float
    control: tuple[float, ...]

    @staticmethod
    def of(lens: LabelsLens, basis: Neurons, run: Run, results: Results) -> "_Probed":
        """From what the stages have found."""
        words, rows = lens.words, lens.sampled(run.seed)
        moments: WordMomentsRecord = results.of(_MOMENTS, _named("moments", basis))
        chosen = lens.chosen(moments, basis, run.seed)
        kept = torch.cat(chosen).unique()
        by_label, by_f, random = (torch.searchsorted(kept, each) for each in chosen)
        x: Float[Tensor, "row unit"] = results.of(_ROWS, _named("rows", basis)).float()
        half, y = words.half[rows], words.y[rows]
        order = by_label.view(len(words.classes), -1)
        settings = Sparse(_KS, draws=_DRAWS, seed=run.seed)
        others = list(random.split(max(1, len(random) // _DRAWS)))[:_DRAWS]
        probes = tuple(probe_first(x, y == label, half, own, others, settings) for label, own in enumerate(order))
        cases = Cases(x[:, by_f], y, words.classes, words.document[rows], half, words.kind[rows]).standardised()
        tasks = (cases.y, *(control_labels(words, draw, run.seed)[rows] for draw in range(_DRAWS)))
        accuracy, *control = (_accuracy(cases, task) for task in tasks)
        own = chosen[0].view(len(words.classes), -1)
        return _Probed(basis, words.classes, moments, own, probes, chosen[1], accuracy, cases.majority, tuple(control))

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

        The control is the same with a random label for every word, of the same class.
        """
        best = mean_differences(self.moments.task[Half.DISCOVER]).abs().argmax(0)
        value, control = (
            mean_differences(_confirmed(each)).gather(0, best[None])[0] for each in (self.moments.task, self.moments.control)
        )
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
    if not any(count >= _FEWEST for count in _counts(texts).values()):
        why = f"no label has {_FEWEST} words"
        raise Refusal(f"labels in {path.name}", why=why, instead="give more labelled text")
    texts = merged(texts, min(_TOGETHER, (model.shape.context or 4 * _TOGETHER) // 4))
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


def _findings(probed: Sequence[_Probed], classes: Sequence[str]) -> Iterator[Finding]:
    """Of each label the unit that tells it best, chosen in the discover half, where it beats random units; and the layer that tells all."""
    for label, name in enumerate(classes):
        differences = torch.stack([mean_differences(each.moments.task[Half.DISCOVER])[label].abs().amax() for each in probed])
        best = probed[int(differences.argmax())]
        probe = best.probes[label]
        alone, chance = probe.scores[0].f1, max(draw[0].f1 for draw in probe.random)
        if alone - chance < _APART:
            continue
        many = probe.scores[-1].f1
        unit = str(best.basis.address(int(best.order[label, 0])))
        sentence = (
            f"{unit} tells the label ‘{name}’ by itself: F1 {alone:.2f} on held-out documents (random units of its layer: at most "
            f"{chance:.2f}), {probe.ks[-1]} units of the layer reach {many:.2f}; {100 * probe.base:.0f} % of words have the label"
        )
        yield Finding("label", unit, sentence, alone, chance, _RANDOM_UNITS)
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


def _confirmed(moments: tuple[ClassMoments, ...]) -> ClassMoments:
    return moments[Half.CONFIRM]


def _counts(texts: Sequence[LabelledText]) -> dict[str, int]:
    labels, counts = np.unique([label for text in texts for label in text.labels], return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def _controlled(draws: Sequence[float], kind: str) -> dict[str, object]:
    return {"control": float(np.mean(draws)), "control_lo": min(draws), "control_hi": max(draws), "control_kind": kind}


def _named(what: str, basis: Neurons) -> str:
    return f"labels.{what}.{basis.layer}"
