"""The one exception that users of microtome see.

Every refusal says what was asked, why it cannot be done, and what to do instead. Invariants of our own are `assert`ed;
anything a user can cause is a `Refusal`. Formatting for a terminal belongs in `cli`, not here.
"""

__all__ = ["Interrupted", "Malformed", "NotFound", "Refusal"]


class Refusal(ValueError):
    """Something asked for cannot be done; carries what, why and what to do instead.

    >>> print(Refusal("resid_mid.5 of gpt_neox", why="attention and MLP run in parallel", instead="use resid_post.5"))
    resid_mid.5 of gpt_neox: attention and MLP run in parallel; use resid_post.5
    """

    def __init__(self, what: str, *, why: str, instead: str) -> None:
        super().__init__(f"{what}: {why}; {instead}")
        self.what = what
        self.why = why
        self.instead = instead

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the kind and the three parts when an error crosses a process boundary."""
        return _rebuild, (type(self), self.what, self.why, self.instead)


class Interrupted(Refusal):
    """A refusal of what had begun, for a reason that passes or is elsewhere: what is finished stays, and the same command goes on with it."""


class NotFound(Refusal):
    """A refusal of a name or an address, of a form that could be something, that is nothing here: another name may be."""


class Malformed(Refusal):
    """A refusal of a question that cannot be asked as it is put: an address or a pattern of no known form, bounds of no number."""


def _rebuild(kind: type[Refusal], what: str, why: str, instead: str) -> Refusal:
    return kind(what, why=why, instead=instead)
