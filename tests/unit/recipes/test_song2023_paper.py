"""The paper's protocol on toys: its definitions computed another way, its acceptance on right and wrong numbers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.core import Refusal, Site
from microtome.corpus import Document, Joined, Reading
from microtome.corpus.joined import starts, stream_of
from microtome.geometry import Geometry, measure
from microtome.geometry.rank import relative_norm
from microtome.model import Model, load
from recipes import song2023, song2023_paper
from recipes.song2023 import PAPER, Column, describe, paper_column
from recipes.song2023_paper import (
    GPT2_OPENWEBTEXT,
    acceptance,
    is_gpt2_small,
    paper_values,
    relative_norms,
    report,
    topic_similarity,
    topic_starts,
    topic_texts,
)
from tests import toys

_JOINED = Joined(window=24, contexts=48)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(toys.save_checkpoint(tmp_path_factory.mktemp("paper") / "model"), dtype="float32")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return toys.toy_texts(documents=6, words=300)


@pytest.fixture(scope="module")
def found(model: Model, texts: list[str]) -> Geometry:
    return measure(model, texts, depth="quick", window=_JOINED)


def states_of(model: Model, ids: np.ndarray) -> list[torch.Tensor]:
    """The residual stream as transformers has it, from the embeddings up to before the last layer."""
    with torch.inference_mode():
        return list(model.module(torch.from_numpy(ids).long(), output_hidden_states=True).hidden_states[:-1])


def test_position_is_the_mean_over_windows_drawn_as_the_paper_does(model: Model, texts: list[str], found: Geometry) -> None:
    stream = stream_of(texts, model.tokenizer, Reading())
    begins = starts(len(stream.ids), _JOINED)
    states = states_of(model, stream.ids[begins[:, None] + np.arange(24)])
    for layer, site in enumerate(list(found.sites)[: len(states)]):
        h = states[layer][:, 1:].double()
        pos = h.mean(0) - h.mean((0, 1))
        torch.testing.assert_close(found.sites[site].parts.pos, pos, atol=1e-5, rtol=1e-4)
        values = torch.linalg.svdvals(pos)
        assert found.sites[site].position.naive.stable_rank == pytest.approx(float(values.square().sum() / values[0] ** 2))


def test_what_takes_two_halves_is_undefined(found: Geometry) -> None:
    for site in found.sites.values():
        assert site.position.corrected is None
        assert site.variance.agreed.undefined == "all windows are of one document"
        assert math.isnan(site.variance.agreed.lo)


def test_the_relative_norm_is_of_a_second_sample(model: Model, texts: list[str], found: Geometry) -> None:
    norms = relative_norms(model, texts, found, joined=_JOINED)
    stream = stream_of(texts, model.tokenizer, Reading())
    second = starts(len(stream.ids), Joined(window=24, contexts=80))[48:]
    states = states_of(model, stream.ids[second[:, None] + np.arange(24)])
    for layer, site in enumerate(list(found.sites)[: len(states)]):
        assert norms[site] == pytest.approx(relative_norm(found.sites[site].parts.pos, states[layer][:, 1:]), rel=1e-5)
        assert norms[site] != found.sites[site].position.naive.relative_norm


@pytest.fixture(scope="module")
def long_topics() -> list[Document]:
    return [Document(f"topic {n}", text) for n, text in enumerate(toys.toy_texts(documents=5, words=900))]


def test_topics_are_compared_as_the_paper_does(model: Model, long_topics: list[Document]) -> None:
    model_found = measure(model, long_topics, depth="quick", window=Joined(window=40, contexts=16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(song2023_paper, "TOPIC_WINDOW", 32)
        alike = topic_similarity(model, long_topics, model_found)
    contexts: list[torch.Tensor] = []
    site = Site("resid_post", 0)
    parts = model_found.sites[site].parts
    reference = (parts.mu + parts.pos)[:31].mean(0)
    for document in long_topics[:4]:
        ids = stream_of([document], model.tokenizer, Reading()).ids
        begins = np.linspace(0, len(ids) - 32, 64).astype(int)
        contexts.append(states_of(model, ids[begins[:, None] + np.arange(32)])[1][:, 1:].double().mean(1) - reference)
    rows = torch.nn.functional.normalize(torch.cat(contexts), dim=1)
    cosines = (rows @ rows.T).abs()
    same = torch.block_diag(*[torch.ones(64, 64)] * 4).bool()
    assert alike[site] == pytest.approx((float(cosines[same].mean()), float(cosines[~same].mean())), rel=1e-5)


def test_windows_of_a_topic_are_all_different() -> None:
    """The paper's windows for Llama-2 were all the first one, hence its similarity of 1.00."""
    begins = topic_starts(1000, "long")
    assert (len(set(begins.tolist())), begins[0], begins[-1]) == (64, 0, 872)
    assert len(set(topic_starts(128 + 63, "just").tolist())) == 64
    with pytest.raises(Refusal, match=r"topic short: it has 190 tokens, too few for 64 different windows of 128"):
        topic_starts(190, "short")
    with pytest.raises(Refusal, match="too few"):
        topic_starts(1, "tiny")


