"""A stage made in another process is the same stage: the model, its parts and the corpus are found there, not sent."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from microtome.capture import MAIN, Run, execution_class
from microtome.capture.execution import device_type
from microtome.capture.folds import SiteGram
from microtome.capture.recipes import ModelSubject, packed, require_same_model, subject_of, workers_class
from microtome.capture.run import StageWork
from microtome.core import Batch, ExpertRows, Refusal, Site, State
from microtome.corpus import Corpus, Cutting, prepare
from microtome.model import Checkpoint, Model, Opening, load, open_checkpoint
from microtome.store import Folder, stream_table
from tests import toys

_SITE = Site("resid_post", 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.save_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder)


@pytest.fixture(scope="module")
def corpus(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    place = tmp_path_factory.mktemp("corpus")
    sink = lambda table, batches: stream_table(place, table, "corpus", batches)  # noqa: E731
    return prepare(toys.toy_texts(), model.tokenizer, sink, "main", cutting=Cutting(24, 8), vocab=model.shape.vocab)


def test_workers_need_no_device_for_a_model_that_is_to_be_on_the_cpu(folder: Path, model: Model) -> None:
    assert subject_of(load(folder, device="cpu")).devices == 0
    assert model.opening is not None
    assert subject_of(replace(model, opening=replace(model.opening, device="auto"))).devices == 1, "what they have, decides"
    away = replace(model, opening=replace(model.opening, device="cuda:0,cuda:1"))
    assert subject_of(away).devices == 2, "also where it is held on a CPU here"


@dataclass(frozen=True, eq=False)
class _Holding:
    """A fold that holds something, and folds nothing."""

    kind: ClassVar[str] = "test.holding"
    fingerprint: ClassVar[str] = "0"
    version: ClassVar[int] = 1

    held: Any
    sites: tuple[Site, ...] = (_SITE,)

    def init(self) -> State:
        return {"n": torch.zeros(1)}

    def update(self, state: State, values: Mapping[Site, Tensor | ExpertRows], batch: Batch) -> None:
        state["n"] += 1

    def merge(self, state: State, later: State) -> State:
        return {"n": state["n"] + later["n"]}

    def result(self, state: State) -> float:
        return float(state["n"])


def test_work_that_was_sent_is_the_same_work_on_the_model_that_was_opened(model: Model, corpus: Corpus, folder: Path) -> None:
    run = Run("main", model, corpus, 3, "quick")
    folds = {"a": SiteGram(_SITE, torch.arange(24.0)), "b": SiteGram(Site("resid_pre", 0), torch.ones(24), rate=0.5)}
    work = StageWork(run, MAIN, folds)
    other = load(folder)
    made = pickle.loads(pickle.dumps(work.recipe)).work(other)
    assert isinstance(made, StageWork)
    assert made.of.model is other
    assert made.identity == work.identity
    assert made.units == work.units
    for fold, state in work.run(0, lambda *_: None).items():
        for name, tensor in made.run(0, lambda *_: None)[fold].items():
            assert tensor.equal(state[name])


def test_the_model_its_parts_and_the_corpus_are_not_sent(model: Model, corpus: Corpus) -> None:
    weight = model.module.get_input_embeddings().weight
    held = {"model": model, "module": model.block(1), "weight": weight, "tokenizer": model.tokenizer, "weights": model.weights}
    recipe = packed(Run("main", model, corpus, 0, "quick"), MAIN, {"held": _Holding(held)}, StageWork)
    assert len(recipe.payload) < weight.numel() * weight.element_size()
    work = recipe.work(model)
    assert isinstance(work, StageWork)
    (fold,) = work.folds.values()
    assert isinstance(fold, _Holding)
    assert all(fold.held[name] is each for name, each in held.items())


def test_what_cannot_be_sent_is_refused(model: Model, corpus: Corpus) -> None:
    run = Run("main", model, corpus, 0, "quick")
    for held, why in ((toys.toy_encoder(), "a model that is not the run's"), (lambda: 0, "its folds cannot be sent: .*lambda")):
        with pytest.raises(Refusal, match=f"stage main in other processes: .*{why}.*; leave --engine out"):
            packed(run, MAIN, {"held": _Holding(held)}, StageWork)


def test_a_text_that_is_not_there_is_named(model: Model, corpus: Corpus, tmp_path: Path) -> None:
    sink = lambda table, batches: stream_table(tmp_path, table, "corpus", batches)  # noqa: E731
    own = prepare(toys.toy_texts(), model.tokenizer, sink, "main", cutting=Cutting(24, 8), vocab=model.shape.vocab)
    recipe = packed(Run("main", model, own, 0, "quick"), MAIN, {}, StageWork)
    away = tmp_path.rename(tmp_path.with_name("away"))
    other = packed(Run("main", model, own, 0, "quick"), MAIN, {}, StageWork, Folder(away)).work(model)
    assert isinstance(other, StageWork)
    assert other.of.corpus is not None
    assert other.of.corpus.fingerprint == own.fingerprint, "found where the atlas is"
    with pytest.raises(Refusal, match=r"the text, on machine .*documents.*parquet is not there; build into a folder that all"):
        recipe.work(model)


def test_workers_open_the_model_as_it_was_asked_for(model: Model, folder: Path) -> None:
    subject = pickle.loads(pickle.dumps(subject_of(model)))
    assert subject.opening.source == str(folder.absolute())
    assert subject.opening.dtype == subject.opening.device == "auto"
    assert subject.memory > 1 << 30
    assert subject.devices == 1
    opened = subject.open([0])
    assert subject.identity(opened)["model"] == model.fingerprint
    assert execution_class(opened).items() <= subject.identity(opened).items()
    with pytest.raises(Refusal, match="toy-bert in other processes: it was given as a module"):
        subject_of(toys.toy_encoder())


@pytest.mark.parametrize(
    ("asked", "own", "opened"),
    [
        ("auto", [0], "cuda:0"),
        ("cuda", [5], "cuda:1"),
        ("cuda:1", [0], "cuda:1"),
        ("cpu", [3], "cpu"),
        ("auto", [2, 3], "cuda:2,cuda:3"),
        ("cuda:0,cuda:1", [4, 5], "cuda:0,cuda:1"),
    ],
)
def test_a_worker_opens_the_model_on_devices_of_its_own(
    asked: str, own: list[int], opened: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def loaded(*_: str, device: str, **__: str) -> Model:
        told.append(device)
        return model

    monkeypatch.setattr("microtome.capture.recipes.load", loaded)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    ModelSubject(Opening("model", "auto", asked, "refuse"), 0, len(own)).open(own)
    assert told == [opened]


def test_a_model_that_is_spread_needs_as_many_devices_in_a_worker(model: Model) -> None:
    assert model.opening is not None
    spread = replace(model, opening=replace(model.opening, device="cuda:0,cuda:1,cuda:2"))
    assert subject_of(spread).devices == 3


def test_other_weights_on_the_workers_machines_are_refused(model: Model) -> None:
    require_same_model(model, {})
    require_same_model(model, {"model": model.fingerprint})
    with pytest.raises(Refusal, match="its files on the workers' machines are not those that are here"):
        require_same_model(model, {"model": "0"})


def test_the_class_of_a_run_is_that_of_its_workers_and_says_where_tables_are_of_another(model: Model, folder: Path) -> None:
    own = execution_class(model)
    assert workers_class(model, {}) is None
    assert workers_class(open_checkpoint(folder), own) is None
    assert workers_class(model, own | {"model": "m", "python": "p"}) == own
    found = workers_class(model, own | {"device": "NVIDIA H200", "threads": "64"})
    assert found is not None
    assert found["tables"] == f"device {own['device']}, threads {own['threads']}"
    assert device_type(found) == "cuda"
    assert device_type(own) == "cpu"
    assert isinstance(open_checkpoint(folder), Checkpoint)
