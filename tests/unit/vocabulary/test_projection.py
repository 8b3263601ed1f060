"""Every parameter vector in the vocabulary: planted words are found at the right address, and shares that can be read."""

import torch

from microtome.model import Model, wrap
from microtome.readout import output_reader
from microtome.vocabulary.parameters import GROUPS, groups_of
from microtome.vocabulary.projection import mixtures, project
from microtome.vocabulary.subject import Subject, subject_of
from tests.toys import toy_decoder
from tests.unit.vocabulary.test_values import gated, randomised

PLANTED = {"W_gate": 7, "W_up": 8, "W_out": 9, "W_Q": 10, "W_K": 11, "W_V": 12, "W_O": 13}


def planted() -> Model:
    """A decoder whose second vector of each group of layer 1 is a token's own."""
    model = randomised(wrap(gated()), seed=1)
    token = model.weights.get("W_U").T
    with torch.no_grad():
        for name, number in PLANTED.items():
            stored = model.weights.get(name, 1)
            if name.startswith(("W_Q", "W_K", "W_V")):
                stored[0][:, 1] = 4 * token[number]
            elif name == "W_O":
                stored[0][1] = 4 * token[number]
            elif name == "W_out":
                stored[1] = 4 * token[number]
            else:
                stored[:, 1] = 4 * token[number]
    return model


def subject(model: Model) -> Subject:
    reader = output_reader(model.weights)
    return Subject("toy", model.weights, model.shape, "folded", reader, reader, [f"t{i}" for i in range(model.shape.vocab)])


def test_a_planted_word_is_first_at_its_address_and_stands_out_there_alone() -> None:
    model = planted()
    found = {}
    for each in project(subject(model), groups_of(model.weights, list(PLANTED)), 3):
        if each.block.layer == 1:
            addresses = [str(address) for address in each.block.addresses]
            place = int(each.top.strength[:, 0].argmax())
            found[each.block.group.name] = addresses[place], int(each.top.tokens[place, 0, 0])
            assert float(each.top.strength[place, 0]) > float(each.random.strength.max())
    assert found == {
        name: (f"{name}.1.0/1" if name in ("W_Q", "W_K", "W_V", "W_O") else f"{name}.1/1", token)
        for name, token in PLANTED.items()
    }


def test_mixtures_are_normal_in_the_span_of_the_vectors() -> None:
    rows = torch.zeros(20, 6)
    rows[:, :2] = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 21)[:, None]
    drawn = mixtures(rows, 4000, 1)
    assert float(drawn[:, 2:].abs().max()) == 0
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    torch.testing.assert_close(drawn.T @ drawn / 4000, unit.T @ unit, rtol=0.1, atol=0.4)


def test_without_hubs_a_token_that_every_vector_likes_is_first_nowhere() -> None:
    model = randomised(wrap(gated()), seed=3)
    with torch.no_grad():
        model.weights.get("W_U")[:, 5] *= 30
    group = (GROUPS["W_out"],)
    kept, removed = (
        torch.cat([each.top.tokens[:, :, 0].flatten() for each in project(subject(model), group, 3, hubs=hubs)])
        for hubs in ("kept", "removed")
    )
    assert float((kept == 5).double().mean()) > 0.3, "half of the vectors like it, half dislike it"
    assert float((removed == 5).double().mean()) < 0.05


def test_the_paper_reads_what_is_stored() -> None:
    model = toy_decoder()
    with torch.no_grad():
        model.weights.norm("final_norm").gain.copy_(1 + torch.rand(model.shape.d_model))
        model.weights.norm("mlp_norm", 1).gain.copy_(1 + torch.rand(model.shape.d_model))
    paper = subject_of(model, preset="paper")
    (found,) = (each for each in project(paper, [GROUPS["W_gate"]], 5) if each.block.layer == 1)
    dense = model.weights.get("W_gate", 1).T @ model.weights.get("W_U")
    assert torch.equal(found.top.tokens[:, 0], dense.sort(dim=1, descending=True, stable=True).indices[:, :5])
    assert torch.equal(found.top.tokens[:, 1], dense.sort(dim=1, stable=True).indices[:, :5])
    (folded,) = (each for each in project(subject_of(model), [GROUPS["W_gate"]], 5) if each.block.layer == 1)
    assert not torch.equal(folded.top.tokens, found.top.tokens)
