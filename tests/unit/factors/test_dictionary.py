"""A dictionary codes as its formula says at every place, survives the disk, and refuses what it is not for."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microtome.core import Refusal, Site, UnitAddress
from microtome.factors.basis import Factors, factors_of
from microtome.factors.coding import Greedy, Lasso, coded, greedily
from microtome.factors.dictionary import Above, Arrangement, Coder, Dictionary, Encoder, Largest
from microtome.factors.scaling import Scaling, identity
from microtome.factors.stored import open_dictionary, save_dictionary
from microtome.store import fingerprint

SITES = (Site("resid_pre", 0), Site("resid_pre", 2))
UNITS, WIDTH = 9, 6


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scaling_of(places: int) -> Scaling:
    return Scaling(drawn(places, WIDTH, seed=1), torch.arange(places) + 0.5, torch.full((places,), 8.0))


def encoder(places: int = 1, rule: Above | Largest | None = None) -> Encoder:
    return Encoder(drawn(places, WIDTH, UNITS, seed=2), drawn(UNITS, seed=3), rule or Above(drawn(UNITS, seed=4).abs()))


def dictionary(arrangement: Arrangement = "shared", coder: Coder | None = None) -> Dictionary:
    targets = 2 if arrangement == "crosscoder" else 1
    across = arrangement == "transcoder"
    reads = SITES[:1] if across else SITES
    directions = torch.nn.functional.normalize(drawn(targets, UNITS, WIDTH, seed=5), dim=-1)
    return Dictionary(
        name="tiny",
        arrangement=arrangement,
        reads=reads,
        writes=(Site("mlp_out", 0),) if across else reads,
        coder=coder or encoder(targets),
        scaling=scaling_of(len(reads)),
        directions=directions,
        offset=drawn(targets, WIDTH, seed=6),
        target_scaling=Scaling(drawn(1, WIDTH, seed=7), torch.tensor([3.0])) if across else None,
        skip=drawn(WIDTH, WIDTH, seed=8) if across else None,
        model="a" * 8,
        learnt={"units": UNITS, "share": 0.5},
    )


def states(seed: int = 9) -> Tensor:
    return 2 * drawn(4, 3, WIDTH, seed=seed)


@pytest.mark.parametrize("place", [0, 1])
def test_a_shared_dictionary_codes_each_site_in_its_own_scale(place: int) -> None:
    tiny, x = dictionary(), states()
    scaling, made = tiny.scaling, tiny.coder
    assert isinstance(made, Encoder)
    scaled = (x - scaling.centre[place]) / scaling.size[place]
    z = scaled @ made.weights[0] + made.bias
    assert isinstance(made.rule, Above)
    expected = torch.where(z > made.rule.threshold, z, 0.0)
    codes = tiny.encode({SITES[place]: x})
    torch.testing.assert_close(codes, expected)
    assert 0 < int((codes > 0).sum()) < codes.numel()
    again = (codes @ tiny.directions[0] + tiny.offset[0]) * scaling.size[place] + scaling.centre[place]
    torch.testing.assert_close(tiny.decode(codes, SITES[place]), again)


def test_the_largest_are_kept_where_they_are_above_zero() -> None:
    rule = Largest(2)
    kept = rule.keep(torch.tensor([[1.0, 3.0, 2.0], [-1.0, -2.0, 0.5]]))
    assert kept.tolist() == [[0.0, 3.0, 2.0], [0.0, 0.0, 0.5]]
    assert Largest(5).keep(torch.tensor([[1.0, -3.0]])).tolist() == [[1.0, 0.0]]


def test_a_crosscoder_codes_all_sites_at_once_and_writes_each() -> None:
    crossed, x = dictionary("crosscoder"), {SITES[0]: states(), SITES[1]: states(10)}
    made = crossed.coder
    assert isinstance(made, Encoder)
    assert isinstance(made.rule, Above)
    scaled = [crossed.scaling.apply(x[site], place) for place, site in enumerate(SITES)]
    z = scaled[0] @ made.weights[0] + scaled[1] @ made.weights[1] + made.bias
    codes = crossed.encode(x)
    torch.testing.assert_close(codes, torch.where(z > made.rule.threshold, z, 0.0))
    for place, site in enumerate(SITES):
        plain = codes @ crossed.directions[place] + crossed.offset[place]
        torch.testing.assert_close(crossed.decode(codes, site), crossed.scaling.undo(plain, place))
    assert len(factors_of(crossed)) == 1
    with pytest.raises(Refusal, match=r"give those of resid_pre\.0, resid_pre\.2$"):
        crossed.encode({SITES[0]: states()})


def test_a_transcoder_writes_another_site_and_keeps_its_linear_part() -> None:
    across, x = dictionary("transcoder"), states()
    codes = across.encode({SITES[0]: x})
    assert across.skip is not None
    assert across.target_scaling is not None
    made = codes @ across.directions[0] + across.offset[0] + across.scaling.apply(x, 0) @ across.skip
    torch.testing.assert_close(across.decode(codes, Site("mlp_out", 0), x), made * 3.0 + across.target_scaling.centre[0])


@pytest.mark.parametrize("coder", [Lasso(0.3, 1e-8), Greedy(3)])
def test_searched_codes_are_those_of_the_scaled_state_without_the_offset(coder: Lasso | Greedy) -> None:
    tiny, x = dictionary(coder=coder), states()
    rows = (tiny.scaling.apply(x, 1) - tiny.offset[0]).view(-1, WIDTH)
    phi = tiny.directions[0]
    expected = coded(phi, rows, coder).values if isinstance(coder, Lasso) else greedily(phi, rows, coder)
    torch.testing.assert_close(tiny.encode({SITES[1]: x}).view(-1, UNITS), expected)
    assert tiny.encode({SITES[1]: x[:0]}).shape == (0, 3, UNITS)


def test_units_are_seen_at_each_site_of_a_shared_dictionary() -> None:
    tiny = dictionary()
    first, second = factors_of(tiny)
    assert (first.sites, second.sites) == ((SITES[0],), (SITES[1],))
    assert first.address(7) == second.address(7) == UnitAddress("factors", 7, name="tiny")
    assert not first.signed
    x = states()
    torch.testing.assert_close(second.encode({SITES[1]: x}), tiny.encode({SITES[1]: x}))
    x[2, 1] *= 100
    codes = second.encode({SITES[1]: x})
    assert int((codes[2, 1] > 0).sum()) == 0 < int((tiny.encode({SITES[1]: x})[2, 1] > 0).sum())
    assert torch.equal(codes[0], tiny.encode({SITES[1]: x})[0])
    assert fingerprint(Factors(tiny, SITES[0])) == fingerprint(Factors(dictionary(), SITES[0])) != fingerprint(second)


@pytest.mark.parametrize("arrangement", ["shared", "crosscoder", "transcoder"])
def test_what_is_opened_is_what_was_saved(arrangement: Arrangement, tmp_path: Path) -> None:
    coders: list[Coder] = [encoder(2 if arrangement == "crosscoder" else 1, rule) for rule in (None, Largest(3))]
    coders += [Lasso(0.25, 1e-5, 77), Greedy(4, "gradient")] if arrangement == "shared" else []
    for coder in coders:
        tiny, path = dictionary(arrangement, coder), tmp_path / "x" / "tiny.safetensors"
        save_dictionary(tiny, path)
        again = open_dictionary(path)
        assert again.fingerprint == tiny.fingerprint
        assert again.learnt == tiny.learnt
        assert (again.name, again.reads, again.writes, again.model) == (tiny.name, tiny.reads, tiny.writes, tiny.model)
        values = {site: states() for site in (SITES if arrangement == "crosscoder" else SITES[:1])}
        assert torch.equal(again.encode(values), tiny.encode(values))
        first = path.read_bytes()
        save_dictionary(again, path)
        assert path.read_bytes() == first


def test_files_that_are_no_dictionary_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    with pytest.raises(Refusal, match="no such file"):
        open_dictionary(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(Refusal, match="no dictionary of microtome"):
        open_dictionary(path)
    save_file({"x": torch.zeros(1)}, path, {"microtome dictionary": '{"version": 9}'})
    with pytest.raises(Refusal, match="version 9"):
        open_dictionary(path)
    save_dictionary(dictionary(), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(Refusal, match="damaged"):
        open_dictionary(path)
    save_dictionary(dictionary(), path)
    assert set(load_file(path)) == {"directions", "offset", "centre", "size", "longest", "encoder", "encoder_bias", "threshold"}


def test_what_a_dictionary_is_not_for_is_refused() -> None:
    tiny = dictionary()
    with pytest.raises(Refusal, match=r"learnt at resid_pre\.0, resid_pre\.2; name one"):
        tiny.encode({Site("resid_pre", 1): states()})
    with pytest.raises(Refusal, match="have 5 numbers each, and it was learnt on states of 6"):
        tiny.encode({SITES[0]: torch.zeros(2, 5)})
    with pytest.raises(Refusal, match="of another model"):
        tiny.require_for("b" * 8, "tiny-llama")
    tiny.require_for("a" * 8, "tiny-llama")
    with pytest.raises(Refusal, match="of no site"):
        tiny.encode({})


def test_parts_that_do_not_fit_are_refused() -> None:
    tiny = dictionary()
    wrong = {
        "as many directions": {"offset": drawn(2, WIDTH), "directions": drawn(2, UNITS, WIDTH)},
        "a scaling of every place": {"scaling": identity(1, WIDTH)},
        "the places that it writes": {"writes": SITES[:1]},
        "an encoder of its own width": {"coder": Encoder(drawn(1, WIDTH, 4), drawn(4), Largest(1))},
    }
    for what, change in wrong.items():
        with pytest.raises(Refusal, match=what):
            dataclasses.replace(tiny, **change)
    with pytest.raises(Refusal, match="not finite"):
        dataclasses.replace(tiny, directions=tiny.directions * torch.nan)
    with pytest.raises(Refusal, match="an encoder, having no states"):
        dictionary("crosscoder", Lasso(0.3))
