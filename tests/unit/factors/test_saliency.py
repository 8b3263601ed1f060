"""Saliency: what each method gives where the answer is known, and that all of them take tokens away in the same way."""

import math
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from microtome.core import Refusal, Role, Site
from microtome.corpus import prompt_batch
from microtome.factors.basis import Factors
from microtome.factors.coding import Greedy, Lasso
from microtome.factors.dictionary import Above, Coder, Dictionary, Encoder, Largest
from microtome.factors.saliency import (
    YUN,
    IntegratedGradients,
    Lime,
    Occlusion,
    Saliency,
    asked,
    code_and_slope,
    faithful,
    stand_in,
)
from microtome.factors.scaling import Scaling
from microtome.model import Model
from microtome.neurons import Neurons
from tests.toys import toy_decoder, toy_encoder, toy_texts
from tests.unit.factors.planted_dictionaries import planted_dictionary
from tests.unit.neurons.planted_models import bigram_model

MAKERS = [toy_decoder, toy_encoder]


def _dictionary(width: int, coder: Coder, layer: int = 1, units: int = 40) -> Factors:
    site = Site("resid_pre", layer)
    scaling = Scaling(0.1 * torch.ones(1, width), torch.tensor([0.7]))
    offset = 0.05 * torch.ones(1, width)
    directions = planted_dictionary(units, width, seed=2)[None]
    return Factors(Dictionary("toy", "shared", (site,), (site,), coder, scaling, directions, offset), site)


def _encoder(width: int, rule: Above | Largest, units: int = 40) -> Encoder:
    weights = planted_dictionary(units, width, seed=2).T[None].contiguous()
    return Encoder(weights, -0.2 * torch.ones(units), rule)


def _asked(model: Model, coder: Coder, position: int = 9) -> Saliency:
    """The unit that is most active there."""
    model.module.double()
    batch = prompt_batch(model.tokenizer, toy_texts(2, 24), context=64)
    basis = _dictionary(model.shape.d_model, coder)
    instead = stand_in(model)
    first = asked(model, basis, batch, (1, position), 0, instead=instead)
    with torch.no_grad():
        state = _states(
            model, first, first.stand_in[None, None] * 0, torch.zeros(1, first.batch.ids.shape[1], dtype=torch.bool)
        )
    unit = int(basis.dictionary.encode({basis.site: state})[0].argmax())
    return Saliency(model, basis, first.batch, position, unit, first.players, instead)


def _states(model: Model, asked_: Saliency, instead: Tensor, absent: Tensor) -> Tensor:
    """By the model's own input of embeddings."""
    embedding = model.module.get_input_embeddings()(asked_.batch.ids)
    embedding = torch.where(absent[..., None], instead, embedding)
    with torch.no_grad():
        found = model.module(inputs_embeds=embedding, output_hidden_states=True).hidden_states
    return found[asked_.basis.sites[0].layer or 0][:, asked_.position]


@pytest.mark.parametrize("make", MAKERS)
def test_occlusion_is_the_code_less_that_of_a_window_changed_by_hand(make: Callable[[], Model]) -> None:
    model = make()
    saliency = _asked(model, Lasso(0.3, tolerance=1e-10))
    found = Occlusion().attributed(saliency)
    assert isinstance(saliency.basis, Factors)
    nobody = torch.zeros(1, saliency.batch.ids.shape[1], dtype=torch.bool)
    mean = model.module.get_input_embeddings().weight.mean(0)
    for number, player in enumerate(saliency.players.tolist()):
        absent = nobody.clone()
        absent[0, player] = True
        both = [_states(model, saliency, mean, each) for each in (nobody, absent)]
        codes = [saliency.basis.dictionary.encode({saliency.basis.site: each})[0, saliency.unit] for each in both]
        assert float(found.weight[number]) == pytest.approx(float(codes[0] - codes[1]), abs=1e-6)
    assert float(found.weight.abs().max()) > 1e-3
    if model.shape.causal:
        assert saliency.players.tolist() == list(range(1, 9))
    else:
        assert saliency.players.tolist() == [
            n for n, role in enumerate(saliency.batch.roles[0]) if role == Role.CONTENT and n != 9
        ]


def test_occlusion_finds_the_token_that_a_bigram_unit_looks_back_to() -> None:
    model = bigram_model("relu")
    batch = prompt_batch(model.tokenizer, ["w2 w3 w6 w7 w4 w5 w8"])
    saliency = asked(model, Neurons(0, 5), batch, (0, 5), 0, instead=stand_in(model))
    assert saliency.players.tolist() == [1, 2, 3, 4]
    alone = Occlusion().attributed(saliency).weight
    assert int(alone.argmax()) == 3
    assert alone[:3].abs().max() < 1e-3 * alone[3]
    runs = Occlusion(2).attributed(saliency).weight
    assert float(runs[3]) == pytest.approx(float(alone[3]) / 2, rel=1e-3)
    assert float(runs[2]) == pytest.approx(float(alone[3]) / 4, rel=1e-3), "one of its two runs has the token"
    surrogate = Lime(64).attributed(saliency)
    assert int(surrogate.weight.argmax()) == 3
    assert surrogate.fit > 0.99
    judged = faithful(saliency.codes, alone)
    assert judged.deletion < judged.by_chance[0]
    assert judged.insertion > judged.by_chance[1]
    assert judged.deletion == pytest.approx(1 / 8, abs=0.01), "nothing is left after the first of four"
    assert judged.insertion == pytest.approx(7 / 8, abs=0.01)


