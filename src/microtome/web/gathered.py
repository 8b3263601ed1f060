"""Reading several tables for one answer: what cannot be read is named among the problems, and the rest is told."""

from typing import Any

from microtome.core import Refusal
from microtome.web.reader import View, problem_of
from microtome.web.records import Problem

__all__ = ["Gathered"]


class Gathered:
    """The tables that one answer is made of, and what is wrong with them."""

    def __init__(self, view: View, *tables: str) -> None:
        self._view = view
        self._tables = tables
        self._found: list[Problem] = []

    def rows(self, table: str, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a prepared statement over `table`; none where it turns out to be damaged."""
        try:
            return self._view.sql(query, *parameters)
        except Refusal as refusal:
            self.report(table, refusal)
            return []

    def report(self, table: str, refusal: Refusal) -> None:
        """Note that a table could not be read."""
        if all(problem.what != f"table {table}" for problem in self._found):
            self._found.append(problem_of(refusal).model_copy(update={"what": f"table {table}"}))

    @property
    def problems(self) -> list[Problem]:
        """What is known to be wrong with these tables, and what was found while reading."""
        known = [problem for problem in self._view.problems if _table(problem.what) in self._tables]
        named = {problem.what for problem in known}
        return [*known, *(problem for problem in self._found if problem.what not in named)]


def _table(what: str) -> str:
    """The table that a problem is about: of `tables/NAME/FILE` or `table NAME`."""
    return what.split("/")[1] if what.startswith("tables/") else what.removeprefix("table ")
