"""The training experiments of Song & Zhong: noise where it should be, runs that continue bit by bit, and the conclusion at a small size."""

import dataclasses
import math
from pathlib import Path
from pydoc_data import topics

import pytest
import torch

from microtome.core import Refusal
from microtome.model import wrap
from recipes.contrast import Contrast
from recipes.curves import Windows, curves
from recipes.language import Language, Level, language, noisy
from recipes.training import Examples, Schedule, Size, decoder, train

SMALL = Size(layers=2, width=16, heads=2, window=12, vocabulary=300)
SHORT = Schedule(steps=9, batch=4, rate=1e-2, warmup=2, every=4)


def texts() -> list[str]:
    return [topics.topics[name] for name in sorted(topics.topics)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Language:
    return language(texts()[:30], SMALL.vocabulary, SMALL.window, tmp_path_factory.mktemp("language"))


def parameters(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize(("level", "kept"), [("clean", 13), ("half random", 6), ("random", 0)])
def test_noise_replaces_the_end_of_every_window(level: Level, kept: int) -> None:
    windows = torch.full((500, 13), 7, dtype=torch.int32)
    found = noisy(windows, level, 11, torch.Generator().manual_seed(0))
    assert torch.equal(found[:, :kept], windows[:, :kept])
    noise = found[:, kept:]
    if kept < 13:
        shares = torch.bincount(noise.flatten().long(), minlength=11) / noise.numel()
        assert float((shares - 1 / 11).abs().max()) < 0.02
        assert not torch.equal(noise, noisy(windows, level, 11, torch.Generator().manual_seed(1))[:, kept:])


def test_every_window_is_read_once_and_held_ones_never(text: Language) -> None:
    stream = text.stream("clean", 3)
    assert torch.equal(stream.ids[:, 1:], stream.targets[:, :-1])
    rows = torch.cat([stream.ids, stream.targets[:, -1:]], 1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, text.windows.tolist()))
    assert not torch.equal(rows, text.windows), "in an order of its own"
    assert set(text.document.tolist()) <= {0, 1, 2}, "every tenth of 30 documents"
    with pytest.raises(Refusal, match="it has 3 documents"):
        language(texts()[:3], 300, 12, Path("nowhere"))


@pytest.mark.parametrize("interruption", [1, 4, 6])
def test_interrupted_and_continued_is_the_same_bit_by_bit(text: Language, tmp_path: Path, interruption: int) -> None:
    examples = text.stream("clean", 0)
    once, twice = decoder(SMALL, 0), decoder(SMALL, 0)
    whole = train(once, examples, SHORT, tmp_path / "once")
    partly = train(twice, examples, SHORT, tmp_path / "twice", until=interruption)
    assert len(partly.losses) == interruption
    assert not partly.done
    fresh = decoder(SMALL, 0)
    rest = train(fresh, examples, SHORT, tmp_path / "twice")
    assert torch.equal(whole.losses, rest.losses)
    assert all(map(torch.equal, parameters(once), parameters(fresh)))
    assert not all(map(torch.equal, parameters(once), parameters(decoder(SMALL, 0))))
    again = decoder(SMALL, 0)
    assert train(again, examples, SHORT, tmp_path / "twice").seconds == rest.seconds, "what is done is read, not trained"
    assert all(map(torch.equal, parameters(once), parameters(again)))


def test_what_is_solved_is_not_trained_further(text: Language, tmp_path: Path) -> None:
    examples, asked = text.stream("clean", 0), []

    def second_time(module: torch.nn.Module) -> bool:
        asked.append(parameters(module))
        return len(asked) > 1

    module = decoder(SMALL, 0)
    found = train(module, examples, SHORT, tmp_path, solved=second_time)
    assert (len(found.losses), found.done) == (8, True), "the second checkpoint"
    again = decoder(SMALL, 0)
    assert len(train(again, examples, SHORT, tmp_path, solved=second_time).losses) == 8
    assert len(asked) == 2, "what is done is read"
    assert all(map(torch.equal, parameters(again), asked[1]))


def test_positions_begin_at_the_size_that_is_asked_for() -> None:
    small, usual = (decoder(dataclasses.replace(SMALL, positions=size), 0).transformer.wpe.weight for size in (0.1, 1.0))
    assert torch.equal(usual * 0.1, small)
    assert float(usual.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_runs_that_cannot_be(text: Language, tmp_path: Path) -> None:
    examples = text.stream("clean", 0)
    train(decoder(SMALL, 0), examples, SHORT, tmp_path)
    with pytest.raises(Refusal, match="holds a run with other settings"):
        train(decoder(SMALL, 1), examples, SHORT, tmp_path)
    few = Examples(examples.ids[:35], examples.targets[:35])
    with pytest.raises(Refusal, match="there are 35 examples, and none is read twice"):
        train(decoder(SMALL, 0), few, SHORT, tmp_path)


def test_the_first_curve_is_that_of_the_position_embeddings(text: Language) -> None:
    module = decoder(SMALL, 0)
    place = torch.arange(SMALL.window, dtype=torch.float64)
    slow = torch.stack([torch.cos(math.pi * k * (place + 0.5) / SMALL.window) for k in range(1, 5)], 1)
    planted = slow @ torch.randn(4, SMALL.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        module.transformer.wpe.weight.copy_(planted.float())
    own = planted[1:] - planted[1:].mean(0)
    exact = float(own.diff(dim=0).square().sum() / own.square().sum())
    held = text.fresh("clean", 0)
    smooth = curves(wrap(module), Windows.whole(held.ids, text.document))
    white = curves(wrap(decoder(SMALL, 0)), Windows.whole(held.ids, text.document))
    assert [curve.site for curve in smooth] == ["resid_pre.0", "resid_post.0", "resid_post.1"]
    assert smooth[0].roughness == pytest.approx(exact, rel=0.01)
    assert sum(smooth[0].steps) == pytest.approx(smooth[0].roughness * (SMALL.window - 1))
    apart = (own[2:] - own[:-2]).square().sum(1) / own.square().sum(1).mean()
    assert smooth[0].leaps == pytest.approx(apart.tolist(), rel=0.05, abs=0.01)
    assert smooth[0].roughness < 0.5 * smooth[0].rough_lo
    assert white[0].roughness > 3 * smooth[0].roughness


def test_a_contrast_is_one_only_beyond_the_spread_of_seeds() -> None:
    assert Contrast("it is", (1.0, 1.1), (1.3, 1.4)).verdict == "yes"
    assert Contrast("it is", (1.3, 1.4), (1.0, 1.1)).verdict == "the other way round"
    assert Contrast("it is", (1.0, 1.1), (1.1, 1.4)).verdict == "no"
    assert Contrast("it is", (1.0, 1.1), (1.1, 1.4)).spread == pytest.approx(0.3)
