"""Exact selection from products with the vocabulary on SmolLM2-135M, beside blockwise products and torch.topk in float32.

usage: python -m benchmarks.vocabulary [--rounds N] [--layers N]
First: the 50 tokens at both ends of all feed-forward vectors (gate, up, down) of some layers. Then: the 1000 largest of the vocabulary x
vocabulary entries of one head, with the memory that is needed besides the embedding, in a process of its own. Every contestant's
result is compared; FLOP are those of the products alone, and the bare product is a contestant.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.interleaved import Contest, contest, timed, write_results
from microtome.cli.packaged import fetch
from microtome.model import open_checkpoint
from microtome.model.precision import fast_bfloat16
from microtome.numerics import Precision, matmul_topk, product_topk
from microtome.readout import output_reader

RESULTS = Path(__file__).with_name("results.json")
K, PAIRS = 50, 1000
TILE = (512, 4096)
LAYER = 10
BASELINE = "blockwise topk, float32"

CHILD = """
import ctypes, json, sys, threading
from benchmarks.vocabulary import LAYER, PAIRS, factors, resident
from microtome.numerics import product_topk
a, b = factors(LAYER)
product_topk(a[:600], b[:600], PAIRS, precision=sys.argv[1])  # what is loaded and compiled once is not counted
ctypes.CDLL(None).malloc_trim(0)  # memory that is free already would hide what is needed
before, most, done = resident(), [0], threading.Event()
def watch():
    while not done.wait(0.002):
        most[0] = max(most[0], resident())
thread = threading.Thread(target=watch)
thread.start()
product_topk(a, b, PAIRS, precision=sys.argv[1])
done.set()
thread.join()
print(json.dumps(most[0] - before))
"""


def resident() -> int:
    """Bytes of this process that are in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def vectors(layers: int) -> tuple[list[Tensor], Tensor]:
    """The feed-forward vectors of each layer, and the matrix they are read with."""
    checkpoint = open_checkpoint(fetch("smollm2"))
    weights = checkpoint.weights
    reader = output_reader(weights)
    names = ("W_gate", "W_up")
    read = [[weights.get(name, layer).float().T for name in names] for layer in range(layers)]
    return [torch.cat([*read[layer], weights.get("W_out", layer).float()]) for layer in range(layers)], reader.matrix


def factors(layer: int) -> tuple[Tensor, Tensor]:
    """E W_V and (W_O U)^T of a layer's first head: token attended to and token written, 64 numbers each."""
    weights = open_checkpoint(fetch("smollm2")).weights
    read, write = weights.get("W_V", layer)[0].float(), weights.get("W_O", layer)[0].float()
    return weights.get("W_E").float() @ read, (write @ output_reader(weights).matrix).T.contiguous()


def blockwise_rows(a: Tensor, b: Tensor) -> list[Tensor]:
    """Token ids at both ends by torch, a block of rows after another."""
    ends: list[list[Tensor]] = [[], []]
    for rows in a.split(TILE[0]):
        scores = rows @ b
        for ids, largest in zip(ends, (True, False), strict=True):
            ids.append(scores.topk(K, 1, largest=largest).indices)
    return [torch.cat(ids) for ids in ends]


def blockwise_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Flat indices of the largest entries by torch, a block of rows after another."""
    value, index = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for first in range(0, len(a), TILE[0]):
        fresh, at = (a[first : first + TILE[0]] @ b.T).flatten().topk(PAIRS)
        value, order = torch.cat([value, fresh]).topk(PAIRS)
        index = torch.cat([index, at + first * len(b)])[order]
    return index


def bare(a: Tensor, b: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Only the products, tile by tile: a is row x d, b column x d."""
    a, b = a.to(dtype), b.to(dtype)
    room = torch.empty(TILE[0] * TILE[1], dtype=dtype)

    def run() -> None:
        for rows in a.split(TILE[0]):
            for columns in b.split(TILE[1]):
                torch.mm(rows, columns.T, out=room[: len(rows) * len(columns)].view(len(rows), len(columns)))

    return run


