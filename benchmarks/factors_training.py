"""Training of sparse autoencoders: steps per second and what is explained after equal steps, beside the published libraries.

usage: python -m benchmarks.factors_training [--rounds N] [--steps N] [--states FILE] [--peers FOLDER]
Batches of 2048 states of width 576, 4096 units, 32 codes a state, Adam with the same learning rate, float32, the same first directions (the encoder
their transpose). FOLDER has the peers (`pip install --target FOLDER --no-deps sae-lens dictionary-learning overcomplete eai-sparsify`
and einops, natsort, simple-parsing, docstring-parser); of each only the modules of its model and trainer are imported, and those that do not import
are named and left out. FILE has states [row, place, d_model] as torch saves them; without it they are planted. Every round runs each contestant for a
few steps in turn; each goes on from where it was, so after the last round all took equal steps, and states that were held out are made by each.
"""

import argparse
import importlib
import importlib.machinery
import importlib.util
import logging
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.interleaved import contest, write_results
from microtome.factors.autoencoder import Autoencoder
from microtome.factors.training import Trainer, Training
from microtome.factors.variant import Variant
from microtome.factors.variants import BatchTopK, TopK

RESULTS = Path(__file__).with_name("results.json")
ROWS, WIDTH, UNITS, K, RATE = 2048, 576, 4096, 32, 1e-3


@dataclass(frozen=True, eq=False)
class Contestant:
    """A step of training, and what a batch is made of by the codes of training."""

    step: Callable[[Tensor], object]
    made: Callable[[Tensor], Tensor]


