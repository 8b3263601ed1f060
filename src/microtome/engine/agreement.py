"""Whether workers do the same work in the same way: weights, versions, execution class. Who does not is refused before it begins."""

from collections.abc import Mapping

from microtome.core import Refusal

__all__ = ["agreed", "require_same"]


def agreed(identities: Mapping[int, Mapping[str, str]]) -> Mapping[str, str]:
    """What all workers, by their numbers, have in common, which is everything.

    Errors: `Refusal` that names what differs.
    """
    (_, first), *others = identities.items()
    for number, each in others:
        require_same(first, each, f"worker {number}")
    return first


def require_same(wanted: Mapping[str, str], found: Mapping[str, str], who: str) -> None:
    """Refuse a worker whose identity is not the one that is wanted."""
    differs = sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key))
    if differs:
        raise Refusal(
            who,
            why="; ".join(f"its {key} is {found.get(key, 'absent')}, not {wanted.get(key, 'absent')}" for key in differs),
            instead="let all have the same versions, model files and kind of device",
        )