def _rows(result: Contest, flop: float) -> list[dict[str, float | str]]:
    """A row per contestant, with the rate of a product of which each row takes `flop`."""
    kept = ("name", "ratio", "quartile_low", "quartile_high")
    return [
        {name: row[name] for name in kept} | {"gflop_per_second": round(result.rate(str(row["name"])) * flop / 1e9, 1)}
        for row in result.rows()
    ]


def of_rows(layers: int, rounds: int, precisions: Sequence[Precision]) -> list[dict[str, float | str]]:
    """Top and bottom tokens of feed-forward vectors."""
    groups, matrix = vectors(layers)
    expected, found = {}, {}

    def torch_way(i: int) -> None:
        expected[i] = blockwise_rows(groups[i], matrix)

    def our_way(i: int, precision: Precision) -> None:
        ends = matmul_topk(groups[i], matrix, K, precision=precision)
        found[precision, i] = ends.top_index, ends.bottom_index

    runs: dict[str, Callable[[], float]] = {BASELINE: timed(torch_way, range(layers))}
    for precision in precisions:
        runs[f"matmul_topk, {precision}"] = timed(partial(our_way, precision=precision), range(layers))
        products = [bare(group, matrix.T, getattr(torch, precision)) for group in groups]
        runs[f"bare product, {precision}"] = timed(lambda run: run(), products)
    count = sum(map(len, groups))
    rows = _rows(contest(runs, baseline=BASELINE, tokens=count, rounds=rounds), 2.0 * matrix.numel())
    for (precision, i), ends in found.items():
        same = sum(
            int((mine.sort(1)[0] == other.sort(1)[0]).all(1).sum()) for mine, other in zip(ends, expected[i], strict=True)
        )
        sys.stdout.write(f"{precision}: {same} of {2 * len(groups[i])} lists hold the ids of torch.topk in float32\n")
    return rows


def of_pairs(rounds: int, precisions: Sequence[Precision]) -> list[dict[str, float | str]]:
    """Largest entries of a head."""
    a, b = factors(LAYER)
    found: dict[str, Tensor] = {}

    def torch_way(_: int) -> None:
        found[BASELINE] = blockwise_pairs(a, b)

    def our_way(_: int, precision: Precision) -> None:
        pairs = product_topk(a, b, PAIRS, precision=precision)
        found[precision] = pairs.row * len(b) + pairs.column

    runs: dict[str, Callable[[], float]] = {BASELINE: timed(torch_way, [0])}
    for precision in precisions:
        runs[f"product_topk, {precision}"] = timed(partial(our_way, precision=precision), [0])
        runs[f"bare product, {precision}"] = timed(lambda run: run(), [bare(a, b, getattr(torch, precision))])
    rows = _rows(contest(runs, baseline=BASELINE, tokens=len(a), rounds=rounds), 2.0 * b.numel())
    for precision in precisions:
        same = set(found[precision].tolist()) & set(found[BASELINE].tolist())
        sys.stdout.write(f"{precision}: {len(same)} of {PAIRS} pairs as torch.topk in float32\n")
        output = subprocess.run([sys.executable, "-c", CHILD, precision], capture_output=True, text=True, check=True).stdout
        next(row for row in rows if row["name"] == f"product_topk, {precision}")["peak_bytes"] = int(json.loads(output))
    return rows


def _write(name: str, rows: list[dict[str, float | str]]) -> None:
    write_results(RESULTS, name, rows)
    for row in rows:
        line = f"{name:18} {row['name']:26} {row['gflop_per_second']:8} GFLOP/s  {row['ratio']:6} times as fast"
        memory = f"  {int(row['peak_bytes']) / 1e6:.0f} MB" if "peak_bytes" in row else ""
        sys.stdout.write(f"{line}  ({row['quartile_low']} to {row['quartile_high']}){memory}\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=1)
    options = parser.parse_args()
    fast = fast_bfloat16(torch.device("cpu"))
    precisions: tuple[Precision, ...] = ("float32", "bfloat16") if fast else ("float32",)
    _write("vocabulary vectors", of_rows(options.layers, options.rounds, precisions))
    _write("vocabulary pairs", of_pairs(min(options.rounds, 2), precisions))


if __name__ == "__main__":
    main()
