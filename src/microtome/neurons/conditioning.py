"""Text written with the experts of a concept clamped to what they respond with: does the concept come, and at what cost?

Finding experts belongs in `experts`, writing and edits in `intervene`.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Batch, Refusal, Site, UnitAddress
from microtome.intervene import EVERY, Edit, Sampling, Set, Tokens, generate
from microtome.intervene.texts import distinct, perplexities, self_bleu, share_with
from microtome.model import Model
from microtome.neurons.experts import Experts

__all__ = ["Conditioned", "Texts", "clamps", "conditioned", "parity_point"]

_SAMPLING: Final = Sampling(temperature=1.0, top_p=0.9)


@dataclass(frozen=True)
class Texts:
    """What was written: the share of texts with a word of the concept, median perplexity by the clean model, distinct-2, self-BLEU-3."""

    share: float
    perplexity: float
    distinct: float
    self_bleu: float
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Conditioned:
    """Texts with the first `count` experts clamped, and the control: as many random units of the same layers at their own medians.

    Medians are those of the texts of the concept, so the control differs in who the units are alone.
    """

    count: int
    experts: Texts
    control: Texts


def clamps(units: Sequence[UnitAddress], values: Float[Tensor, " k"], tokens: Tokens = EVERY) -> list[Edit]:
    """Edits that set units to values, one for each layer.

    Errors: `Refusal` for a unit that is named twice.
    """
    by_layer: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for unit, value in zip(units, values.tolist(), strict=True):
        by_layer[unit.layer or 0].append((unit.index, value))
    return [
        Edit(Site("mlp_act", layer), Set(torch.tensor([value for _, value in rows])), [unit for unit, _ in rows], tokens)
        for layer, rows in sorted(by_layer.items())
    ]


def conditioned(
    model: Model,
    batch: Batch,
    experts: Experts,
    words: Sequence[str],
    counts: Sequence[int],
    *,
    most: int = 30,
    sampling: Sampling = _SAMPLING,
) -> list[Conditioned]:
    """Write behind the prompts of `batch` with more and more experts clamped at every token, prompt included; count 0 is the model as it is.

    `words` are what shows that the concept came; perplexity is by the clean model, so it says what the clamping costs.
    Source: Suau et al. 2022, arXiv:2110.02802.
    Errors: `Refusal` for more units than there are experts, and as of `generate`.
    Cost: two texts for each prompt and count, and reading them once.
    """
    if not counts or min(counts) < 0 or max(counts) > len(experts.units):
        why = f"{len(experts.units)} experts were chosen"
        raise Refusal(f"clamping {tuple(counts)} units", why=why, instead="ask for as many, or choose more experts")

    def written(edits: Sequence[Edit]) -> Texts:
        out = generate(model, batch, edits, most=most, sampling=sampling)
        fluency = perplexities(model, batch, out)
        median = float(fluency[fluency.isfinite()].median()) if bool(fluency.isfinite().any()) else float("nan")
        return Texts(share_with(out.texts, words), median, distinct(out.texts), self_bleu(out.texts), out.texts)

    rows = []
    for count in counts:
        mine = written(clamps(experts.units[:count], experts.value[:count]))
        control = written(clamps(experts.control[:count], experts.control_value[:count])) if count else mine
        rows.append(Conditioned(count, mine, control))
    return rows


def parity_point(counts: Sequence[int], one: Sequence[float], other: Sequence[float]) -> float | None:
    """At how many clamped units the shares of texts with words of two concepts are equal, linear between counts; None where they never are.

    Source: Suau et al. 2022, arXiv:2110.02802.
    """
    apart = [a - b for a, b in zip(one, other, strict=True)]
    for row, (k, d) in enumerate(zip(counts, apart, strict=True)):
        if d == 0:
            return float(k)
        if row + 1 < len(apart) and d * apart[row + 1] < 0:
            return k + (counts[row + 1] - k) * d / (d - apart[row + 1])
    return None
