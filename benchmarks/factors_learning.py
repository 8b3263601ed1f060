"""Dictionaries by sparse coding beside scikit-learn's, on the same states of a small model: explained variance of held-out states over time.

usage: python -m benchmarks.factors_learning [--model FOLDER] [--text FOLDER] [--parts microtome scikit-learn] [--seconds 30 120]
States of three layers of MiniLM-L6, centred and scaled by layer; every fifth window is held out. Both learn 1,536 directions from the same
states, shuffled, with non-negative codes, for so many seconds; scikit-learn begins at states and not at singular vectors, of which there are
too few, and is told the penalty that the other has found for itself. Each dictionary is judged by the same exact codes, at the penalty that gives
it the L0 aimed at: variance explained at equal L0, not at equal penalty.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from benchmarks.interleaved import write_results
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.core import Role, Site
from microtome.corpus import prepare
from microtome.factors.aims import Aimed, penalty_for
from microtome.factors.coding import Lasso
from microtome.factors.learning import Learner, Learning, judged
from microtome.factors.scaling import measured
from microtome.model import capture, load
from microtome.store import stream_table

RESULTS: Final = Path(__file__).with_name("results.json")
SITES: Final = tuple(Site("resid_pre", layer) for layer in (0, 2, 4))
UNITS: Final = 1536
L0: Final = 25.0
SPEECHES: Final = 4
HELD: Final = 5
"""Every such window is held out."""
JUDGES: Final = 4096
"""States of them by which dictionaries are judged."""


def states_of(model_folder: Path, text: Path) -> tuple[Tensor, Tensor]:
    """States of all sites to learn from, shuffled, and those held out."""
    model = load(model_folder)
    learnt: list[list[Tensor]] = [[] for _ in SITES]
    held: list[list[Tensor]] = [[] for _ in SITES]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        sink = lambda table, rows: stream_table(Path(folder), table, "bench", rows)  # noqa: E731
        corpus = prepare(speeches(text, SPEECHES), model.tokenizer, sink, "main", vocab=model.shape.vocab)
        for batch in corpus.batches(range(corpus.windows), 4096):
            values, own = capture(model, batch, SITES), batch.roles >= int(Role.FIRST)
            apart = (batch.window % HELD == 0)[:, None]
            for place, site in enumerate(SITES):
                learnt[place].append(values[site][own & ~apart].float())
                held[place].append(values[site][own & apart].float())
    joined = [torch.cat(each) for each in learnt]
    scaling = measured(torch.stack(joined, 1), "mean+rms")
    x = torch.cat([scaling.apply(each, place) for place, each in enumerate(joined)])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    others = torch.cat([scaling.apply(torch.cat(each), place) for place, each in enumerate(held)])
    judges = torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:JUDGES]
    return x[order].clone(), others[judges].clone()


def endless(x: Float[Tensor, "row d_model"], size: int) -> Iterator[Float[Tensor, "some d_model"]]:
    """Minibatches of all states, in another order each time."""
    generator = torch.Generator().manual_seed(1)
    while True:
        yield from (x[rows] for rows in torch.randperm(len(x), generator=generator).split(size) if len(rows) == size)


def line(name: str, seconds: float, seen: int, directions: Tensor, held: Tensor) -> dict[str, float | str]:
    """What a dictionary explains of held-out states at the L0 aimed at."""
    own = torch.nn.functional.normalize(directions, dim=1)
    penalty = penalty_for(own, held[:: max(1, len(held) // 2048)], Aimed(L0))
    found = judged(own, held.split(2048), Lasso(penalty))
    row: dict[str, float | str] = {
        "name": name,
        "seconds": round(seconds, 1),
        "rows_seen": seen,
        "l0": round(found.l0, 2),
        "explained": round(found.explained, 4),
        "explained_refitted": round(found.explained_refitted, 4),
        "unused": found.unused,
    }
    print(row, flush=True)
    return row


def over_time(
    name: str, x: Tensor, held: Tensor, size: int, until: list[float], work: Callable[[Tensor], Callable[[], Tensor]]
) -> list[dict[str, float | str]]:
    """A line at each time, counted while it works only."""
    rows, spent, used, seen, waiting = [], 0.0, 0.0, 0, sorted(until)
    for batch in endless(x, size):
        begin, began = time.perf_counter(), time.process_time()
        directions = work(batch)
        spent, used, seen = spent + time.perf_counter() - begin, used + time.process_time() - began, seen + len(batch)
        if spent >= waiting[0]:
            rows.append({"cpu_seconds": round(used, 1)} | line(name, spent, seen, directions(), held))
            waiting = [each for each in waiting if each > spent]
            if not waiting:
                break
    return rows


def ours(x: Tensor, held: Tensor, seconds: float, size: int) -> tuple[list[dict[str, float | str]], float]:
    """What microtome learns, and the penalty that it found."""
    learner = Learner(Learning(UNITS, Aimed(L0), minibatch=size))

    def step(batch: Tensor) -> Callable[[], Tensor]:
        learner.feed(batch)
        return lambda: learner.state()["directions"]

    rows = over_time("microtome", x, held, size, [seconds / 4, seconds / 2, seconds], step)
    return rows, float(learner.state()["penalty"])


def theirs(x: Tensor, held: Tensor, seconds: float, size: int, penalty: float) -> list[dict[str, float | str]]:
    """What scikit-learn learns."""
    first = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))[:UNITS]
    start = torch.nn.functional.normalize(x[first], dim=1).numpy()
    options: dict[str, Any] = {"alpha": penalty, "fit_algorithm": "cd", "positive_code": True, "batch_size": size}
    learner = MiniBatchDictionaryLearning(UNITS, dict_init=start, random_state=0, **options)

    def step(batch: Tensor) -> Callable[[], Tensor]:
        learner.partial_fit(batch.numpy())
        return lambda: torch.from_numpy(learner.components_).float()

    return over_time("scikit-learn", x, held, size, [seconds / 8, seconds / 4, seconds / 2, seconds], step)


def main() -> None:
    """Both, one after the other, or one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--parts", nargs="+", default=["microtome", "scikit-learn"], choices=["microtome", "scikit-learn"])
    parser.add_argument("--seconds", type=float, nargs=2, default=(30.0, 120.0))
    parser.add_argument("--minibatch", type=int, nargs=2, default=(1024, 256), help="of microtome, and of scikit-learn")
    parser.add_argument("--penalty", type=float, default=1.3, help="scikit-learn's, where it runs alone")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.simplefilter(
        "ignore", ConvergenceWarning
    )  # scikit-learn's codes stop early now and then, and printing that takes time
    x, held = states_of(options.model or fetch("minilm"), options.text or fetch("sotu"))
    rows, penalty = [], options.penalty
    if "microtome" in options.parts:
        rows, penalty = ours(x, held, options.seconds[0], options.minibatch[0])
    if "scikit-learn" in options.parts:
        rows += theirs(x, held, options.seconds[1], options.minibatch[1], penalty)
    write_results(options.output, f"factors_learning, {UNITS} factors, {len(x)} states, {len(held)} held out", rows)


if __name__ == "__main__":
    main()
