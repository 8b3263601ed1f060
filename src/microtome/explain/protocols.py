"""What can be plugged together: an explainer makes an explanation of examples, a simulator predicts activations from it.

An explanation is text, and may carry a rule that predicts by itself; with `ByRule` nobody has to read the text. A language model reads the
text (`language`). A new kind of rule is a class with `predict`: the formula of a compositional explanation is one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from microtome.core import Refusal
from microtome.explain.examples import Examples

__all__ = ["ByRule", "Explainer", "Explanation", "Names", "Rule", "Simulator"]

Names = Callable[[int], str]
"""How a token is shown in an explanation."""


@runtime_checkable
class Rule(Protocol):
    """Predicts activations of one end of a unit, on the scale from 0 to 10, from tokens alone."""

    def predict(self, ids: Int[Tensor, "excerpt token"]) -> Float[Tensor, "excerpt token"]:
        """A prediction for every token; what is predicted where an id is `NOTHING` does not matter."""
        ...


@dataclass(frozen=True, eq=False)
class Explanation:
    """What one end of a unit is said to do: in words, and as a rule where there is one."""

    text: str
    rule: Rule | None = None


@runtime_checkable
class Explainer(Protocol):
    """Makes explanations. It may look at `train` and `calibration`, and at nothing else of the examples."""

    def explain(self, examples: Examples) -> Explanation:
        """An explanation of one end of a unit."""
        ...


@runtime_checkable
class Simulator(Protocol):
    """Predicts what a unit does that is as its explanation says."""

    def simulate(self, explanation: Explanation, ids: Int[Tensor, "excerpt token"]) -> Float[Tensor, "excerpt token"]:
        """Activations on the scale from 0 to 10; NaN where it gives no answer."""
        ...


@dataclass(frozen=True)
class ByRule:
    """The simulator that lets an explanation's rule predict."""

    def simulate(self, explanation: Explanation, ids: Int[Tensor, "excerpt token"]) -> Float[Tensor, "excerpt token"]:
        """The rule's predictions.

        Errors: `Refusal` for an explanation that has no rule.
        """
        if explanation.rule is None:
            why = "it is text alone"
            raise Refusal(f"the explanation {explanation.text[:40]!r}", why=why, instead="use a LanguageSimulator")
        return explanation.rule.predict(ids)
