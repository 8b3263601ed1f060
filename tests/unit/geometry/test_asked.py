"""What a measurement may be asked for is said in one place, with the same words for Python and the command line."""

import pytest

from microtome.core import Refusal
from microtome.corpus import Joined
from microtome.geometry.asked import require_depth, require_seed, require_window


@pytest.mark.parametrize(
    ("check", "value", "why"),
    [
        (require_depth, "deep", "depth deep: there is none of that name; use quick or standard"),
        (require_depth, "full", "depth full: this version has no random-weight twin; use standard"),
        (require_depth, None, "depth None: there is none of that name"),
        (require_seed, -1, "seed -1: it is negative or needs more than 63 bits; use 0, 1, 2"),
        (require_seed, 2**63, "it is negative or needs more than 63 bits"),
        (require_seed, "3", "seed '3': it is no whole number"),
        (require_seed, True, "seed True: it is no whole number"),
        (require_window, "32", "windows of '32' tokens: it is no whole number; use 4 or more, usually 256"),
        (require_window, 32.5, "windows of 32.5 tokens: it is no whole number"),
        (require_window, None, "windows of None tokens: it is no whole number"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(check, value, why) -> None:
    with pytest.raises(Refusal, match=why):
        check(value)


def test_what_can_be_asked_for_is_not() -> None:
    for depth in ("quick", "standard"):
        require_depth(depth)
    for seed in (0, 2**63 - 1):
        require_seed(seed)
    for window in (4, 256, Joined()):
        require_window(window)
