"""What a measurement may be asked for: depths, seeds, lengths of windows. One check for `measure` and for the settings of a build.

Names of sites are read in `model.selection`, windows are cut in `corpus`.
"""

from typing import Final, get_args

from microtome.capture import Depth
from microtome.core import Refusal
from microtome.corpus import Joined

__all__ = ["require_depth", "require_seed", "require_window"]

_DEPTHS: Final[tuple[Depth, ...]] = get_args(Depth)


def require_depth(depth: object) -> None:
    """Refuse a depth that there is none of, or that is not part of this version."""
    if depth not in _DEPTHS:
        raise Refusal(f"depth {depth}", why="there is none of that name", instead="use quick or standard")
    if depth == "full":
        raise Refusal("depth full", why="this version has no random-weight twin", instead="use standard")


def require_seed(seed: object) -> None:
    """Refuse a seed that is no whole number from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise Refusal(f"seed {seed!r}", why="it is no whole number", instead="use 0, 1, 2, ...")
    if not 0 <= seed < 2**63:
        raise Refusal(f"seed {seed}", why="it is negative or needs more than 63 bits", instead="use 0, 1, 2, ...")


def require_window(window: object) -> None:
    """Refuse a length of windows that is no whole number; how short they may be depends on the tokenizer."""
    if isinstance(window, bool) or not isinstance(window, int | Joined):
        raise Refusal(f"windows of {window!r} tokens", why="it is no whole number", instead="use 4 or more, usually 256")