def _closed_forms(coder: Coder) -> None:
    width, x = 12, torch.randn(20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    basis = _dictionary(width, coder, units=20)
    dictionary = basis.dictionary
    active = 0

    def encode(x: Tensor) -> Tensor:
        back = x * dictionary.scaling.size[0].double() + dictionary.scaling.centre[0].double()
        return dictionary.encode({basis.site: back})

    codes = encode(x)
    for unit in range(20):
        value, slope = code_and_slope(dictionary, x, codes, unit)
        assert torch.allclose(value, codes[:, unit], atol=1e-6)
        step = 1e-5
        for axis in range(width):
            moved = torch.zeros(width, dtype=torch.float64)
            moved[axis] = step
            above, below = encode(x + moved), encode(x - moved)
            same = ((above > 0) == (below > 0)).all(1)
            numeric = (above[:, unit] - below[:, unit]) / (2 * step)
            assert torch.allclose(slope[same, axis], numeric[same], atol=1e-5)
            active += int((same & (codes[:, unit] > 0)).sum())
    assert active > 200


def test_the_slope_of_a_lasso_code_is_that_of_finite_differences() -> None:
    _closed_forms(Lasso(0.2, tolerance=1e-14))


def test_the_slope_of_a_greedy_code_is_that_of_finite_differences() -> None:
    _closed_forms(Greedy(4))


def test_codes_that_are_no_minimum_have_no_closed_form() -> None:
    basis = _dictionary(12, Greedy(3, "gradient"))
    x = torch.ones(1, 12)
    with pytest.raises(Refusal, match="no minimum"):
        code_and_slope(basis.dictionary, x, basis.dictionary.encode({basis.site: x}), 0)


def test_a_code_at_the_embedding_owes_all_to_its_own_token_and_exactly_its_scalar_product() -> None:
    """resid_pre.0 of a rotary decoder is the embedding: with the code linear, integrated gradients are (e - e0) . w of the target alone."""
    model = toy_decoder()
    model.module.double()
    batch = prompt_batch(model.tokenizer, toy_texts(1, 24), context=64)
    always = Encoder(_encoder(24, Above(torch.zeros(40))).weights, 50 * torch.ones(40), Above(torch.zeros(40)))
    basis = _dictionary(24, always, layer=0)
    instead = stand_in(model)
    saliency = asked(model, basis, batch, (0, 9), 3, instead=instead, players="all")
    found = IntegratedGradients(3).attributed(saliency)
    own = model.module.get_input_embeddings().weight[batch.ids[0, 9]].detach()
    expected = float((own - instead) @ always.weights[0, :, 3].double() / basis.dictionary.scaling.size[0])
    assert float(found.weight[-1]) == pytest.approx(expected, rel=1e-6)
    assert float(found.weight[:-1].abs().max()) == 0
    assert found.gap == pytest.approx(0, abs=1e-9)


CODERS: list[Callable[[int], Coder]] = [
    lambda _: Lasso(0.3, tolerance=1e-12),
    lambda width: _encoder(width, Above(torch.zeros(40))),
]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("coder", CODERS)
def test_integrated_gradients_add_up_and_their_slopes_are_those_of_the_path(
    make: Callable[[], Model], coder: Callable[[int], Coder]
) -> None:
    model = make()
    saliency = _asked(model, coder(model.shape.d_model))
    found = IntegratedGradients(400).attributed(saliency)
    assert found.gap == pytest.approx(0, abs=0.005 * abs(found.whole))
    every = torch.ones(1, len(saliency.players), dtype=torch.bool)
    ends = saliency.codes(torch.cat([every, ~every]))
    assert [found.whole, found.nothing] == pytest.approx(ends.tolist(), abs=1e-6)
    assert abs(found.whole - found.nothing) > 0.01
    step = 3e-3  # the decoder's norms round to float32
    codes, slopes = saliency.moved(torch.tensor([0.8 - step, 0.8, 0.8 + step], dtype=torch.float64), "code")
    assert float(slopes[1].sum()) == pytest.approx(float(codes[2] - codes[0]) / (2 * step), rel=2e-3, abs=1e-5)


def test_a_threshold_jumps_and_its_drive_does_not() -> None:
    model = toy_decoder()
    coder = _encoder(model.shape.d_model, Above(0.6 * torch.ones(40)))
    saliency = _asked(model, coder)
    drive = IntegratedGradients(200, "drive").attributed(saliency)
    assert drive.gap == pytest.approx(0, abs=0.005 * drive.whole)
    assert drive.whole > 0.6
    every = torch.ones(1, len(saliency.players), dtype=torch.bool)
    assert float(saliency.codes(every)) == pytest.approx(drive.whole, rel=1e-6)
    with pytest.raises(Refusal, match="no encoder"):
        IntegratedGradients(3, "drive").attributed(_asked(toy_decoder(), Lasso(0.3)))


def _product(present: Tensor) -> Tensor:
    z = present.double()
    return 1 + 2 * z[:, 0] * z[:, 1] + z[:, 2] - 0.5 * z[:, 2] * z[:, 3] * z[:, 0]


def _shapley(game: Callable[[Tensor], Tensor], players: int) -> list[float]:
    total = torch.zeros(players, dtype=torch.float64)
    orders = list(permutations(range(players)))
    for order in orders:
        for place, player in enumerate(order):
            sets = torch.zeros(2, players, dtype=torch.bool)
            sets[0, list(order[:place])] = True
            sets[1, list(order[: place + 1])] = True
            before, after = game(sets)
            total[player] += after - before
    return (total / len(orders)).tolist()


def test_the_surrogate_with_shapleys_kernel_estimates_shapley_values() -> None:
    found = Lime(40000, seed=1).of(_product, 4)
    assert found.weight.tolist() == pytest.approx(_shapley(_product, 4), abs=0.02)
    assert found.gap == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kernel", ["shapley", "cosine"])
def test_a_linear_game_is_fitted_whole_and_a_random_one_is_not(kernel: str) -> None:
    slope = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, 1.0, 1.0, 0.25], dtype=torch.float64)
    lime = Lime(400, seed=2, kernel="cosine" if kernel == "cosine" else "shapley")
    linear = lime.of(lambda present: 4 + present.double() @ slope, 8)
    assert linear.weight.tolist() == pytest.approx(slope.tolist(), abs=0.15 if kernel == "cosine" else 1e-6)
    assert linear.fit > 0.995
    assert linear.held_out > 0.995
    code = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])
    table = torch.randn(256, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    noisy = lime.of(lambda present: table[(present.long() * code).sum(1)], 8)
    assert noisy.held_out < 0.3
    assert noisy.fit > noisy.held_out


def test_the_cosine_surrogate_is_the_ridge_that_lime_fits() -> None:
    sets: list[Tensor] = []

    def game(present: Tensor) -> Tensor:
        sets.append(present)
        return _product(present)

    found = Lime(200, seed=4, kernel="cosine").of(game, 6)
    x = sets[0][2:].double()
    assert bool(x[0].all()), "the first is the text as it is"
    assert {int(n) for n in (1 - x).sum(1)} == set(range(7))
    distance = 100 * (1 - x.mean(1).sqrt())
    heavy = (-(distance**2) / 25.0**2).exp().sqrt()
    ridge = Ridge(alpha=1.0).fit(x.numpy(), _product(x).numpy(), sample_weight=heavy.numpy())
    assert found.weight.tolist() == pytest.approx(ridge.coef_.tolist(), abs=1e-9)
    assert found.fit == pytest.approx(ridge.score(x.numpy(), _product(x).numpy(), sample_weight=heavy.numpy()), abs=1e-9)


def test_the_source_works_settings_have_so_many_features_and_the_target_among_the_players() -> None:
    slope = torch.linspace(1, 40, 40, dtype=torch.float64)
    found = YUN.of(lambda present: present.double() @ slope, 40)
    assert int((found.weight != 0).sum()) == 30
    assert bool((found.weight[10:] != 0).all())
    model = toy_decoder()
    batch = prompt_batch(model.tokenizer, toy_texts(1, 24), context=64)
    basis = _dictionary(model.shape.d_model, Lasso(0.3))
    saliency = asked(model, basis, batch, (0, 9), 0, instead=stand_in(model, "unknown"), players="all")
    assert saliency.players.tolist() == list(range(1, 10))


def test_areas_of_an_additive_code_are_those_computed_by_hand() -> None:
    slope = torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)
    found = faithful(lambda present: present.double() @ slope, slope, draws=400)
    assert found.deletion == pytest.approx((1 / 2 + 3 / 6 + 1 / 6) / 3)
    assert found.insertion == pytest.approx((3 / 6 + 5 / 6 + 1 / 2) / 3)
    assert found.by_chance == pytest.approx((0.5, 0.5), abs=0.02)
    with pytest.raises(Refusal, match="is 0 in the whole"):
        faithful(lambda present: torch.zeros(len(present)), slope)


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    one, again, other = (Lime(50, seed=seed).of(_product, 4) for seed in (1, 1, 2))
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)


def test_bad_questions_are_refused() -> None:
    model = toy_decoder()
    batch = prompt_batch(model.tokenizer, toy_texts(1, 24), context=64)
    basis = _dictionary(model.shape.d_model, Lasso(0.3))
    with pytest.raises(Refusal, match="no other content token"):
        asked(model, basis, batch, (0, 1), 0, instead=stand_in(model))
    with pytest.raises(Refusal, match="tokenizer has none"):
        stand_in(model, "mask")
    with pytest.raises(Refusal, match="nothing is taken away"):
        Occlusion(0)
    with pytest.raises(Refusal, match="ten or more"):
        Lime(3)
    assert math.isnan(Occlusion().of(_product, 4).fit)
