import numpy as np
import pytest
import torch

from microtome.core import CONTENT, Refusal, Site
from microtome.corpus import prompt_batch
from microtome.model import capture
from microtome.neurons.experts import Responses, expertise, experts, overlap, responses
from microtome.neurons.nmf import Factoring, ends_of, factored
from tests.toys import toy_decoder, toy_encoder

LABELS = torch.tensor([1, 1, 0, 1, 0, 0], dtype=torch.bool)
PUBLISHED_AP = [
    [0.7222222, 0.5555556, 1.0, 1.0, 1.0, 0.6333333, 0.9166667, 0.7, 0.8055556, 0.7222222],
    [0.7, 0.6666667, 0.7222222, 0.4111111, 0.7222222, 0.8333333, 0.7, 0.5333333, 0.6333333, 0.4666667],
]


def published() -> torch.Tensor:
    """The responses of 20 units to six texts in apple/ml-selfcond's test, as both ends; labels are LABELS."""
    drawn = np.random.RandomState(1234)
    value = torch.from_numpy(np.concatenate([drawn.rand(10, 6), drawn.rand(10, 6)])).T
    return torch.stack([value, -value])


def test_published_expertise() -> None:
    found = expertise(published(), LABELS)
    np.testing.assert_allclose(found.ap[0], np.concatenate(PUBLISHED_AP), atol=1e-6)
    assert float(found.off_mean[0].mean()) == pytest.approx(0.4874335, abs=1e-7)
    assert float(found.on_p50[0].mean()) == pytest.approx(0.5709945, abs=2e-7)
    assert float(found.on_p90[0].mean()) == pytest.approx(0.7784127, abs=1e-7)
    np.testing.assert_allclose(found.on_p50[0, [0, 10]], [0.6221087710398319, 0.2852509600245098])
    np.testing.assert_allclose(found.on_p90[0, [0, 10]], [0.7527086211789817, 0.5569835562496308])
    np.testing.assert_allclose(found.off_mean[0, [0, 10]], [0.4967653841361866, 0.3047616442828059])
    assert found.base == 0.5


def test_the_better_end_is_kept_with_its_sign() -> None:
    found = expertise(published(), LABELS)
    best, end = found.best
    assert bool((best == found.ap.amax(0)).all())
    assert float(found.on_p50[1, 0]) == pytest.approx(-0.6221087710398319)
    swapped = expertise(published().flip(0), LABELS)
    torch.testing.assert_close(swapped.best[0], best)
    assert bool((swapped.best[1] == 1 - end)[found.ap[0] != found.ap[1]].all())
    assert found.top(3).tolist() == [2, 3, 4]
    assert found.beyond(1.0) == int((best == 1).sum())


TEXTS = ["The river holds the stone.", "The garden.", "The engine leaves the market. The winter turns the mirror."]


