"""Kinds of refusals say who is to do what, wherever they were raised."""

import pickle

import pytest

from microtome.core import Interrupted, Malformed, NotFound, Refusal, Site, UnitAddress, WeightAddress


@pytest.mark.parametrize("kind", [Refusal, Interrupted, Malformed, NotFound])
def test_a_refusal_crosses_to_another_process_as_what_it_is(kind: type[Refusal]) -> None:
    there = pickle.loads(pickle.dumps(kind("unit x", why="there is none", instead="look for it")))
    assert (type(there), there.what, there.why, there.instead) == (kind, "unit x", "there is none", "look for it")
    assert str(there) == "unit x: there is none; look for it"


@pytest.mark.parametrize("text", ["", "resid_post.-1", "resid_post", "embed.3"])
def test_what_is_no_site_whatever_the_model_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        Site.parse(text)


def test_a_name_of_the_right_form_is_not_found() -> None:
    with pytest.raises(NotFound, match="no site has this name"):
        Site.parse("resid_mist.3")


@pytest.mark.parametrize("address", [UnitAddress, WeightAddress])
def test_an_address_of_no_form_is_malformed(address: type[UnitAddress | WeightAddress]) -> None:
    with pytest.raises(Malformed, match="not of the form"):
        address.parse("../../etc/passwd")
