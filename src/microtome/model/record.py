"""The parity certificate as a record: which exact identities a model was checked for, and how closely they held.

Plain values that go to JSON and back. Checking belongs in `certificate`, showing in `cli` and the page.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Certificate", "DtypeRow", "IdentityRow", "UNCHECKED"]


@dataclass(frozen=True)
class IdentityRow:
    """One identity: the largest relative error over layers, where it was, and what is allowed.

    The relative error is the largest absolute difference over the largest absolute value of the expected tensor.
    """

    identity: str
    worst_error: float
    worst_layer: int | None
    tolerance: float
    passed: bool


@dataclass(frozen=True)
class DtypeRow:
    """What a dtype below fp32 costs in one block: relative error over all tokens, and the cosine of the worst token."""

    layer: int
    relative_error: float
    worst_cosine: float


@dataclass(frozen=True)
class Certificate:
    """What was checked when the model was opened. `dtypes` is empty where the model runs in fp32."""

    model: str
    dtype: str
    identities: tuple[IdentityRow, ...]
    dtypes: tuple[DtypeRow, ...]

    @property
    def passed(self) -> bool:
        """Whether every identity held; a certificate without identities certifies nothing."""
        return bool(self.identities) and all(row.passed for row in self.identities)

    def to_json(self) -> dict[str, Any]:
        """Builtins only, for a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Certificate":
        """The certificate that `to_json` gave."""
        identities = tuple(IdentityRow(**row) for row in values["identities"])
        return cls(values["model"], values["dtype"], identities, tuple(DtypeRow(**row) for row in values["dtypes"]))


UNCHECKED = Certificate("", "", (), ())
