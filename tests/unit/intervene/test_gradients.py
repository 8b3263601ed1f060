"""Attributions against finite differences, exact identities and each other."""

import pytest
import torch

from microtome.core import Refusal, Site
from microtome.intervene import (
    Edit,
    Path,
    Question,
    Set,
    answers,
    attribution_patching,
    edited,
    gradient_times_activation,
    gradients_at,
    integrated_gradients,
)
from microtome.intervene.integrated import RULES, Rule
from microtome.model import capture
from tests.unit.model.tiny import batch_for, opened

ACT = Site("mlp_act", 1)
PLACE, TOKEN = torch.tensor([6, 4]), torch.tensor([8, 9])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "gemma2"])
@pytest.mark.parametrize("site", ["mlp_act.1", "resid_post.0", "z.1"])
def test_gradients_are_those_of_finite_differences(name: str, site: str) -> None:
    model, where = opened(name), Site.parse(site)
    batch, question = batch_for(model, (7, 5)), Question(PLACE, TOKEN, scale="logit")
    values, gradients = gradients_at(model, batch, question, [where, Site("mlp_act", 2)])
    assert torch.equal(values[where], capture(model, batch, [where])[where])
    flat, step = values[where].flatten(2), 1e-2
    for place, unit in ((0, 3), (4, 5)):
        ends = []
        for sign in (-1, 1):
            moved = flat.clone()
            moved[:, place, unit] += sign * step
            with edited(model, batch, [Edit(where, Set(moved))]):
                ends.append(answers(model, batch, question))
        expected = (ends[1] - ends[0]) / (2 * step)
        torch.testing.assert_close(gradients[where].flatten(2)[:, place, unit], expected, atol=2e-3, rtol=2e-2)


def test_what_only_the_logits_read_is_attributed_exactly() -> None:
    """An answer as a logit, one unit of the last layer of a model without a final norm: h times its written vector at the token."""
    model = opened("opt-unnormed")
    batch, last = batch_for(model), Site("mlp_act", 2)
    place = torch.tensor([6, 6])
    found = gradient_times_activation(model, batch, Question(place, TOKEN, scale="logit"), [last])[last]
    act = capture(model, batch, [last])[last].reshape(2, 7, -1)[:, 6]
    written = model.weights.get("W_out", 2) @ model.weights.get("W_U")
    torch.testing.assert_close(found.reshape(2, 7, -1)[:, 6], act * written[:, TOKEN].T, atol=1e-6, rtol=1e-5)


def test_patching_from_the_same_run_is_worth_nothing_and_from_zero_minus_the_activation() -> None:
    model = opened("llama")
    batch, question = batch_for(model), Question(torch.tensor([6, 6]), TOKEN)
    held = {ACT: capture(model, batch, [ACT])[ACT].clone()}
    assert float(attribution_patching(model, batch, held, question)[ACT].abs().max()) == 0
    zero = attribution_patching(model, batch, {ACT: torch.zeros_like(held[ACT])}, question)[ACT]
    torch.testing.assert_close(zero, -gradient_times_activation(model, batch, question, [ACT])[ACT])
    with pytest.raises(Refusal, match="give prompts of as many tokens"):
        attribution_patching(model, batch, {ACT: held[ACT][:, :5]}, question)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_integrated_gradients_add_up(name: str) -> None:
    model = opened(name)
    batch, question = batch_for(model, (7, 5)), Question(PLACE, TOKEN, scale="logit")
    found = integrated_gradients(model, batch, question, path=Path("gauss", 12))
    assert float(found.error.abs().max()) < 1e-4
    torch.testing.assert_close(found.end, answers(model, batch, question))
    for layer in range(model.shape.layers):
        acts = capture(model, batch, [Site("mlp_act", layer)])[Site("mlp_act", layer)].clone()
        acts[torch.arange(2), PLACE] = 0
        with edited(model, batch, [Edit(Site("mlp_act", layer), Set(acts))]):
            torch.testing.assert_close(found.start[:, layer], answers(model, batch, question))


def test_errors_of_the_rules_fall_as_they_should() -> None:
    """Of one layer from 8 to 16 steps: left and right by 2, midpoint by 4."""
    model = opened("llama")
    batch, question = batch_for(model), Question(torch.tensor([6, 6]), TOKEN, scale="logit")

    def error(rule: Rule, steps: int) -> float:
        found = integrated_gradients(model, batch, question, [0], path=Path(rule, steps))
        return float(found.error.abs().mean())

    ratios: dict[Rule, int] = {"left": 2, "right": 2, "midpoint": 4}
    for rule, ratio in ratios.items():
        assert error(rule, 8) / error(rule, 16) == pytest.approx(ratio, rel=0.25)