def states(file: Path | None) -> tuple[Tensor, Tensor]:
    """To learn from, and held out."""
    if file is not None:
        kept = torch.load(file).float()
        train, held = kept.split([len(kept) * 9 // 10, len(kept) - len(kept) * 9 // 10])
        return train.flatten(0, 1), held.flatten(0, 1)[: 4 * ROWS]
    generator = torch.Generator().manual_seed(0)
    factors = torch.nn.functional.normalize(torch.randn(2 * UNITS, WIDTH, generator=generator), dim=1)
    weight = 1 / torch.arange(1, len(factors) + 1) ** 0.5
    rows = []
    for _ in range(24):
        place = torch.multinomial(weight, ROWS * 40, replacement=True, generator=generator).view(ROWS, 40)
        amount = 1 + torch.rand(ROWS, 40, generator=generator)
        rows.append(torch.nn.functional.embedding_bag(place, factors, per_sample_weights=amount, mode="sum"))
    made = torch.cat(rows)
    made = made - made.mean(0)
    made = made / made.square().mean().sqrt()
    return made[: 20 * ROWS], made[20 * ROWS :]


def batches(x: Tensor) -> Iterator[Tensor]:
    """Shuffled anew in every epoch."""
    generator = torch.Generator().manual_seed(1)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(ROWS):
            if len(rows) == ROWS:
                yield x[rows]


def ours(variant: Variant, steps: int, first: Tensor) -> Contestant:
    """With clipping, gradients parallel to directions removed, and dead units revived."""
    autoencoder = Autoencoder(variant, UNITS, WIDTH)
    with torch.no_grad():
        autoencoder.directions.copy_(first[:, None])
        autoencoder.encoder.copy_(first[:, None])
    trainer = Trainer([autoencoder], Training(steps, ROWS, rate=RATE, warm_up=0.0, decay=0.0))
    return Contestant(lambda x: trainer.step(x[:, None]), lambda x: x - autoencoder.loss(x[:, None]).rest)


class _Unused(types.ModuleType):
    """A package that is imported beside a model and not used by it: each of its names is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Rooted(torch.nn.Module):
    """What SAELens's models derive from, where it sets up hooks: training has none, and a point for one is the identity."""

    def setup(self) -> None:
        """No hooks."""


def prepare(peers: Path) -> None:
    """Let modules of models be imported alone: without what their packages' `__init__` do, loggers of experiments and data sets."""
    sys.path.append(str(peers))
    for package in ("sae_lens", "transformer_lens", "dictionary_learning", "overcomplete", "sparsify"):
        module: Any = types.ModuleType(package)
        module.__path__, module.__version__, module.logger = [str(peers / package)], "", logging.getLogger(package)
        sys.modules[package] = module
    _ = importlib.import_module(
        "transformers"
    ).PreTrainedModel  # which looks for data sets itself, before they are stood in for
    for package in ("datasets", "wandb"):
        if importlib.util.find_spec(package) is None:
            sys.modules[package] = _Unused(package)
            sys.modules[package].__spec__ = importlib.machinery.ModuleSpec(package, None)
    for name, held in (("HookedTransformer", {"HookedRootModule": _Rooted}), ("hook_points", {"HookPoint": torch.nn.Identity})):
        module = types.ModuleType(f"transformer_lens.{name}")
        vars(module).update(held)
        sys.modules[module.__name__] = module


def _adam(model: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.999), fused=True)


def _followed(model: torch.nn.Module, adam: torch.optim.Adam, loss: Tensor) -> None:
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()


def dictionary_learning(kind: str, steps: int, first: Tensor) -> Contestant:
    """Its trainer as it is."""
    name = {"BatchTopK": ("batch_top_k", "BatchTopKTrainer"), "TopK": ("top_k", "TopKTrainer")}[kind]
    trainer_of = getattr(importlib.import_module(f"dictionary_learning.trainers.{name[0]}"), name[1])
    settings = {"lr": RATE, "warmup_steps": 0, "device": "cpu", "decay_start": None, "seed": 0}
    trainer: Any = trainer_of(steps=10**6, activation_dim=WIDTH, dict_size=UNITS, k=K, layer=0, lm_name="none", **settings)
    with torch.no_grad():
        trainer.ae.decoder.weight.copy_(first.T)
        trainer.ae.encoder.weight.copy_(first)
    done = iter(range(10**9))

    def step(x: Tensor) -> None:
        trainer.update(next(done), x)

    return Contestant(step, lambda x: trainer.ae.decode(trainer.ae.encode(x, use_threshold=False)))


def sae_lens(kind: str, steps: int, first: Tensor) -> Contestant:
    """Its training forward pass, with Adam and clipping around."""
    del steps
    module: Any = importlib.import_module(f"sae_lens.saes.{kind.lower()}_sae")
    base: Any = importlib.import_module("sae_lens.saes.sae")
    registry: Any = importlib.import_module("sae_lens.registry")
    if kind == "TopK":
        registry.register_sae_class("topk", module.TopKSAE, module.TopKSAEConfig)
    config = getattr(module, f"{kind}TrainingSAEConfig")(d_in=WIDTH, d_sae=UNITS, k=K, dtype="float32", device="cpu")
    model: Any = getattr(module, f"{kind}TrainingSAE")(config)
    with torch.no_grad():
        length = float(model.W_dec.norm(dim=1).mean())
        model.W_dec.copy_(length * first)
        model.W_enc.copy_(length * first.T)
    adam = _adam(model)
    alive = torch.zeros(UNITS, dtype=torch.bool)

    def taken(x: Tensor) -> Any:
        given = base.TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=alive, n_training_steps=1, is_logging_step=False
        )
        return model.training_forward_pass(given)

    return Contestant(lambda x: _followed(model, adam, taken(x).loss), lambda x: taken(x).sae_out)


def overcomplete(kind: str, steps: int, first: Tensor) -> Contestant:
    """Its model and mean squared error, with Adam and clipping around."""
    del steps
    sae: Any = importlib.import_module("overcomplete.sae")
    many = K * ROWS if kind == "BatchTopK" else K
    model: Any = getattr(sae, f"{kind}SAE")(WIDTH, UNITS, top_k=many, device="cpu")
    with torch.no_grad():
        model.dictionary._weights.copy_(first)
        linear = [each for each in model.encoder.modules() if isinstance(each, torch.nn.Linear)][0]
        linear.weight.copy_(first)
    adam = _adam(model)

    def step(x: Tensor) -> None:
        model.train()
        _followed(model, adam, (model(x)[2] - x).square().mean())

    return Contestant(step, lambda x: model.train()(x)[2])


