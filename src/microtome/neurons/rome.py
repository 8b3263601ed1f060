"""ROME: a fact is given another answer by a rank-one change of what one layer writes at the subject's last token.

The layer's W_out is taken as a memory of keys and values: k* is what the subject's last token has there, v* what would have to be written for
the new answer, found by gradient descent, and W' = W + C^-1 k* (v* - W k*)' / (k*' C^-1 k*) writes it for k* exactly, and for other keys, whose
second moment is C, as little else as can be. Where in a model a fact is restored is traced in `intervene.tracing`; units that know a fact
are found in `knowledge`, and turned in `knowledge_edits`.

Axes of this module: `prefix` is a text put before a prompt, `step` a step of the descent.

Source: Meng et al. 2022, arXiv:2202.05262, section 3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from microtome.core import CONTENT, Batch, Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.intervene import Add, Edit, Question, RankOne, Sampling, WeightEdit, edited, generate, reweighted
from microtome.intervene.answers import logits_at, single_token
from microtome.intervene.tokens import Masked
from microtome.model import Model, capture
from microtome.neurons.facts import AskedFact, subject_tokens
from microtome.numerics import gram

__all__ = [
    "MENG",
    "Descent",
    "RomeEdit",
    "RomeScores",
    "random_prefixes",
    "random_rome",
    "rome_edit",
    "rome_scores",
    "second_moment",
]


@dataclass(frozen=True)
class Descent:
    """How v* = W k* + b + delta is looked for: `steps` of Adam on the loss of the new answer, until that is below `enough`.

    The loss is -log P(new) over prefixes, plus `divergence` KL(clean || edited) behind `essence`, plus `decay` |delta| / |v|^2; |delta| is kept
    to `clamp` |v|, v being what the layer writes for k* before.
    """

    steps: int = 20
    rate: float = 0.5
    divergence: float = 0.0625
    decay: float = 0.5
    clamp: float = 4.0
    enough: float = 0.05
    essence: str = "{subject} is a"


MENG: Final = Descent()
"""As the code of Meng et al. 2022 has it for GPT-2 XL, in layer 17, with 21 prefixes and C over 100,000 texts."""


@dataclass(frozen=True, eq=False)
class RomeEdit:
    """The edit, with k*, what the layer writes for it before and after (its bias included), and the loss at each step.

    `change` holds inside `intervene.reweighted`. `ridge` is what was added to C's diagonal.
    """

    change: RankOne
    key: Float[Tensor, " unit"]
    before: Float[Tensor, " d_model"]
    value: Float[Tensor, " d_model"]
    losses: Float[Tensor, " step"]
    ridge: float


@dataclass(frozen=True)
class RomeScores:
    """Shares of prompts after an edit; None where there is none to ask.

    Efficacy and paraphrase are of the edited prompt and of the fact's others: whether the new answer is more probable than the old one.
    Neighbourhood is of the prompts of other facts: whether their own answer is more probable than the new one.
    """

    efficacy: float
    paraphrase: float | None
    neighbourhood: float | None

    @property
    def score(self) -> float | None:
        """The harmonic mean of the three, 0 where one is 0; None where one is."""
        shares = (self.efficacy, self.paraphrase, self.neighbourhood)
        if any(share is None for share in shares):
            return None
        return 0.0 if 0.0 in shares else 3 / sum(1 / share for share in shares if share is not None)


@dataclass(frozen=True, eq=False)
class _Prompts:
    """Prompts that go through the model together, their subjects' last tokens, and where each ends."""

    batch: Batch
    last: Bool[Tensor, "window token"]
    question: Question


