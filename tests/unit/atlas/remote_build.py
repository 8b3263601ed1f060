"""A process that builds the toy atlas of `test_remote` at an address up to some moment, and waits there to be killed.

Run as `python -m tests.unit.atlas.remote_build ADDRESS WORD TIMES`, with the environment of the storage: it stops when WORD, `batch` or
what a step is called, was told so many times, and says so.
"""

import sys
import time

from microtome.atlas import Settings, build
from microtome.capture import Silent
from microtome.store import leases
from tests import toys

TEXTS = toys.toy_texts(documents=12, words=90)
SETTINGS = Settings(window=24, lenses=("geometry",))
UNIT = 8
"""Windows in a unit of work, so that there is something to interrupt and merge."""


class Stopping(Silent):
    """Stops at a moment, for good."""

    def __init__(self, word: str, times: int) -> None:
        self._word, self._left = word, times

    def advance(self, windows: int, tokens: int) -> None:
        """A batch."""
        del windows, tokens
        self.step("batch")

    def step(self, what: str) -> None:
        """Something else."""
        self._left -= what == self._word
        if not self._left:
            sys.stdout.write("stopped\n")
            sys.stdout.flush()
            time.sleep(600)


def main() -> None:
    """Build."""
    import microtome.capture.lens as stages

    leases.RENEWED = 0.2
    stages.windows_per_unit = lambda *_: UNIT
    progress = Stopping(sys.argv[2], int(sys.argv[3]))
    build(toys.toy_decoder(), TEXTS, output=sys.argv[1], settings=SETTINGS, progress=progress)


if __name__ == "__main__":
    main()
