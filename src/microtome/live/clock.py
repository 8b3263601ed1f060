"""How long a run of the model may take: it is looked at between layers, and between tokens that are written."""

import time
from dataclasses import dataclass, field
from typing import Final

from microtome.core import Refusal

__all__ = ["SECONDS", "Clock", "Overdue"]

SECONDS: Final = 60.0
"""What a run may take where nothing else is said."""


class Overdue(Refusal):
    """A run that has taken longer than it may."""


@dataclass(frozen=True)
class Clock:
    """Runs from when it is made."""

    seconds: float = SECONDS
    began: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Go on, if there is time.

        Errors: `Overdue`.
        """
        if time.monotonic() - self.began > self.seconds:
            raise Overdue(
                "this run of the model",
                why=f"it has taken longer than {self.seconds:g} seconds",
                instead="give a shorter text, or ask for fewer tokens",
            )
