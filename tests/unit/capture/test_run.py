"""One pass per stage feeds every fold; folds see the tensors of the model and nothing else; bad numbers are refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from microtome.capture import MAIN, MASKED, PILOT, Results, Run, Silent, Stage, run_stages
from microtome.core import CONTENT, Batch, ExpertRows, Fold, Refusal, Site, State
from microtome.corpus import Corpus, Cutting, prepare
from microtome.model import Model, inputs_of
from microtome.store import stream_table
from tests import toys


@dataclass(frozen=True)
class _Sum:
    """Sum of the counted rows of some sites, and how many updates there were."""

    sites: tuple[Site, ...]
    width: int
    offset: float = 0.0
    kind: ClassVar[str] = "test.sum"
    version: ClassVar[int] = 1

    def init(self) -> State:
        return {"sum": torch.zeros(self.width, dtype=torch.float64), "rows": torch.zeros((), dtype=torch.int64)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        counted = batch.counted(CONTENT)
        assert set(values) == set(self.sites)
        for value in values.values():
            assert isinstance(value, Tensor)
            state["sum"] += value[counted].double().sum(0) + self.offset
        state["rows"] += counted.sum()

    def merge(self, state: State, later: State) -> State:
        return {key: state[key] + later[key] for key in state}

    def result(self, state: State) -> dict[str, Any]:
        return {"sum": state["sum"], "rows": int(state["rows"])}


@dataclass(frozen=True)
class _Lens:
    """Asks for the given folds; in MAIN, `second` reads the result of the pilot."""

    name: str
    sites: Mapping[str, tuple[Site, ...]]
    pilot: bool = False
    masked: bool = False

    def stages(self, run: Run) -> tuple[Stage, ...]:
        return (*([PILOT] if self.pilot else []), *([MASKED] if self.masked else []), MAIN)

    def folds(self, stage: Stage, run: Run, earlier: Results) -> Mapping[str, Fold]:
        width = run.model.shape.d_model
        offset = (
            0.0
            if stage == PILOT or not self.pilot
            else float(earlier.of(PILOT, f"{self.name}/{next(iter(self.sites))}")["rows"])
        )
        return {f"{self.name}/{name}": _Sum(sites, width, offset) for name, sites in self.sites.items()}

    def tables(self, run: Run, results: Results) -> Mapping[str, pa.Table]:
        return {}

    def absent(self, run: Run) -> Mapping[str, str]:
        return {}


class _Counting(Silent):
    """Counts batches and windows."""

    def __init__(self) -> None:
        self.batches = self.windows = 0

    def advance(self, windows: int, tokens: int) -> None:
        self.batches += 1
        self.windows += windows


def _corpus(model: Model, folder: Path) -> Corpus:
    sink = lambda table, batches: stream_table(folder, table, "corpus", batches)  # noqa: E731
    cutting = Cutting(window=24, shortest=8)
    return prepare(toys.toy_texts(), model.tokenizer, sink, "main", cutting=cutting, vocab=model.shape.vocab)


@pytest.fixture(scope="module")
def decoder() -> Model:
    return toys.toy_decoder()


def test_folds_of_several_lenses_see_the_models_own_tensors_in_one_pass(decoder: Model, tmp_path: Path) -> None:
    corpus = _corpus(decoder, tmp_path)
    first = _Lens("a", {"last": (Site("resid_post", 2),), "none": ()})
    second = _Lens("b", {"both": (Site("resid_pre", 1), Site("mlp_out", 2))})
    passes: list[object] = []
    handle = decoder.module.model.register_forward_pre_hook(lambda *_: passes.append(1))
    watcher = _Counting()
    run = Run("main", decoder, corpus, seed=0, depth="quick")
    results = run_stages(run, [first, second], tmp_path / "work", watcher)
    handle.remove()
    batches = list(corpus.batches(range(corpus.windows), 2048))
    last, both, rows = torch.zeros(24, dtype=torch.float64), torch.zeros(24, dtype=torch.float64), 0
    block = decoder.module.model.layers[2]
    for batch in batches:
        seen: dict[str, Tensor] = {}
        handles = [
            block.register_forward_hook(lambda _, __, output, seen=seen: seen.update(block=output)),
            block.mlp.register_forward_hook(lambda _, __, output, seen=seen: seen.update(mlp=output)),
        ]
        with torch.inference_mode():
            states = decoder.module(**inputs_of(decoder, batch), output_hidden_states=True).hidden_states
        for handle in handles:
            handle.remove()
        counted = batch.counted(CONTENT)
        rows += int(counted.sum())
        last += seen["block"][counted].double().sum(0)
        both += (states[1] + seen["mlp"])[counted].double().sum(0)
    assert results.of(MAIN, "a/last")["rows"] == rows == corpus.tokens - corpus.windows
    assert results.of(MAIN, "a/none")["rows"] == rows
    assert results.of(MAIN, "a/none")["sum"].eq(0).all()
    torch.testing.assert_close(results.of(MAIN, "a/last")["sum"], last, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(results.of(MAIN, "b/both")["sum"], both, rtol=1e-5, atol=1e-4)
    units = len(list((tmp_path / "work" / "main").glob("*.safetensors")))
    assert len(passes) == watcher.batches
    assert watcher.windows == corpus.windows
    assert units == 1, "everything has been merged into one state"


def test_a_stage_reads_the_results_of_an_earlier_one(decoder: Model, tmp_path: Path) -> None:
    corpus = _corpus(decoder, tmp_path)
    lens = _Lens("a", {"x": (Site("resid_post", 0),)}, pilot=True)
    run = Run("main", decoder, corpus, seed=0, depth="quick")
    results = run_stages(run, [lens], tmp_path / "work", Silent())
    pilot = results.of(PILOT, "a/x")
    assert 0 < pilot["rows"] <= results.of(MAIN, "a/x")["rows"]
    assert results.names(PILOT) == ("a/x",)


def test_windows_that_take_long_are_done_one_by_one(decoder: Model, tmp_path: Path) -> None:
    corpus = _corpus(decoder, tmp_path)
    slow = Stage(3, "slow", sample=5, unit=1)

    class Slowly(_Lens):
        def stages(self, run: Run) -> tuple[Stage, ...]:
            return (slow,)

    watcher = _Counting()
    lens = Slowly("a", {"x": (Site("resid_post", 0),)})
    results = run_stages(Run("main", decoder, corpus, seed=0, depth="quick"), [lens], tmp_path / "work", watcher)
    assert (watcher.batches, watcher.windows) == (5, 5), "told window by window"
    lengths = [int(batch.counted(CONTENT).sum()) for batch in corpus.batches(corpus.sample(5, 0), 1)]
    assert results.of(slow, "a/x")["rows"] == sum(lengths)


def test_masked_stage_hides_tokens_of_an_encoder(tmp_path: Path) -> None:
    encoder = toys.toy_encoder()
    corpus = _corpus(encoder, tmp_path)
    lens = _Lens("a", {"x": (Site("resid_post", 1),)}, masked=True)
    results = run_stages(Run("main", encoder, corpus, seed=0, depth="quick"), [lens], tmp_path / "work", Silent())
    hidden, plain = results.of(MASKED, "a/x"), results.of(MAIN, "a/x")
    assert hidden["rows"] == plain["rows"]
    assert not torch.allclose(hidden["sum"], plain["sum"])


def test_nan_is_refused_where_it_begins(tmp_path: Path) -> None:
    model = toys.toy_decoder()
    corpus = _corpus(model, tmp_path)
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    run = Run("main", model, corpus, seed=0, depth="quick")
    with pytest.raises(
        Refusal, match=r"activations at resid_post\.1: they are NaN or infinite in window \d+ .document \d+.; run with"
    ):
        run_stages(run, [_Lens("a", {"x": (Site("resid_post", 2),)})], tmp_path / "work", Silent())
    assert list((tmp_path / "work" / "main").glob("*.safetensors")) == []


def test_work_begun_with_other_folds_is_refused(decoder: Model, tmp_path: Path) -> None:
    corpus = _corpus(decoder, tmp_path)
    run = Run("main", decoder, corpus, seed=0, depth="quick")
    run_stages(run, [_Lens("a", {"x": (Site("resid_post", 0),)})], tmp_path / "work", Silent())
    with pytest.raises(Refusal, match="stage was .* and is now"):
        run_stages(run, [_Lens("a", {"x": (Site("resid_post", 1),)})], tmp_path / "work", Silent())