@pytest.mark.parametrize("model", [toy_decoder(), toy_encoder()], ids=["decoder", "encoder"])
def test_responses_are_extremes_of_counted_tokens_without_padding(model) -> None:
    found = responses(model, TEXTS, at_once=3)
    assert found.value.shape == (2, 3, model.shape.layers * 40)
    for row, text in enumerate(TEXTS):
        batch = prompt_batch(model.tokenizer, [text])
        site = Site("mlp_act", 1)
        value = capture(model, batch, [site])[site][0][batch.counted(CONTENT)[0]]
        torch.testing.assert_close(found.value[0, row, 40:80], value.amax(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.value[1, row, 40:80], -value.amin(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(responses(model, TEXTS, at_once=1).value, found.value, atol=1e-5, rtol=1e-5)
    some = responses(model, TEXTS, layers=(1,))
    torch.testing.assert_close(some.value, found.value[:, :, 40:80], atol=1e-6, rtol=1e-6)
    assert (str(found.address(45)), str(some.address(5))) == ("neurons.1/5", "neurons.1/5")


def test_a_text_of_one_token_is_refused_in_a_decoder() -> None:
    with pytest.raises(Refusal, match="responses to 'T': none of its tokens is counted"):
        responses(toy_decoder(), ["T"])


def planted(texts: int = 120) -> tuple[Responses, torch.Tensor]:
    """Units 5 (forwards) and 30 (backwards, in layer 1) are experts of the concept."""
    generator = torch.Generator().manual_seed(0)
    concept = torch.arange(texts) % 3 == 0
    value = torch.rand(2, texts, 40, generator=generator)
    value[0, concept, 5] += 2.0
    value[1, concept, 30] += 3.0
    return Responses((0, 1), value), concept


def test_planted_experts_are_found_and_confirmed() -> None:
    found, concept = planted()
    chosen = experts(found, concept, k=4, draws=9)
    assert [str(unit) for unit in chosen.units[:2]] == ["neurons.0/5", "neurons.1/10"]
    assert chosen.end[:2].tolist() == [0, 1]
    np.testing.assert_allclose(chosen.confirmed[:2], 1.0)
    assert bool((chosen.confirmed[2:] < 0.7).all())
    assert float(chosen.null.max()) < 0.7
    np.testing.assert_allclose(chosen.p[:2], 1 / 37)
    assert float(chosen.p.max()) > 0.5
    np.testing.assert_allclose(chosen.value[:2], [2.5, -3.5], atol=0.15)
    np.testing.assert_allclose(chosen.off[:2], [0.5, -0.5], atol=0.15)
    assert not set(chosen.control) & set(chosen.units)
    assert [unit.layer for unit in chosen.control] == [unit.layer for unit in chosen.units]
    assert len(set(chosen.control)) == 4


def test_random_labels_have_no_experts() -> None:
    found, _ = planted()
    concept = torch.rand(120, generator=torch.Generator().manual_seed(7)) < 0.3
    chosen = experts(found, concept, k=10, draws=19)
    assert float(chosen.ap.mean()) > float(chosen.confirmed.mean()) + 0.05, "the selection flatters itself"
    assert abs(float(chosen.confirmed.mean()) - float(chosen.null.mean())) < 0.1
    assert float(chosen.p.min()) > 0.005


def test_too_few_texts_are_refused() -> None:
    found, concept = planted(12)
    with pytest.raises(Refusal, match="1 texts are with it, and two are needed in each half"):
        experts(found, concept & (torch.arange(12) == 0))
    with pytest.raises(Refusal, match="no unit of layer 0 is left beside 40 experts"):
        experts(found, concept, k=40)


def test_overlap_of_concepts() -> None:
    found, concept = planted()
    one = expertise(found.value, concept)
    other = expertise(found.value.roll(1, 2), concept)
    assert overlap(one, one, 2).share == 1
    assert overlap(one, one, 2).p == pytest.approx(1 / (40 * 39 / 2))
    apart = overlap(one, other, 2)
    assert (apart.share, apart.chance, apart.p) == (0, 0.05, 1)


def superposed(texts: int = 4000) -> tuple[torch.Tensor, torch.Tensor]:
    """Two features, each in a tenth of the texts, on unit 0 together; unit 1 has the first alone. Others are noise."""
    generator = torch.Generator().manual_seed(0)
    there = torch.rand(texts, 2, generator=generator) < 0.1
    response = 0.1 * torch.randn(texts, 6, generator=generator)
    response[:, 0] += 3 * there.any(1)
    response[:, 1] += 3 * there[:, 0]
    return response, there


def test_a_unit_of_two_features_is_an_expert_of_neither() -> None:
    response, there = superposed()
    for feature in (0, 1):
        found = expertise(torch.stack([response, -response]), there[:, feature])
        precision = float((there[:, feature] & there.any(1)).sum() / there.any(1).sum())
        assert float(found.ap[0, 0]) == pytest.approx(precision, abs=0.05), (
            "as often as the unit's high texts have it, in any order"
        )
        assert float(found.ap[0, 0]) < 0.75
    assert float(expertise(torch.stack([response, -response]), there[:, 0]).ap[0, 1]) == 1
    both = expertise(torch.stack([response, -response]), there.any(1))
    assert float(both.ap[0, 0]) == 1


def test_too_few_units_leave_factors_with_a_large_error() -> None:
    """Twelve features in six units: six factors miss much, as many as there are ends fit and are not the features; nothing is raised."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(300, 12, generator=generator) * (torch.rand(300, 12, generator=generator) < 0.2)
    directions = torch.nn.functional.normalize(torch.randn(12, 6, generator=generator), dim=1)
    few, own = (factored(x, Factoring(6)) for x in (features @ directions, features[:, :6]))
    assert few.error > 0.25
    assert own.error < 0.02
    many = factored(features @ directions, Factoring(12))
    nearest = (torch.nn.functional.normalize(ends_of(directions, "both"), dim=1) @ many.units.T).max(1).values
    assert many.error < 0.05
    assert float(nearest.max()) < 0.95, "no feature is a factor"
