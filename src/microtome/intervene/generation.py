"""Text that a model goes on to write while edits hold: steering, token by token, with what it read kept in its cache.

Every step is the model's own forward pass. What the texts are worth is measured in `effects`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Batch, Refusal, Role
from microtome.intervene.edits import Edit, edited_step
from microtome.model import Model, forward
from microtome.model.observe import inputs_of
from microtome.numerics import hash_parts, uniform

__all__ = ["GREEDY", "Sampling", "Written", "generate", "text_loss"]

_TINY: Final = 2.0**-54


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: the most probable at `temperature` 0, else from softmax(logits / temperature), its nucleus of `top_p`.

    A draw depends on seed, window and place alone, so it is the same whatever the batch.
    Errors: `Refusal` for a negative temperature and for no nucleus.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1:
            raise Refusal(
                f"sampling at temperature {self.temperature} from the first {self.top_p}",
                why="nothing can be drawn so",
                instead="give a temperature of 0 or more, and a share between 0 and 1",
            )

    def draw(self, logits: Float[Tensor, "window vocab"], window: Int[Tensor, " window"], place: int) -> Int[Tensor, " window"]:
        """A token for each window, by the largest of logits plus Gumbel noise."""
        if self.temperature == 0:
            return logits.argmax(1)
        scaled = logits.double() / self.temperature
        order = scaled.sort(descending=True, stable=True)
        before = order.values.softmax(1).cumsum(1).roll(1, 1)
        before[:, 0] = 0
        scaled = scaled.scatter(1, order.indices, order.values.masked_fill(before >= self.top_p, -torch.inf))
        token = torch.arange(logits.shape[1], device=logits.device)
        chance = uniform(hash_parts(hash_parts(self.seed, window, place)[:, None], token)).clamp(min=_TINY)
        return (scaled - torch.log(-torch.log(chance))).argmax(1)


GREEDY: Final = Sampling(temperature=0.0)


@dataclass(frozen=True, eq=False)
class Written:
    """What was written behind each prompt: ids, the text they spell, and the log-probability of each token when it was drawn."""

    ids: tuple[Int[Tensor, " _"], ...]
    texts: tuple[str, ...]
    log_probability: tuple[Float[Tensor, " _"], ...]


def generate(
    model: Model,
    batch: Batch,
    edits: Iterable[Edit] = (),
    *,
    most: int = 40,
    sampling: Sampling = GREEDY,
    stop: Sequence[int] | None = None,
    cache: Literal["kept", "none"] = "kept",
) -> Written:
    """Go on writing behind each window of `batch`, at most `most` tokens, while `edits` hold; `stop` tokens (None: the model's own) end it.

    Places of edits are those in the whole text, and their tokens may be those of the prompt, the generated ones, or all (`tokens`). A pass
    reads the new token only and remembers keys and values of the others as the edits have made them: to edit what is remembered again
    would be to edit it twice. With the cache "none" every step reads the whole text, which comes to the same and costs more.
    Windows of one length go through the model together, so that there is no padding.
    Errors: `Refusal` for a model that writes no text, and for a text that would be longer than the model can read.
    """
    if not model.shape.causal or model.head is None or model.head.kind != "causal":
        raise Refusal(f"generation by {model.name}", why="it does not predict the next token", instead="name a decoder")
    if not isinstance(most, int) or most < 1:
        raise Refusal(f"{most} tokens behind the prompts", why="that is no number of tokens", instead="ask for 1 or more")
    if stop is not None and not all(isinstance(each, int) for each in stop):
        raise Refusal(f"stops {stop}", why="they are no ids of tokens", instead="give numbers, as `single_token` does")
    lengths = (batch.roles != Role.PAD).sum(1)
    longest, context = int(lengths.max()), model.shape.context
    if context is not None and longest + most > context:
        why = f"the longest prompt has {longest} tokens, and {model.name} reads {context}"
        raise Refusal(f"{most} tokens behind the prompts", why=why, instead=f"ask for {max(context - longest, 0)} or fewer")
    ends = torch.tensor(sorted(_stops(model) if stop is None else stop), dtype=torch.int64, device=batch.ids.device)
    given = list(edits)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0]
        some = batch.take(rows)
        some = replace(some, ids=some.ids[:, :length], roles=some.roles[:, :length], targets=None)
        written = _together(model, some, given, most, sampling, ends, cache)
        found |= dict(zip(rows.tolist(), written, strict=True))
    ids, scores = zip(*(found[row] for row in range(len(lengths))), strict=True)
    texts = [_spelled(model, each) for each in ids]
    return Written(ids, tuple(texts), scores)


def text_loss(model: Model, batch: Batch, ids: Sequence[Int[Tensor, " _"]]) -> Float[Tensor, " window"]:
    """Mean loss of what was written behind each prompt, in nats a token, by the model as it is (or as the edits in force have made it).

    Errors: `Refusal` for a text of no token. Cost: one pass for each text.
    """
    if len(ids) != len(batch.ids) or not all(len(own) for own in ids):
        why = f"there are {len(batch.ids)} prompts, and of {len(ids)} texts some are empty"
        raise Refusal("the loss of texts", why=why, instead="give a text of a token or more for each prompt")
    found = []
    for row, own in enumerate(ids):
        alone = batch.alone(row)
        read, given = alone.ids.shape[1], own.to(alone.ids.device)[None]
        roles = torch.full_like(given, int(Role.CONTENT), dtype=torch.uint8)
        whole = replace(alone, ids=torch.cat([alone.ids, given], 1), roles=torch.cat([alone.roles, roles], 1))
        logits = forward(model, whole)["logits"][0, read - 1 : -1].float()
        found.append(torch.nn.functional.cross_entropy(logits, given[0]))
    return torch.stack(found)


def _together(
    model: Model,
    batch: Batch,
    edits: Sequence[Edit],
    most: int,
    sampling: Sampling,
    ends: Int[Tensor, " stop"],
    cache: Literal["kept", "none"],
) -> list[tuple[Int[Tensor, " token"], Float[Tensor, " token"]]]:
    """Windows of one length."""
    read, whole, step, past = batch.ids.shape[1], batch, batch, None
    done = torch.zeros(len(batch.ids), dtype=torch.bool, device=batch.ids.device)
    scores: list[Tensor] = []
    lengths = torch.full((len(batch.ids),), most, device=batch.ids.device)
    for count in range(most):
        with edited_step(model, whole, step, edits, generated=count):
            output = _pass(model, step, past, cache)
        logits = output.logits[:, -1].float()
        token = sampling.draw(logits, batch.window, read + count)
        scores.append(logits.log_softmax(1).gather(1, token[:, None])[:, 0].cpu())
        whole = _longer(whole, token)
        stopped = torch.isin(token, ends) & ~done
        lengths[stopped], done = count, done | stopped
        if bool(done.all()):
            break
        past = output.past_key_values if cache == "kept" else None
        step = replace(whole, ids=whole.ids[:, -1:], roles=whole.roles[:, -1:]) if cache == "kept" else whole
    ids, table = whole.ids[:, read:].cpu(), torch.stack(scores, 1)
    return [(own[:n], score[:n]) for own, score, n in zip(ids, table, lengths.tolist(), strict=True)]


def _pass(model: Model, step: Batch, past: Any, cache: Literal["kept", "none"]) -> Any:
    given = {name: value for name, value in inputs_of(model, step).items() if name != "use_cache"}
    with torch.inference_mode():
        return model.module(**given, use_cache=cache == "kept", past_key_values=past)


def _longer(batch: Batch, token: Int[Tensor, " window"]) -> Batch:
    content = torch.full_like(batch.roles[:, :1], int(Role.CONTENT))
    return replace(batch, ids=torch.cat([batch.ids, token[:, None]], 1), roles=torch.cat([batch.roles, content], 1))


def _stops(model: Model) -> set[int]:
    """Tokens that end a text by the model's configuration."""
    ends = getattr(model.config, "eos_token_id", None)
    return set() if ends is None else set(ends) if isinstance(ends, list | tuple) else {int(ends)}


def _spelled(model: Model, ids: Int[Tensor, " token"]) -> str:
    return "" if model.tokenizer is None else str(model.tokenizer.decode(ids.tolist()))
