"""Whether the tables of an atlas are still the bytes that were written: looked for once for each state of the files.

Reading everything takes seconds where an atlas is large, so it happens in the background and the pages are told when it is
done. What counts as damage is said in `atlas.read`; which files are missing or cannot be opened is seen at once, in `reader`.
"""

import logging
import threading
from pathlib import Path

from microtome.core import Refusal

__all__ = ["Damage"]

_log = logging.getLogger(__name__)


class Damage:
    """The table files of an atlas that are not as they were written, as far as is known."""

    def __init__(self, atlas: Path) -> None:
        self._atlas = atlas
        self._busy = threading.Lock()
        self._watching = False
        self._checked = ""
        self._found: tuple[str, ...] = ()

    def watch(self) -> None:
        """From now on compare the files with the manifest whenever they are others than those compared last."""
        self._watching = True

    def known(self, files: str) -> tuple[str, ...]:
        """What the last comparison found; another begins in the background where `files`, the state of the files, is new."""
        if self._watching and self._checked != files and self._busy.acquire(blocking=False):
            threading.Thread(target=self._compare, args=(files,), daemon=True).start()
        return self._found

    def compared(self, files: str) -> bool:
        """Whether the files as they are now have been compared."""
        return self._checked == files

    def _compare(self, files: str) -> None:
        from microtome.atlas.read import damaged

        try:
            self._found = tuple(damaged(self._atlas))
        except Refusal as refusal:  # the pages say it themselves
            _log.debug("nothing to compare the tables with: %s", refusal)
        except OSError as error:
            _log.warning("the tables could not be compared with the manifest: %s", error)
        finally:
            self._checked = files
            self._busy.release()
