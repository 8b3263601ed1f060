"""What the page is told of a run as a whole: the model card, its certificate, what is absent, how far a build is."""

from pydantic import BaseModel

from microtome.web.records.texts import PatchGrid
from microtome.web.records.values import BasisCard, Fact, Number, Problem

__all__ = ["Absent", "Certificate", "Check", "Progress", "Progressed", "RunChoice", "Section", "Summary"]


class Progress(BaseModel):
    """How far a build is."""

    stage: str
    done: int | None = None
    total: int | None = None
    tokens_per_second: Number = None
    eta_seconds: Number = None


class Progressed(BaseModel):
    """What a waiting page asks for: the state of the files, how many are known to be damaged, and how far a build is."""

    signature: str
    damaged: int
    progress: Progress | None


class Section(BaseModel):
    """A titled list of facts."""

    title: str
    note: str = ""
    facts: list[Fact]


class Check(BaseModel):
    """An identity that was checked: its relative error beside the tolerance."""

    identity: str
    place: str
    error: Number
    tolerance: Number
    passed: bool | None


class Certificate(BaseModel):
    """Identities checked on the model at load."""

    checks: list[Check]
    facts: list[Fact]


class Absent(BaseModel):
    """What the run did not compute, and why."""

    what: str
    why: str


class RunChoice(BaseModel):
    """A run of the atlas: the name of its text (none: the weights alone), and whether it is complete."""

    name: str
    text: str | None
    complete: bool


class Summary(BaseModel):
    """The first thing the page asks for. Everything but `name`, `runs` and `damaged` is of the run `run`.

    `grid` is how the pictures of a model that reads images are tiled; null for one that reads text.
    """

    signature: str
    name: str
    run: str
    runs: list[RunChoice]
    damaged: int
    complete: bool
    sections: list[Section]
    certificate: Certificate | None
    skipped: list[Fact]
    bases: list[BasisCard]
    tables: dict[str, int]
    absent: list[Absent]
    problems: list[Problem]
    grid: PatchGrid | None = None
