"""The widget: one page of an atlas in a frame, its address and height shared with the front end. Needs anywidget.

The page's text is sent when a front end asks for it, and is no part of the widget's state: a notebook that is saved holds a line.
"""

from concurrent.futures import Future
from typing import Any

import anywidget
import traitlets

from microtome.notebook.address import resolved
from microtome.notebook.answers import Answer, Answers
from microtome.notebook.bundle import page, widget

__all__ = ["Panel"]


class Panel(anywidget.AnyWidget):
    """A page in a cell. `address` is what is looked at now, `height` how high it is, in pixels; `go` leads elsewhere."""

    _esm = widget()
    address = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int().tag(sync=True)

    def __init__(self, answers: Answers, address: str, height: int) -> None:
        super().__init__(address=address, height=height)
        self._answers = answers
        self._asked: dict[str, Future[None]] = {}
        self.on_msg(self._hear)

    def go(self, address: str, *, run: str | None = None) -> None:
        """Show another page.

        Errors: `Refusal` where the atlas has no such page or unit.
        """
        self.address = resolved(self._answers, address, run)

    def _hear(self, _: object, message: Any, buffers: object) -> None:
        """What a front end says: it has no page yet, the page asks something, or no longer waits for it."""
        match message:
            case {"kind": "page"}:
                self.send({"kind": "page"}, [page()])
            case {"kind": "ask", "id": str(number), "path": str(path), "body": str() | None as body}:
                asked = self._answers.ask(path, body, lambda answer: self._tell(number, answer))
                self._asked[number] = asked
                asked.add_done_callback(lambda _: self._asked.pop(number, None))
            case {"kind": "abort", "id": str(number)}:
                asked = self._asked.pop(number, None)
                if asked is not None:
                    asked.cancel()

    def _tell(self, number: str, answer: Answer) -> None:
        self.send({"kind": "answer", "id": number, "status": answer.status, "zipped": answer.zipped}, [answer.body])

    def __repr__(self) -> str:
        return f"microtome: {self.address[:60]} (run this cell to see it)"
