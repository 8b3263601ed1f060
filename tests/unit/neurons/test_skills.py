import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from microtome.core import CONTENT, Refusal, Site
from microtome.corpus import prompt_batch
from microtome.intervene import Edit, Noise, edited
from microtome.model import Model, capture
from microtome.neurons.experts import Responses, responses
from microtome.neurons.skills import (
    EachNoise,
    Suppression,
    pairs,
    readings,
    shared_units,
    similarity,
    skills,
    suppressed,
)
from microtome.neurons.skills_prompts import SoftPrompt, Task, accuracy, prompted
from tests.toys import toy_decoder, toy_encoder
from tests.unit.neurons.planted_models import KINDS, Kind, shared_fact_model

TEXTS = ["The river holds the stone.", "The garden.", "The engine leaves the market. The winter turns the mirror."]


def planted(texts: int = 200, units: int = 30, seed: int = 0) -> tuple[Responses, torch.Tensor]:
    """The sign of unit 4 is the label, that of unit 21 (in layer 1) the opposite; unit 9 knows it four times in five; 2 is constant."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(texts, generator=generator) < 0.5
    value = torch.randn(1, texts, units, generator=generator)
    sign = torch.where(y, 1.0, -1.0)
    value[0, :, 4] = sign * (0.5 + value[0, :, 4].abs())
    value[0, :, 21] = -sign * (0.5 + value[0, :, 21].abs())
    right = torch.rand(texts, generator=generator) < 0.8
    value[0, :, 9] = torch.where(right, sign, -sign) * (0.5 + value[0, :, 9].abs())
    value[0, :, 2] = 3.0
    return Responses((0, 1), value), y


def test_a_unit_whose_sign_is_the_label_has_all_of_the_skill() -> None:
    found, y = planted()
    skilled = skills(found, y)
    assert float(skilled.skill[4]) == float(skilled.skill[21]) == 1
    assert float(skilled.confirmed[4]) == float(skilled.confirmed[21]) == 1
    assert (bool(skilled.positive[4]), bool(skilled.positive[21])) == (True, False)
    assert skilled.order()[:3].tolist() == [4, 21, 9]
    assert [str(skilled.address(unit)) for unit in (4, 21)] == ["neurons.0/4", "neurons.1/6"]
    assert 0.65 < float(skilled.skill[9]) < 0.95
    assert skilled.p[[4, 21]].tolist() == [1 / 200] * 2
    assert float(skilled.skill[2]) == skilled.base, "a constant unit always says the same"
    assert float(skilled.null.max()) < 0.85


def test_scores_by_hand() -> None:
    found, y = planted()
    skilled = skills(found, y)
    others = torch.ones(200, dtype=torch.bool)
    others[skilled.test] = False
    value = found.value[0].double()
    fired = value[skilled.test] > skilled.baseline[0]
    share = (fired == y[skilled.test][:, None]).double().mean(0)
    right = torch.where(skilled.positive, share, 1 - share)
    np.testing.assert_allclose(skilled.confirmed, torch.where(skilled.skill > 0.5, right, 0.5))
    counts = [int(y[skilled.test].sum()), int((~y[skilled.test]).sum())]
    assert counts == [round(int(kind.sum()) * 0.3) for kind in (y, ~y)], "each part has both labels"
    assert not bool(torch.isclose(skilled.baseline[0, 4], value[:, 4].mean(), atol=1e-9)), "the mean is that of training texts"


def test_random_labels_have_no_skill() -> None:
    """The best of 300 units looks skilled on the texts that chose it; the null knows, and other texts show it."""
    found, _ = planted(units=300)
    y = torch.rand(200, generator=torch.Generator().manual_seed(5)) < 0.5
    skilled = skills(found, y)
    best = skilled.order()[:10]
    assert float(skilled.skill[best].mean()) > 0.63
    assert float(skilled.confirmed[best].mean()) < 0.58
    assert float(skilled.p.min()) > 0.02


def test_reversing_a_unit_changes_its_direction_alone() -> None:
    found, y = planted()
    one, other = skills(found, y), skills(Responses((0, 1), -found.value), y)
    moving = torch.arange(30) != 2
    assert bool((one.skill == other.skill).all())
    assert bool((one.confirmed == other.confirmed)[moving].all())
    assert bool((one.positive != other.positive)[moving & (one.skill > 0.5)].all())
    assert bool((one.null == other.null).all())


def test_the_best_place_is_kept() -> None:
    found, y = planted()
    noise = torch.randn(2, 200, 30, generator=torch.Generator().manual_seed(8))
    several = skills(Responses((0, 1), torch.cat([noise[:1], found.value, noise[1:]])), y)
    assert several.place[[4, 21]].tolist() == [1, 1]
    assert float(several.confirmed[4]) == 1
    alone = skills(found, y)
    assert bool((several.skill >= alone.skill).all())
    assert bool((several.null >= alone.null).all()), "more places, more chances: the null has them too"


@pytest.mark.parametrize("model", [toy_decoder(), toy_encoder()], ids=["decoder", "encoder"])
def test_readings_are_activations_of_the_texts_alone(model: Model) -> None:
    largest, last, mean = (readings(model, TEXTS, at=at, at_once=3) for at in ("max", "last", "mean"))
    torch.testing.assert_close(largest.value, responses(model, TEXTS).value, atol=1e-5, rtol=1e-5)
    for row, text in enumerate(TEXTS):
        batch = prompt_batch(model.tokenizer, [text])
        value = capture(model, batch, [site := Site("mlp_act", 1)])[site][0]
        torch.testing.assert_close(last.value[0, row, 40:80], value[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mean.value[0, row, 40:80], value[batch.counted(CONTENT)[0]].mean(0), atol=1e-5, rtol=1e-5)
    some = readings(model, TEXTS, layers=(1,))
    torch.testing.assert_close(some.value, last.value[:, :, 40:80], atol=1e-6, rtol=1e-6)


def test_readings_at_a_soft_prompt() -> None:
    model = toy_encoder()
    ids = prompt_batch(model.tokenizer, ["The stone"]).ids
    prompt = SoftPrompt(model.weights.get("W_E")[ids[0]].float())
    found = readings(model, TEXTS, at="prompt", prompt=prompt)
    with prompted(model, TEXTS[:1], prompt) as batch:
        value = capture(model, batch, [site := Site("mlp_act", 1)])[site][0]
    torch.testing.assert_close(found.value[:, 0, 40:], value[: len(ids[0])], atol=1e-5, rtol=1e-5)
    assert float((found.value[:, 0] - found.value[:, 1]).abs().max()) > 1e-3, "it knows of the text"
    with pytest.raises(Refusal, match="readings at a soft prompt: there is none"):
        readings(model, TEXTS, at="prompt")
    with pytest.raises(Refusal, match="knows nothing of the text"):
        readings(toy_decoder(), TEXTS, at="prompt", prompt=SoftPrompt(torch.zeros(2, 24)))


def test_texts_that_cannot_be_read_or_dealt_are_refused() -> None:
    with pytest.raises(Refusal, match="the mean over a text: none of its tokens"):
        readings(toy_decoder(), ["T"], at="mean")
    found, y = planted(12)
    with pytest.raises(Refusal, match="4 texts have the label yes"):
        skills(found, torch.arange(12) < 4)
    with pytest.raises(Refusal, match="12 texts and 11 labels"):
        skills(found, y[:11])
    with pytest.raises(Refusal, match="suppression of units"):
        Suppression((0.6,))


def test_several_classes_are_tasks_of_two() -> None:
    y = torch.tensor([0, 1, 2, 2, 1, 0])
    found = pairs(y, ("a", "b", "c"))
    assert [each.name for each in found] == ["a or b", "a or c", "b or c"]
    assert (found[1].rows.tolist(), found[1].y.tolist()) == ([0, 2, 3, 5], [False, True, True, False])
    one, y = planted()
    first, second = skills(one, y), skills(Responses((0, 1), one.value.roll(1, 2)), y)
    assert [str(unit) for unit in shared_units([first, second], 4)] == [
        "neurons.0/4",
        "neurons.0/5",
        "neurons.1/6",
        "neurons.1/7",
    ]
    assert len(set(shared_units([first, first], 6))) == 6


def test_similar_tasks_have_similar_skills() -> None:
    generator = torch.Generator().manual_seed(2)
    y = torch.rand(400, generator=generator) < 0.5
    strength = torch.linspace(0, 2, 200)
    value = [torch.randn(1, 400, 200, generator=generator) + strength * y[:, None] for _ in range(2)]
    one, other = (skills(Responses((0,), each), y) for each in value)
    found = similarity(one, other)
    assert found.correlation > 0.8
    assert abs(found.control) < 0.2
    assert found.correlation == pytest.approx(spearmanr(one.skill, other.skill)[0])
    with pytest.raises(Refusal, match="two tasks' skills"):
        similarity(one, skills(*planted()))


def two_answers(kind: Kind, dtype: torch.dtype = torch.float32) -> tuple[Model, Task, int]:
    """A task that one unit of a planted model decides: which of two capitals; and its number among the units of all layers."""
    planted = shared_fact_model(kind, dtype=dtype)
    (yes,) = planted.units["capital", "sudmark"]
    templates = ("the capital of {}", "in a capital of {}", "we say capital in {}", "capital {}", "is the capital of {}")
    fillers = ("", "we say ", "a city in ", "is ")
    texts = [filler + template.format(s) for s in ("norland", "sudmark") for template in templates for filler in fillers]
    y = torch.arange(len(texts)) >= len(texts) // 2
    return planted.model, Task(tuple(texts), y, ("aro", "bem")), (yes.layer or 0) * planted.model.shape.d_mlp + yes.index


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_planted_skill_is_found_and_the_task_fails_without_it(kind: Kind, dtype: torch.dtype) -> None:
    model, task, unit = two_answers(kind, dtype)
    assert accuracy(model, task) == 1
    found = skills(readings(model, task.texts), task.y)
    assert float(found.skill[unit]) == float(found.confirmed[unit]) == 1
    assert bool(found.positive[unit])
    share = 0.5
    lost = suppressed(model, task.take(found.test), found, settings=Suppression((share,), draws=4))
    assert (lost.clean, lost.base) == (1, 0.5)
    assert float(lost.accuracy[0]) <= 0.6
    assert float(lost.random.mean()) >= 0.9


def test_changes_of_units_are_by_their_number() -> None:
    model, task, _ = two_answers("silu")
    found = skills(readings(model, task.texts), task.y)
    seen: list[int] = []

    def noted(units: torch.Tensor) -> Noise:
        seen.extend(units.tolist())
        return Noise(0.0)

    lost = suppressed(model, task, found, noted, Suppression((0.1,), draws=1))
    assert (float(lost.accuracy[0]), float(lost.random[0, 0]), lost.clean) == (1, 1, 1), "no noise, no loss"
    size = round(0.1 * found.width)
    layers = [number // found.width for number in seen]
    assert layers == [layer for _ in range(2) for layer in range(model.shape.layers) for _ in range(size)]
    best, others = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert not set(best) & set(others)
    for layer in range(model.shape.layers):
        mine = found.skill[layer * found.width : (layer + 1) * found.width]
        chosen = [number - layer * found.width for number in best if number // found.width == layer]
        assert sorted(mine[chosen].tolist(), reverse=True) == mine.sort(descending=True).values[:size].tolist()


def test_noise_of_each_unit() -> None:
    model = toy_decoder()
    batch = prompt_batch(model.tokenizer, [" ".join(TEXTS)])
    site, units = Site("mlp_act", 0), [3, 7, 11]
    clean = capture(model, batch, [site])[site]
    deviation = torch.tensor([0.0, 1.0, 10.0])
    with edited(model, batch, [Edit(site, EachNoise(deviation, seed=1), units)]):
        change = (capture(model, batch, [site])[site] - clean)[0]
    assert change[:, 3].abs().max() == 0
    torch.testing.assert_close(change[:, [7, 11]].std(0), deviation[1:], rtol=0.5, atol=0)
    rest = [unit for unit in range(40) if unit not in units]
    assert change[:, rest].abs().max() == 0
