"""What a panel can show: the address of a page, or of a unit alone. One that leads nowhere is refused when it is given."""

from urllib.parse import parse_qsl, unquote, urlencode

from microtome.core import Refusal, UnitAddress
from microtome.notebook.answers import Answers
from microtome.notebook.bundle import pages

__all__ = ["resolved"]


def resolved(answers: Answers, address: str, run: str | None = None) -> str:
    """The page's own spelling of an address: `unit/neurons.24/343?run=main` of `neurons.24/343` and a run.

    Errors: `Refusal` where there is no such page, unit or run.
    """
    path, _, query = address.rpartition("#")[2].strip("/ ").partition("?")
    path = unquote(path)
    parameters = dict(parse_qsl(query)) | ({"run": run} if run else {})
    if path.partition("/")[0] not in pages() or path.strip("/") == "unit":
        path = f"unit/{_unit(address, path)}"
    answers.record("summary", run=parameters.get("run"))
    page, _, unit = path.partition("/")
    if page == "unit":
        answers.record("unit", address=unit, run=parameters.get("run"))
    return path + (f"?{urlencode(parameters, safe='/@')}" if parameters else "")


def _unit(address: str, path: str) -> str:
    try:
        UnitAddress.parse(path)
    except Refusal as refusal:
        known = f"name a unit, such as neurons.24/343, or a page: {', '.join(page for page in pages() if page != 'unit')}"
        raise Refusal(f"address {address[:80]}", why="it is neither a unit nor a page", instead=known) from refusal
    return path