def sparsify(kind: str, steps: int, first: Tensor) -> Contestant:
    """Its coder and loss, which has TopK alone, with Adam and clipping around and directions normalised as its trainer does."""
    del kind, steps
    config: Any = importlib.import_module("sparsify.config")
    coder: Any = importlib.import_module("sparsify.sparse_coder")
    model: Any = coder.SparseCoder(WIDTH, config.SparseCoderConfig(num_latents=UNITS, k=K))
    with torch.no_grad():
        model.W_dec.copy_(first)
        model.encoder.weight.copy_(first)
    adam = _adam(model)

    def step(x: Tensor) -> None:
        model.set_decoder_norm_to_unit_norm()
        adam.zero_grad()
        model(x).fvu.backward()
        model.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    return Contestant(step, lambda x: model(x).sae_out)


PEERS = {"dictionary_learning": dictionary_learning, "sae_lens": sae_lens, "overcomplete": overcomplete, "sparsify": sparsify}
LACKS = {"sparsify": ("BatchTopK",)}
"""What a peer does not have."""


def contestants(kind: str, steps: int, first: Tensor) -> tuple[dict[str, Contestant], dict[str, str]]:
    """Those that import, and why the others do not."""
    variant: Variant = BatchTopK(K) if kind == "BatchTopK" else TopK(K)
    found, absent = {"microtome": ours(variant, steps, first)}, {}
    for name, make in PEERS.items():
        if kind in LACKS.get(name, ()):
            absent[name] = f"it has no {kind}"
            continue
        try:
            found[name] = make(kind, steps, first)
        except Exception as error:  # noqa: BLE001
            absent[name] = f"{type(error).__name__}: {str(error)[:80]}"
    return found, absent


def explained(held: Tensor, made: Callable[[Tensor], Tensor]) -> float:
    """Of states that were held out, by the codes of training."""
    with torch.no_grad():
        rest = torch.cat([x - made(x) for x in held.split(ROWS) if len(x) == ROWS])
    kept = held[: len(rest)]
    return float(1 - rest.square().sum() / (kept - kept.mean(0)).square().sum())


def measured(kind: str, data: tuple[Tensor, Tensor], rounds: int, turn: int) -> list[dict[str, float | str]]:
    """Seconds of `turn` steps a round, then what is explained."""
    first = torch.nn.functional.normalize(torch.randn(UNITS, WIDTH, generator=torch.Generator().manual_seed(3)), dim=1)
    found, absent = contestants(kind, (rounds + 1) * turn, first)
    sources = {name: batches(data[0]) for name in found}

    def run(name: str) -> float:
        chosen = [next(sources[name]) for _ in range(turn)]
        begin = time.perf_counter()
        for x in chosen:
            found[name].step(x)
        return time.perf_counter() - begin

    result = contest({n: (lambda n=n: run(n)) for n in found}, baseline="microtome", tokens=turn * ROWS, rounds=rounds)
    rows = result.rows()
    for row in rows:
        row["steps_per_second"] = round(result.rate(str(row["name"])) / ROWS, 2)
        row["explained"] = round(explained(data[1], found[str(row["name"])].made), 4)
        print(kind, row)
    for name, why in absent.items():
        print(kind, name, "left out:", why)
    return rows


def main() -> None:
    """Both kinds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="of each contestant in a round")
    parser.add_argument("--states", type=Path)
    parser.add_argument("--peers", type=Path, default=Path("peers"))
    parser.add_argument("--write", choices=["yes", "no"], default="yes")
    given = parser.parse_args()
    prepare(given.peers)
    data = states(given.states)
    for kind in ("TopK", "BatchTopK"):
        found = measured(kind, data, given.rounds, given.steps)
        if given.write == "yes":
            write_results(RESULTS, f"factors_training {kind}, after {(given.rounds + 1) * given.steps} steps", found)


if __name__ == "__main__":
    main()
