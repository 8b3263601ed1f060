"""Small decoders trained once over a stream of examples, in runs that continue where they were interrupted.

There is no dropout and no example comes twice, so that nothing random is left but the start and the stream, and a training run is a
function of both: interrupted and continued it gives the same bits as in one go. What is trained on belongs in `language` and
`addition`, what is asked of the trained model in `curves`.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.core import Refusal
from microtome.model.precision import fast_bfloat16
from microtome.store import committed, fingerprint

__all__ = ["IGNORED", "Examples", "Schedule", "Size", "Trained", "decoder", "loss_of", "train"]

IGNORED = -100
"""A target that no loss is taken of."""

_STATE = "state.safetensors"
_BETAS = (0.9, 0.99)
_LONGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Size:
    """A decoder's size; `window` is how many positions it has, `positions` how large their embeddings begin: 1 is GPT-2's 0.02."""

    layers: int
    width: int
    heads: int
    window: int
    vocabulary: int
    positions: float = 1.0


@dataclass(frozen=True)
class Schedule:
    """How it is trained: AdamW, the rate warmed up and brought down by a cosine to a tenth; a checkpoint every `every` steps.

    In bfloat16 products are taken in that precision, and parameters, gradients, norms and losses kept in fp32; where the hardware does not
    multiply bfloat16 fast, and would take a hundred times as long, all is fp32.
    """

    steps: int
    batch: int
    rate: float
    warmup: int
    every: int
    decay: float = 0.1
    precision: Literal["float32", "bfloat16"] = "float32"

    def here(self) -> "Schedule":
        """As it runs on this machine."""
        return self if fast_bfloat16(torch.device("cpu")) else dataclasses.replace(self, precision="float32")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.rate * (0.55 + 0.45 * math.cos(math.pi * done))


@dataclass(frozen=True, eq=False)
class Examples:
    """What a model reads and what it is to say after each token; `IGNORED` where it may say anything."""

    ids: Int[Tensor, "window token"]
    targets: Int[Tensor, "window token"]

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int) -> Iterator[tuple[Int[Tensor, "window token"], Int[Tensor, "window token"]]]:
        """All of them once, in order."""
        for start in range(0, len(self), size):
            yield self.ids[start : start + size].long(), self.targets[start : start + size].long()


@dataclass(frozen=True, eq=False)
class Trained:
    """How far a run has come: the loss of each step so far, seconds it took, and whether it is done."""

    losses: Float[Tensor, " step"]
    seconds: float
    done: bool


def decoder(size: Size, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with learned positions and random weights, without dropout: it reads nothing twice, so it has nothing to learn by heart."""
    config = GPT2Config(
        vocab_size=size.vocabulary,
        n_positions=size.window,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = GPT2LMHeadModel(config)
    with torch.no_grad():
        module.transformer.wpe.weight.mul_(size.positions)
    return module


def loss_of(
    module: GPT2LMHeadModel, ids: Int[Tensor, "window token"], targets: Int[Tensor, "window token"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of the targets that are not `IGNORED`."""
    logits = module(input_ids=ids).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def train(
    module: GPT2LMHeadModel,
    examples: Examples,
    schedule: Schedule,
    folder: Path,
    *,
    until: int | None = None,
    solved: Callable[[GPT2LMHeadModel], bool] | None = None,
) -> Trained:
    """Train `module` in place, from where the run in `folder` was left.

    `until` leaves after that many steps, as an interruption would:
    what was done since the last checkpoint is lost. `solved` is asked at every checkpoint whether this is enough.
    Errors: `Refusal` where there are fewer examples than steps need, and where `folder` holds another run.
    Cost: a forward and a backward pass for each batch; three times the parameters on disk, once them when it is done.
    """
    if len(examples) < schedule.steps * schedule.batch:
        raise Refusal(
            f"{schedule.steps} steps of {schedule.batch} examples",
            why=f"there are {len(examples)} examples, and none is read twice",
            instead="give it more text, or fewer steps",
        )
    schedule = schedule.here()
    identity = fingerprint([schedule, examples.ids, examples.targets, *module.parameters()])
    optimiser = _optimiser(module, schedule)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _STATE
    losses, seconds, done = _restore(path, identity, module, optimiser)
    while not done and len(losses) < min(schedule.steps, until or schedule.steps):
        begun, step = time.monotonic(), len(losses)
        losses.append(_step(module, optimiser, examples, schedule, step))
        seconds += time.monotonic() - begun
        if len(losses) % schedule.every == 0 or len(losses) == schedule.steps:
            done = len(losses) == schedule.steps or (solved is not None and solved(module))
            _save(path, identity, module, {} if done else _moments(optimiser), Trained(torch.tensor(losses), seconds, done))
    return Trained(torch.tensor(losses), seconds, done)


def _optimiser(module: GPT2LMHeadModel, schedule: Schedule) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves vectors."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": schedule.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=_BETAS, foreach=True)


def _step(module: GPT2LMHeadModel, optimiser: torch.optim.AdamW, examples: Examples, schedule: Schedule, step: int) -> float:
    rows = slice(step * schedule.batch, (step + 1) * schedule.batch)
    for group in optimiser.param_groups:
        group["lr"] = schedule.rate_at(step)
    with torch.autocast("cpu", torch.bfloat16, enabled=schedule.precision == "bfloat16"):
        loss = loss_of(module, examples.ids[rows].long(), examples.targets[rows].long())
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), _LONGEST_GRADIENT)
    optimiser.step()
    return float(loss.detach())


def _moments(optimiser: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimiser's state as named tensors."""
    states = optimiser.state_dict()["state"]
    return {f"optimiser.{index}.{name}": value for index, state in states.items() for name, value in state.items()}


def _save(path: Path, identity: str, module: GPT2LMHeadModel, moments: Mapping[str, Tensor], so_far: Trained) -> None:
    parameters = {f"model.{name}": value.detach() for name, value in module.named_parameters()}
    about = {"identity": identity, "seconds": so_far.seconds, "done": so_far.done}
    with committed(path) as temporary:
        save_file({**parameters, **moments, "losses": so_far.losses}, temporary, {"training": json.dumps(about)})


def _restore(
    path: Path, identity: str, module: GPT2LMHeadModel, optimiser: torch.optim.AdamW
) -> tuple[list[float], float, bool]:
    """Put the last checkpoint into the model and the optimiser: losses and seconds so far, and whether that is all."""
    if not path.exists():
        return [], 0.0, False
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["training"])
        if about["identity"] != identity:
            raise Refusal(
                str(path.parent),
                why="it holds a run with other settings, another text or another version of this recipe",
                instead="give another folder, or delete this one",
            )
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a file is no mapping)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(stored[f"model.{name}"])
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in stored.items():
        if name.startswith("optimiser."):
            _, index, kind = name.split(".")
            states.setdefault(int(index), {})[kind] = value
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return stored["losses"].tolist(), about["seconds"], about["done"]
