"""Classifiers of Dar et al. 2022: the last blocks of a model fine-tuned under a linear layer that is averaged over tokens.

What is classified is said by the caller; pre-training belongs in `training`, stitching in `microtome.vocabulary.stitching`.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from microtome.core import Batch, Role, Site
from microtome.model import wrap
from microtome.store import committed, fingerprint
from microtome.vocabulary.stitching import Classifier, answers

__all__ = ["Labelled", "Tuning", "accuracy", "fine_tuned", "labelled"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Windows with a label each; ids behind a window's length are padding."""

    ids: Int[Tensor, "window token"]
    lengths: Int[Tensor, " window"]
    labels: Int[Tensor, " window"]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: Int[Tensor, " window"]) -> Batch:
        """Some of them."""
        ids, lengths = self.ids[rows].long(), self.lengths[rows]
        ids = ids[:, : int(lengths.max())]
        roles = torch.where(torch.arange(ids.shape[1]) < lengths[:, None], int(Role.CONTENT), int(Role.PAD)).to(torch.uint8)
        nothing = torch.zeros_like(rows)
        return Batch(ids, roles, rows, rows, nothing, nothing.to(torch.uint8), self.labels[rows], {})

    def batches(self, size: int = 64) -> Iterator[Batch]:
        """All of them once, those of like length together."""
        for rows in self.lengths.argsort(stable=True).split(size):
            yield self.batch(rows)

    def some(self, count: int, seed: int) -> "Labelled":
        """So many of them, as many of each label where there are enough."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        kinds = self.labels.unique()
        rows = torch.cat([order[self.labels[order] == kind][: count // len(kinds)] for kind in kinds]).sort().values
        return Labelled(self.ids[rows], self.lengths[rows], self.labels[rows])


@dataclass(frozen=True)
class Tuning:
    """How a classifier is made: its last `blocks` blocks are trained by AdamW, at a rate that falls to zero in a straight line."""

    blocks: int
    steps: int
    batch: int
    rate: float
    head_rate: float = 1e-3


def labelled(windows: Sequence[tuple[Sequence[int], int]], window: int) -> Labelled:
    """Windows of ids with their labels, cut to `window` tokens."""
    ids = torch.zeros(len(windows), window, dtype=torch.int32)
    for row, (tokens, _) in enumerate(windows):
        ids[row, : min(window, len(tokens))] = torch.tensor(tokens[:window], dtype=torch.int32)
    lengths = torch.tensor([min(window, len(tokens)) for tokens, _ in windows])
    return Labelled(ids, lengths, torch.tensor([label for _, label in windows]))


def fine_tuned(module: nn.Module, data: Labelled, tuning: Tuning, seed: int, folder: Path) -> Classifier:
    """A copy of a model without a head, its last blocks fine-tuned; read from `folder` where that was done before.

    As in the paper matrices and gains are trained and biases are not, states are classified before any last norm, and the answers of
    tokens are averaged. The seed is that of the linear layer and of which windows are read in which order.
    Source: Dar et al. 2022, arXiv:2209.02535, section 5.2.
    Cost: a forward pass for each step, and a backward pass through the last blocks.
    """
    trained = copy.deepcopy(module)
    model = wrap(trained)
    since, last = model.shape.layers - tuning.blocks, model.shape.layers - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(model.shape.d_model, int(data.labels.max()) + 1, bias=False)
    parameters = {
        f"{layer}.{name}": parameter
        for layer in range(since, last + 1)
        for name, parameter in model.block(layer).named_parameters()
        if name.endswith("weight")
    }
    path = folder / f"classifier-{seed}.safetensors"
    identity = fingerprint([tuning, data.ids, data.lengths, data.labels, *module.parameters()])
    if not _restored(path, identity, parameters, head):
        norms = {name: trained.get_submodule(name) for name in model.family.final}
        for name in norms:
            trained.set_submodule(name, nn.Identity())
        _tune(trained, head, list(parameters.values()), data, tuning, seed)
        for name, norm in norms.items():
            trained.set_submodule(name, norm)
        folder.mkdir(parents=True, exist_ok=True)
        with committed(path) as temporary:
            save_file(
                {"head": head.weight.detach(), **{k: v.detach() for k, v in parameters.items()}}, temporary, {"of": identity}
            )
    weight = head.weight.detach().T.contiguous()
    return Classifier(wrap(trained), since, Site("resid_post", last), weight, torch.zeros(weight.shape[1]))


def accuracy(classifier: Classifier, data: Labelled) -> float:
    """The share of windows a classifier labels rightly by itself."""
    right = sum(int((answers(classifier, batch).argmax(1) == batch.label).sum()) for batch in data.batches())
    return right / len(data)


def _tune(trunk: Any, head: nn.Linear, parameters: list[nn.Parameter], data: Labelled, tuning: Tuning, seed: int) -> None:
    groups = [
        {"params": [each.requires_grad_() for each in parameters], "lr": tuning.rate},
        {"params": [head.weight], "lr": tuning.head_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / tuning.steps)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat(
        [torch.randperm(len(data), generator=generator) for _ in range(1 + tuning.steps * tuning.batch // len(data))]
    )
    for rows in order.split(tuning.batch)[: tuning.steps]:
        batch = data.batch(rows)
        there = (batch.roles != Role.PAD).long()
        with torch.autocast("cpu", torch.bfloat16):
            states = trunk(input_ids=batch.ids, attention_mask=there).last_hidden_state
        loss = functional.cross_entropy(_averaged(head(states.float()), there), batch.label)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*parameters, head.weight], 1.0)
        optimiser.step()
        falling.step()


def _averaged(logits: Float[Tensor, "window token class"], there: Int[Tensor, "window token"]) -> Float[Tensor, "window class"]:
    return (logits * there[..., None]).sum(1) / there.sum(1, keepdim=True)


def _restored(path: Path, identity: str, parameters: dict[str, nn.Parameter], head: nn.Linear) -> bool:
    """Whether the folder had this classifier: then its numbers are in place."""
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("of") != identity:
            return False
        with torch.no_grad():
            head.weight.copy_(file.get_tensor("head"))
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(name))
    return True