def test_topics_are_labels_or_else_documents() -> None:
    plain = [Document(str(number), "x") for number in range(6)]
    assert [[document.name for document in topic] for topic in topic_texts(plain)] == [["0"], ["1"], ["2"], ["3"]]
    labelled = [Document(str(number), "x", label="abcde"[number % 5]) for number in range(10)]
    assert [[document.name for document in topic] for topic in topic_texts(labelled)] == [
        ["0", "5"],
        ["1", "6"],
        ["2", "7"],
        ["3", "8"],
    ]


def test_one_text_has_no_topics(model: Model, texts: list[str]) -> None:
    values = paper_values(model, [" ".join(texts)], joined=_JOINED)
    assert all(math.isnan(value) for name in ("within", "between") for value in values[name])
    assert all(value > 0 for name in ("rank", "stable rank", "relative norm") for value in values[name][1:])


def published() -> dict[str, Sequence[float]]:
    return {**GPT2_OPENWEBTEXT, "within": [0.44] * 13, "between": [0.10] * 13}


def test_the_published_values_are_accepted() -> None:
    checks = acceptance(published())
    assert len(checks) == 3 * 13 + 3
    assert all(check.holds for check in checks)
    assert np.mean(GPT2_OPENWEBTEXT["rank"]) == pytest.approx(PAPER["GPT-2"]["rank"][0], abs=0.005)
    assert np.std(GPT2_OPENWEBTEXT["rank"]) == pytest.approx(PAPER["GPT-2"]["rank"][1], abs=0.005)
    assert np.mean(GPT2_OPENWEBTEXT["relative norm"]) == pytest.approx(PAPER["GPT-2"]["relative norm"][0], abs=0.001)


@pytest.mark.parametrize(
    ("name", "site", "off", "failing"),
    [
        ("rank", 3, 3.0, "rank at layer 3"),
        ("stable rank", 0, 0.06, "stable rank at the embeddings"),
        ("relative norm", 12, -0.016, "relative norm at layer 12"),
        ("relative norm", 5, math.nan, "relative norm at layer 5"),
    ],
)
def test_a_value_that_is_off_fails(name: str, site: int, off: float, failing: str) -> None:
    wrong: Mapping[str, list[float]] = {key: [*row] for key, row in published().items()}
    wrong[name][site] += off
    assert [check.name for check in acceptance(wrong) if not check.holds] == [failing]
    assert sum("FAILS" in line for line in report(acceptance(wrong)).splitlines()) == 1


def test_means_that_are_off_fail() -> None:
    wrong = published() | {
        "rank": [value + 1 for value in GPT2_OPENWEBTEXT["rank"]],
        "within": [0.48] * 13,
        "between": [math.nan] * 13,
    }
    assert [check.name for check in acceptance(wrong) if not check.holds] == ["mean rank", "mean within", "mean between"]


def test_only_gpt2_small_is_laid_beside_gpt2(model: Model) -> None:
    assert not is_gpt2_small(model)


def planted() -> Column:
    return Column("toy", dict.fromkeys(song2023._MEASURES, [2.0]), dict.fromkeys(song2023._MEASURES, [1.0]))


def test_the_paper_s_column_stands_beside_the_clean_one() -> None:
    clean = planted()
    page = describe(clean, clean, paper_column({"rank": [11.0, 13.0], "within": [0.4]}))
    header, first, *_ = page.splitlines()
    assert "paper's protocol" in header
    assert first.split()[:5] == ["rank", "2", "(0)", "1", "(0)"]
    assert "12 (1)" in first
    assert "What differs from the paper in the column paper's protocol:" in page
    assert "paper's protocol" not in describe(clean, clean)


def test_the_recipe_prints_the_column_and_fails_where_a_published_value_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], texts: list[str]
) -> None:
    folder = toys.save_checkpoint(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(texts))
    arguments = ["song2023", str(folder), str(tmp_path / "text.txt"), "--protocol", "paper", "--contexts", "16"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(song2023, "columns", lambda *_, **__: (planted(), planted()))
    assert song2023.main() == 0
    assert "By the paper's protocol, site by site:" in capsys.readouterr().out
    monkeypatch.setattr(song2023, "is_gpt2_small", lambda _: True)
    monkeypatch.setattr(song2023, "paper_values", lambda *_, **__: published())
    assert song2023.main() == 0
    monkeypatch.setattr(song2023, "paper_values", lambda *_, **__: published() | {"within": [0.9] * 13})
    assert song2023.main() == 1
    assert "FAILS" in capsys.readouterr().out
