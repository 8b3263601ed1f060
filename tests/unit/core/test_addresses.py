"""Addresses round-trip, and nothing in them is dropped in silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.core import Refusal, Site, UnitAddress, WeightAddress

_numbers = st.integers(0, 10**6)
_maybe = st.none() | _numbers
_sites = st.none() | st.builds(lambda layer: Site("resid_post", layer), _numbers) | st.just(Site("final_norm"))


@given(
    st.builds(
        UnitAddress,
        st.sampled_from(["neurons", "heads", "factors", "head_singular"]),
        _numbers,
        layer=_maybe,
        name=st.none() | st.from_regex(r"[A-Za-z0-9_\-]+", fullmatch=True),
        expert=_maybe,
        part=st.none() | st.from_regex(r"[a-z]+[0-9]+", fullmatch=True),
        site=_sites,
        sign=st.none() | st.sampled_from(["+", "-"]),
    )
)
def test_unit_addresses_round_trip(address: UnitAddress) -> None:
    assert UnitAddress.parse(str(address)) == address


_families = st.sampled_from(["W_out", "W_Q", "router", "attn_norm_post"])


@given(
    st.builds(WeightAddress, _families, _numbers, _numbers, head=_maybe, expert=_maybe)
    | st.builds(WeightAddress, st.sampled_from(["W_pos", "final_norm"]), st.none(), _numbers)
)
def test_weight_addresses_round_trip(address: WeightAddress) -> None:
    assert WeightAddress.parse(str(address)) == address


def test_examples_of_the_documented_forms() -> None:
    assert UnitAddress.parse("neurons.24/e3.343") == UnitAddress("neurons", 343, layer=24, expert=3)
    assert UnitAddress.parse("heads.5/1.svd3") == UnitAddress("heads", 1, layer=5, part="svd3")
    seen = UnitAddress.parse("factors@NAME/30@resid_post.6-")
    assert seen == UnitAddress("factors", 30, name="NAME", site=Site("resid_post", 6), sign="-")
    assert str(seen.unit) == "factors@NAME/30"


@pytest.mark.parametrize(
    "text",
    [
        "neurons.24",
        "neurons.24/x",
        "neurons/24/343",
        "neurons.24/343@nowhere.1",
        "neurons.24/343*",
        "neurons.-1/3",
        "neurons.٢/3",
    ],
)
def test_malformed_units_are_refused(text: str) -> None:
    with pytest.raises(Refusal):
        UnitAddress.parse(text)


@pytest.mark.parametrize(
    "text", ["W_out.24", "W-out.24/343", "_out.24/3", "W_out./3", "W_out.24/343/1", "W_out.1.2.3/4", "W_out.٢/٣"]
)
def test_malformed_weight_vectors_are_refused(text: str) -> None:
    with pytest.raises(Refusal, match="weight vector"):
        WeightAddress.parse(text)