def second_moment(
    model: Model, batches: Iterable[Batch], layer: int, roles: frozenset[Role] = CONTENT
) -> Float64[Tensor, "unit unit"]:
    """C: the mean of h h' over tokens of these roles, uncentred; first tokens of windows, whose activations are massive, are left out.

    Errors: `Refusal` where no token is counted. Cost: one pass over the text to the layer, and 2 d_mlp^2 operations a token.
    """
    site, state = Site("mlp_act", layer), gram.init(model.shape.d_mlp, device=model.device)
    for batch in batches:
        gram.update(state, capture(model, batch, [site])[site].flatten(2), batch.counted(roles))
    found = gram.result(state)
    if not found.count:
        raise Refusal("second moments", why="no token is counted", instead="give batches with tokens of the roles asked for")
    return found.second.cpu()


def random_prefixes(model: Model, lengths: Sequence[int] = (5, 10), each: int = 10, seed: int = 0) -> tuple[str, ...]:
    """Texts to put before prompts: none, and what the model writes itself behind "The", so many of each length.

    Errors: `Refusal` for a model that writes no text.
    """
    texts = [""]
    for length in lengths:
        batch = prompt_batch(model.tokenizer, ["The"] * each, device=model.device)
        written = generate(model, batch, most=length, sampling=Sampling(seed=seed + length), stop=())
        texts += [f"The{text.rstrip()}. " for text in written.texts]
    return tuple(texts)


def rome_edit(
    model: Model,
    asked: AskedFact,
    new: str,
    layer: int,
    second: Float64[Tensor, "_ _"],
    *,
    prefixes: Sequence[str] = ("",),
    how: Descent = MENG,
    prompt: int = 0,
) -> RomeEdit:
    """The rank-one edit of W_out of `layer` after which the fact's prompt of this number is answered by `new`.

    C is made regular, where it is not, by a ridge of 1e-6 of its mean eigenvalue. The identity W' k* = v* holds to rounding whatever C is.
    Errors: `Refusal` for an encoder, a mixture of experts, a new answer of several tokens, and C of another size or with no finite inverse.
    Cost: a forward and a backward pass over all prefixes for each step.
    """
    if not model.shape.causal or model.shape.experts:
        why = "it is no decoder" if not model.shape.causal else "its units are inside experts"
        raise Refusal(f"ROME in {model.name}", why=why, instead="name a decoder without a mixture of experts")
    text, subject = asked.texts[prompt], asked.fact.subject
    token = torch.tensor(single_token(model, new), device=model.device)
    prompts = _prompts(model, [prefix + text for prefix in prefixes], subject, token)
    essence = _prompts(model, [how.essence.replace("{subject}", subject)], subject, token)
    site, out = Site("mlp_act", layer), Site("mlp_out", layer)
    held = capture(model, prompts.batch, [site, out])
    key = held[site].flatten(2)[prompts.last].float().mean(0).cpu()
    before = held[out][prompts.last].float().mean(0).cpu()
    delta, losses = _descended(model, prompts, essence, out, before, how)
    left, ridge = _left(key, second)
    return RomeEdit(RankOne("W_out", layer, left, delta), key, before, before + delta, losses, ridge)


def random_rome(found: RomeEdit, draws: int = 20, seed: int = 0) -> list[RomeEdit]:
    """The control: the same edit by random vectors as long as what it adds, so that it is not the change's size that answers."""
    generator = torch.Generator().manual_seed(seed)
    length, size = found.change.right.norm(), len(found.change.right)
    drawn = torch.nn.functional.normalize(torch.randn(draws, size, generator=generator), dim=1) * length
    return [replace(found, change=replace(found.change, right=each), value=found.before + each) for each in drawn]


