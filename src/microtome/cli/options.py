"""Options that would change nothing of what a verb was asked to do: refused, not ignored. What each option does is said in `verbs`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import typer
from typer.core import TyperCommand

from microtome.core import Refusal

__all__ = ["Verb", "Way", "require_used"]

_GIVEN: Final = ("COMMANDLINE", "ENVIRONMENT")


class Verb(TyperCommand):
    """A command whose context is the one that typer names."""

    context_class = typer.Context


@dataclass(frozen=True)
class Way:
    """One of the things a verb does: the option or argument that asks for it, "" for what is done otherwise, and the parameters it uses."""

    name: str
    uses: frozenset[str]


def require_used(context: typer.Context, chosen: Way, ways: Sequence[Way]) -> None:
    """Refuse what was given on the command line and is not used in the way chosen, saying in which of `ways` it is."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name in chosen.uses or source is None or source.name not in _GIVEN:
            continue
        spelled = max(parameter.opts, key=len) if parameter.param_type_name == "option" else f"{name} {context.params[name]}"
        others = " or ".join(way.name for way in ways if way.name and name in way.uses)
        where = f"beside {chosen.name}" if chosen.name.startswith("-") else f"without {others}"
        raise Refusal(f"{spelled} {where}", why="it would change nothing", instead="leave it out")
