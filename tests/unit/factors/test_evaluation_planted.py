"""Where a model's states have a structure that its random twin's lack, learning anew beats the twin, seeds agree, and the model is spared."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import normalize

from microtome.atlas import Atlas, Settings, build
from microtome.core import Half, Site
from microtome.factors import probing
from microtome.factors.anew import ANEW, TWIN
from microtome.factors.baselines import CONTROLS
from microtome.factors.dictionary import Above, Dictionary, Encoder
from microtome.factors.harvest import Rows
from microtome.factors.judging import Judging
from microtome.factors.plan import Plan
from microtome.factors.probing import LETTERS, absorbed
from microtome.factors.scaling import identity
from microtome.factors.splicing import MEAN
from microtome.factors.stability import ALIKE
from microtome.factors.train import train
from microtome.factors.variants import TopK
from microtome.model import Model, wrap
from microtome.readout.words import texts_of
from tests import toys

TEXTS = toys.toy_texts(documents=48, words=120)
UNITS = 10
PLAN = Plan(units=UNITS, method=TopK(2), rows=128, passes=20, sites=("resid_pre.0",), normalisation="none")


@pytest.fixture(scope="module")
def planted() -> Model:
    """Its embeddings are made of ten directions, two for each token."""
    module = toys.llama()
    vectors = module.get_input_embeddings().weight
    assert isinstance(vectors, Tensor)
    generator = torch.Generator().manual_seed(1)
    phi = normalize(torch.randn(UNITS, vectors.shape[1], generator=generator), dim=1)
    two = torch.stack([torch.randperm(UNITS, generator=generator)[:2] for _ in range(len(vectors))])
    codes = torch.zeros(len(vectors), UNITS).scatter_(1, two, 1 + torch.rand(two.shape, generator=generator))
    with torch.no_grad():
        vectors.copy_(codes @ phi)
    return wrap(module, toys.decoder_tokenizer(), name="planted")


@pytest.fixture(scope="module")
def atlas(planted: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Two dictionaries of two seeds."""
    made = [
        train(planted, TEXTS, replace(PLAN, name=name), window=24, seed=seed).dictionary
        for name, seed in (("one", 1), ("two", 2))
    ]
    settings = Settings(run="evaluation", window=24, lenses=("factors",), dictionary=Judging(tuple(made)))
    return build(planted, TEXTS, output=tmp_path_factory.mktemp("planted") / "atlas", settings=settings)


def numbers(atlas: Atlas, stat: str) -> dict[str, tuple[float, float]]:
    """Of the first dictionary, by control."""
    query = "select control_kind, value, control from dictionary_stats where name = 'one' and stat = ?"
    return {row["control_kind"]: (row["value"], row["control"]) for row in atlas.sql(query, [stat]).to_pylist()}


def test_what_is_learnt_anew_beats_what_a_random_twin_gives(atlas: Atlas) -> None:
    found = numbers(atlas, "explained_variance")
    own, anew = found[ANEW]
    twin = found[TWIN][1]
    assert own > 0.9
    assert anew > 0.8
    assert twin < anew - 0.1
    tokens = numbers(atlas, "tokens")[""][0]
    assert tokens > 500


def test_directions_learnt_anew_are_those_that_were_learnt_before(atlas: Atlas) -> None:
    """In some dozens of steps."""
    value, control = numbers(atlas, "match_cosine with that learnt anew")[ALIKE]
    assert value > 0.5
    assert value > control + 0.1


def test_two_seeds_have_the_same_directions(atlas: Atlas) -> None:
    value, control = numbers(atlas, "match_cosine with two")[ALIKE]
    assert value > 0.8
    assert value > control + 0.2
    (row,) = atlas.sql("select avg(score) as score, count(*) as n from links where unit like 'factors@one/%'").to_pylist()
    assert row["score"] == pytest.approx(value, abs=1e-5)
    assert row["n"] <= UNITS


def test_what_the_model_loses_stands_beside_what_it_loses_by_controls(atlas: Atlas) -> None:
    found = numbers(atlas, "kl")
    assert {MEAN, "zero ablation", "two", CONTROLS["k-means"], CONTROLS["random directions"]} <= set(found)
    own = found[MEAN][0]
    assert 0 <= own < 0.5 * found[MEAN][1]
    assert own < found[CONTROLS["random directions"]][1]


def test_directions_are_compared_with_as_many(atlas: Atlas) -> None:
    (count,) = (value for value, _ in numbers(atlas, "as many").values())
    assert 2 <= count <= UNITS
    assert set(numbers(atlas, "coherence of as many")) == {"random directions", ANEW, TWIN}
    assert set(numbers(atlas, "coherence")) == {"random directions"}


def _ids(first: Int[Tensor, " vocab"], letters: int, each: int) -> list[list[int]]:
    """Tokens of some letters, so many of each."""
    by = [(first == letter).nonzero()[:, 0].tolist() for letter in range(26)]
    return [tokens[:each] for tokens in by if len(tokens) >= each][:letters]


def test_a_letter_that_the_factor_of_a_word_says_is_absorbed(planted: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three tokens of each of six letters one has a factor of its own, which says the letter, too; the letter's factor keeps silent there."""
    texts = [text.strip()[:1].casefold() for text in texts_of(planted.tokenizer, planted.shape.vocab)]
    first = torch.tensor([ord(each) - 97 if each and "a" <= each <= "z" else -1 for each in texts])
    groups = _ids(first, 6, 3)
    assert len(groups) == 6
    basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(2))).Q
    token = torch.tensor(groups).flatten()
    letter = torch.arange(6).repeat_interleave(3)
    vectors = basis[letter] + basis[6 + torch.arange(18)]
    own = basis[:6] - 2 * basis[6 + torch.arange(0, 18, 3)]  # silent at the first token of its letter
    words = basis[6 + torch.arange(18)]
    directions = normalize(torch.cat([basis[:6], words + 0.5 * basis[letter]]), dim=1)
    coder = Encoder(torch.cat([own, words]).T[None].clone(), torch.zeros(24), Above(torch.full((24,), 0.5)))
    site = Site("resid_pre", 0)
    dictionary = Dictionary("d", "shared", (site,), (site,), coder, identity(1, 40), directions[None], torch.zeros(1, 40))
    drawn = torch.randint(18, (2000,), generator=torch.Generator().manual_seed(3))
    window = torch.arange(2000) // 20
    half = (window % 2).to(torch.uint8)
    rows = Rows(vectors[drawn][:, None], token[drawn], window, torch.arange(2000) % 20, half)
    read = []

    def source(turn: int) -> Iterator[Rows]:
        read.append(turn)
        yield rows

    why = absorbed(dictionary, source, [site], site, planted, 0)
    assert "means nothing" in why.own[""]["absorption"].undefined
    assert not read, "nothing is read where nothing is asked"
    monkeypatch.setattr(probing, "_PARAMETERS", 0)
    monkeypatch.setattr(probing, "_UNITS", 0)
    monkeypatch.setattr(probing, "_MOST", 1)
    found = absorbed(dictionary, source, [site], site, planted, 0)
    assert found.own[str(site)]["absorption"].value == pytest.approx(1 / 3, abs=0.05)
    assert found.beside[str(site)][LETTERS]["absorption"].value != pytest.approx(1 / 3, abs=0.05)
    assert set(half.tolist()) == {int(each) for each in Half}
