"""Sites: names, text forms, order of computation, refusals."""

import pytest

from microtome.core import SITES, Refusal, Site
from microtome.core.axes import AXES


@pytest.mark.parametrize("name", SITES)
def test_text_form_round_trips(name: str) -> None:
    site = Site(name, 3 if SITES[name].scope == "layer" else None)
    assert Site.parse(str(site)) == site
    assert eval(repr(site)) == site


def test_axes_of_sites_are_in_the_legend() -> None:
    assert {axis for spec in SITES.values() for axis in spec.axes} <= set(AXES)


def test_order_is_the_order_of_computation() -> None:
    names = [
        "logits",
        "resid_post.1",
        "embed",
        "resid_pre.1",
        "final_norm",
        "mlp_act.0",
        "mlp_out.0",
        "resid_pre.0",
        "pos_embed",
    ]
    expected = [
        "embed",
        "pos_embed",
        "resid_pre.0",
        "mlp_act.0",
        "mlp_out.0",
        "resid_pre.1",
        "resid_post.1",
        "final_norm",
        "logits",
    ]
    assert [str(site) for site in sorted(map(Site.parse, names))] == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("resid_posst.3", "no site has this name"),
        ("resid_post", "once per layer"),
        ("embed.0", "once per model"),
        ("resid_post.3.q", "not of the form"),
        ("resid_post.-1", "not of the form"),
        ("", "not of the form"),
    ],
)
def test_anything_else_is_refused(text: str, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        Site.parse(text)