@pytest.mark.parametrize(
    ("rule", "steps", "places"),
    [
        ("left", 4, [0, 1 / 4, 1 / 2, 3 / 4]),
        ("right", 4, [1 / 4, 1 / 2, 3 / 4, 1]),
        ("midpoint", 4, [1 / 8, 3 / 8, 5 / 8, 7 / 8]),
        ("closed", 5, [0, 1 / 4, 1 / 2, 3 / 4, 1]),
        ("left", 1, [0]),
        ("right", 1, [1]),
        ("midpoint", 1, [1 / 2]),
        ("gauss", 1, [1 / 2]),
        ("gauss", 2, [(1 - 3**-0.5) / 2, (1 + 3**-0.5) / 2]),
    ],
)
def test_rules_are_those_of_the_textbook(rule: Rule, steps: int, places: list[float]) -> None:
    """All weights are 1 / n: `closed` has both ends and divides by their number, not by the number of steps between them."""
    found, weights = RULES[rule](steps)
    assert found == pytest.approx(places, abs=1e-15)
    assert weights == pytest.approx([1 / steps] * steps, abs=1e-15)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gauss_integrates_polynomials_exactly(steps: int) -> None:
    """Of degree 2 n - 1, and of the next one not."""
    places, weights = RULES["gauss"](steps)
    for power in range(2 * steps):
        assert float((weights * places**power).sum()) == pytest.approx(1 / (power + 1), rel=1e-13)
    assert abs(float((weights * places ** (2 * steps)).sum()) * (2 * steps + 1) - 1) > 1e-6


@pytest.mark.parametrize("rule", ["left", "right", "midpoint", "gauss"])
def test_one_step_is_exact_where_the_logit_is_linear(rule: Rule) -> None:
    """Units of the last layer of a model without a final norm: h_i (v_i . e_w), wherever on the path the gradient is taken."""
    model = opened("opt-unnormed")
    batch, question = batch_for(model, (7, 5)), Question(PLACE, TOKEN, scale="logit")
    found = integrated_gradients(model, batch, question, [2], path=Path(rule, 1))
    act = capture(model, batch, [Site("mlp_act", 2)])[Site("mlp_act", 2)].reshape(2, 7, -1)[torch.arange(2), PLACE]
    written = model.weights.get("W_out", 2) @ model.weights.get("W_U")
    torch.testing.assert_close(found.values[:, 0], act * written[:, TOKEN].T, atol=1e-6, rtol=1e-5)
    assert float(found.error.abs().max()) < 1e-5


def test_one_step_to_the_right_is_gradient_times_activation() -> None:
    model = opened("llama")
    batch, question = batch_for(model, (7, 5)), Question(PLACE, TOKEN)
    found = integrated_gradients(model, batch, question, [1], path=Path("right", 1)).values[:, 0]
    local = gradient_times_activation(model, batch, question, [ACT])[ACT].flatten(2)[torch.arange(2), PLACE]
    torch.testing.assert_close(found, local, atol=1e-8, rtol=1e-4)
    assert not torch.allclose(
        integrated_gradients(model, batch, question, [1], path=Path("left", 1)).values[:, 0], local, rtol=1e-2
    )


def test_an_attribution_is_the_same_alone_and_in_a_batch() -> None:
    model = opened("gpt2")
    batch, question = batch_for(model, (7, 5)), Question(PLACE, TOKEN)
    together = integrated_gradients(model, batch, question, path=Path(steps=5))
    one = torch.tensor([1])
    alone = integrated_gradients(model, batch.take(one), question.take(one), path=Path(steps=5), at_once=2)
    torch.testing.assert_close(alone.values, together.values[1:], atol=1e-7, rtol=1e-5)


def test_scale_and_sign_of_a_unit_leave_its_attribution_as_it_is() -> None:
    """The up branch of a gated unit times -3 and what it writes over -3: the same function, and the same attribution."""
    from microtome.model import wrap
    from tests.unit.model.tiny import built

    batch = batch_for(opened("llama"))
    question = Question(torch.tensor([6, 6]), TOKEN)
    before = integrated_gradients(opened("llama"), batch, question, [1], path=Path(steps=5)).values
    module = built("llama")
    block = module.model.layers[1].mlp
    with torch.no_grad():
        block.up_proj.weight[4] *= -3
        block.down_proj.weight[:, 4] /= -3
    after = integrated_gradients(wrap(module, name="turned"), batch, question, [1], path=Path(steps=5)).values
    torch.testing.assert_close(after, before, atol=1e-7, rtol=1e-4)


def test_bad_sums_are_refused() -> None:
    nothing: dict[Rule, int] = {"left": 0, "closed": 1}
    for rule, steps in nothing.items():
        with pytest.raises(Refusal, match="there is no such sum"):
            Path(rule, steps)
