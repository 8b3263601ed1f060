"""What the page is told of findings."""

from pydantic import BaseModel

from microtome.web.records.values import Number

__all__ = ["Finding"]


class Finding(BaseModel):
    """A result beside its control, if it has one."""

    lens: str
    rank: int
    kind: str
    subject: str
    unit: str | None
    sentence: str
    value: Number
    control: Number
    control_kind: str | None
    q: Number