def rome_scores(
    model: Model,
    asked: AskedFact,
    new: str,
    edits: Sequence[WeightEdit] = (),
    neighbours: Sequence[AskedFact] = (),
    *,
    prompt: int = 0,
) -> RomeScores:
    """What edits make of the edited prompt, the fact's other prompts, and of facts of other subjects; without edits, what is so before.

    In CounterFact neighbours have the fact's old answer; here they are facts of any answer but the new one.
    Source: Meng et al. 2022, arXiv:2202.05262.
    """
    token = single_token(model, new)

    def wins(each: AskedFact) -> list[bool]:
        logits = logits_at(model, each.batch, each.question.place)
        own = logits.gather(1, each.question.token[:, None])[:, 0]
        return (logits[:, token] > own).tolist()

    with reweighted(model, edits):
        mine = wins(asked)
        theirs = [win for each in neighbours if int(each.question.token[0]) != token for win in wins(each)]
    others = mine[:prompt] + mine[prompt + 1 :]
    return RomeScores(
        efficacy=float(mine[prompt]),
        paraphrase=sum(others) / len(others) if others else None,
        neighbourhood=1 - sum(theirs) / len(theirs) if theirs else None,
    )


def _prompts(model: Model, texts: Sequence[str], subject: str, token: Tensor) -> _Prompts:
    batch = prompt_batch(model.tokenizer, texts, context=model.shape.context, device=model.device)
    inside = subject_tokens(model, texts, subject).to(model.device)
    places = torch.arange(inside.shape[1], device=model.device)
    last = places == (inside * places).argmax(1)[:, None]
    return _Prompts(batch, last, Question((batch.roles != Role.PAD).sum(1) - 1, token.expand(len(texts))))


def _descended(
    model: Model, prompts: _Prompts, essence: _Prompts, out: Site, value: Float[Tensor, " d_model"], how: Descent
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " step"]]:
    """What is added to the value, and the losses on the way: of each step before it is made."""
    delta = torch.zeros(len(value), device=model.device, requires_grad=True)
    adam, length = torch.optim.Adam([delta], lr=how.rate), float(value.norm())
    with torch.no_grad():
        clean = logits_at(model, essence.batch, essence.question.place).clone().log_softmax(1)
    losses: list[float] = []
    for _ in range(how.steps):
        loss = -_logs(model, prompts, out, delta).gather(1, prompts.question.token[:, None]).mean()
        after = _logs(model, essence, out, delta)
        loss = loss + how.divergence * (clean.exp() * (clean - after)).sum(1).mean() + how.decay * delta.norm() / length**2
        losses.append(float(loss.detach()))
        if losses[-1] < how.enough:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, how.clamp * length / max(float(delta.norm()), 1e-30))
    return delta.detach().cpu(), torch.tensor(losses)


def _logs(model: Model, prompts: _Prompts, out: Site, delta: Float[Tensor, " d_model"]) -> Float[Tensor, "window vocab"]:
    """Log-probabilities at the ends of prompts while delta is added at their subjects' last tokens."""
    with edited(model, prompts.batch, [Edit(out, Add(delta), tokens=Masked(prompts.last))]):
        return logits_at(model, prompts.batch, prompts.question.place, gradients="kept").log_softmax(1)


def _left(key: Float[Tensor, " unit"], second: Float64[Tensor, "_ _"]) -> tuple[Float[Tensor, " unit"], float]:
    """C^-1 k* / (k*' C^-1 k*), and the ridge that C needed: none, or 1e-6 of its mean eigenvalue."""
    if second.shape != (len(key), len(key)) or not bool(torch.isfinite(second).all()):
        why = f"it is {tuple(second.shape)}, and keys have {len(key)} units, or it is not finite"
        raise Refusal("the second moment C", why=why, instead="take it from `second_moment`, of the same model and layer")
    exact, mean = key.double(), float(second.diagonal().mean())
    if not float(exact.norm()) or not mean > 0:
        why = "the subject's key, or all of C, is zero"
        raise Refusal("the inverse of C", why=why, instead="take C from more text, or another layer")
    values = torch.linalg.eigvalsh(second)
    ridge = 0.0 if float(values[0]) > 1e-9 * float(values[-1]) else 1e-6 * mean
    solved = torch.linalg.solve(second + ridge * torch.eye(len(key), dtype=torch.float64), exact)
    return (solved / (solved @ exact)).float(), ridge
