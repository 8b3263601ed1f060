"""Where in a model an answer is restored: the subject's embeddings are blurred, and single states put back as they were.

Source: Meng et al. 2022, arXiv:2202.05262, section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core import Batch, Refusal, Role, Site
from microtome.intervene.answers import Question, answers
from microtome.intervene.changes import Noise, Set
from microtome.intervene.edits import Edit, edited
from microtome.intervene.tokens import Masked
from microtome.model import Model, capture

__all__ = ["Blur", "Restored", "Trace", "causal_trace", "subject_deviation"]

Restored = Literal["hidden", "mlp", "attention"]
_SITES: Final[dict[Restored, str]] = {"hidden": "resid_post", "mlp": "mlp_out", "attention": "attn_out"}
_EMBED: Final = Site("embed")


@dataclass(frozen=True)
class Blur:
    """Noise of this deviation at the embeddings of the subject, drawn so many times: in the paper 3 times `subject_deviation`, 10 draws."""

    deviation: float
    draws: int = 10
    seed: int = 1


@dataclass(frozen=True, eq=False)
class Trace:
    """One prompt's answer: as it is, with a blurred subject, and with states at (layer, token) restored in the blurred run.

    `noised` and `restored` are by draw of the noise. The total effect is clean - noised, the indirect effect of a place restored - noised.
    """

    clean: float
    noised: Float[Tensor, " draw"]
    restored: Float[Tensor, "layer token draw"]

    @property
    def total(self) -> float:
        """What the blur takes off the answer, mean over draws."""
        return self.clean - float(self.noised.mean())

    @property
    def indirect(self) -> Float[Tensor, "layer token"]:
        """What restoring one place brings back, mean over draws."""
        return (self.restored - self.noised).mean(-1)


def subject_deviation(model: Model, batch: Batch, subject: Bool[Tensor, "window token"]) -> float:
    """Standard deviation of the embeddings of all subjects' tokens, over tokens and coordinates: the unit of the blur.

    Errors: `Refusal` where there is no subject token.
    """
    found = capture(model, batch, [_EMBED])[_EMBED][subject & (batch.roles != Role.PAD)]
    if not found.numel():
        raise Refusal("the embeddings of the subjects", why="no token is one", instead="mark the tokens of each subject")
    return float(found.float().std())


def causal_trace(
    model: Model,
    batch: Batch,
    question: Question,
    subject: Bool[Tensor, "window token"],
    blur: Blur,
    *,
    kind: Restored = "hidden",
    width: int = 10,
    at_once: int = 64,
) -> list[Trace]:
    """Blur the subject of each prompt at its embeddings, and restore each place of a kind, layer by layer.

    `hidden` restores the stream after one layer, `mlp` and `attention` what `width` layers about the named one add.
    Errors: `Refusal` for a prompt without a subject, and for models whose embeddings or states cannot be changed.
    Cost: draws tokens layers passes for each prompt, in batches of `at_once` windows.
    """
    traces = []
    for row in range(len(batch.ids)):
        own = batch.alone(row)
        where = subject[row : row + 1, : own.ids.shape[1]]
        if not bool(where.any()):
            raise Refusal(f"prompt {row}", why="none of its tokens is marked as the subject", instead="mark some")
        asked = question.take(torch.tensor([row]))
        traces.append(_trace(model, own, asked, where, blur, at_once=at_once, groups=_groups(model, kind, width)))
    return traces


def _groups(model: Model, kind: Restored, width: int) -> list[list[Site]]:
    """What is restored for each layer."""
    name, layers = _SITES[kind], model.shape.layers
    reach = [range(layer, layer + 1) for layer in range(layers)]
    if kind != "hidden":
        reach = [range(max(0, layer - width // 2), min(layers, layer - width // 2 + width)) for layer in range(layers)]
    return [[Site(name, layer) for layer in some] for some in reach]


def _trace(
    model: Model,
    own: Batch,
    question: Question,
    subject: Bool[Tensor, "one token"],
    blur: Blur,
    *,
    at_once: int,
    groups: Sequence[Sequence[Site]],
) -> Trace:
    """One prompt. Draws are windows of different numbers, so that the noise of each is its own."""
    tokens, noise = own.ids.shape[1], Noise(blur.deviation, blur.seed)
    sites = sorted({site for group in groups for site in group})
    held = {site: value[0].clone() for site, value in capture(model, own, sites).items()}
    clean = float(answers(model, own, question)[0])

    def run(restore: Sequence[Site], token: Tensor, draw: Tensor) -> Tensor:
        rows = torch.zeros(len(draw), dtype=torch.int64)
        batch, mask = replace(own.take(rows), window=draw.to(own.window)), subject.expand(len(draw), -1)
        at = Masked(torch.arange(tokens) == token[:, None])
        edits = [Edit(_EMBED, noise, tokens=Masked(mask.cpu())), *(Edit(site, Set(held[site]), tokens=at) for site in restore)]
        with edited(model, batch, edits):
            return answers(model, batch, question.take(rows)).cpu()

    every = torch.arange(blur.draws)
    noised = run((), torch.full((blur.draws,), -1), every)
    restored = []
    for group in groups:
        pairs = torch.cartesian_prod(torch.arange(tokens), every)
        found = torch.cat([run(group, *some.T) for some in pairs.split(at_once)])
        restored.append(found.view(tokens, blur.draws))
    return Trace(clean, noised, torch.stack(restored))
