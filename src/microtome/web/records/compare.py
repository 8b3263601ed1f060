"""What the page is told of two runs side by side. Where a record has two of something, the first is of the run that is looked at."""

from typing import Literal

from pydantic import BaseModel

from microtome.web.records.layers import Loss, Share
from microtome.web.records.values import Column, Number, Packed, Problem

__all__ = [
    "Agreement",
    "Aligned",
    "AlignedUnit",
    "BesideFact",
    "BesideMeasure",
    "BesideRow",
    "BesideUnit",
    "BlockChanged",
    "ChangedBlock",
    "Changes",
    "ComparedDictionary",
    "ComparedRuns",
    "ComparedUnits",
    "ComparedWords",
    "DictionaryMatch",
    "DictionaryNumber",
    "Differences",
    "LabelAgreement",
    "Pairs",
    "Said",
    "SideCard",
    "SideUnits",
    "Sides",
    "StatAgreement",
    "TokenOverlap",
    "UnitGroup",
    "VectorChanged",
]


class SideCard(BaseModel):
    """A run that can be chosen. `kind` is run, or what a run of `microtome diff` says: changes (since another model) or alignment (with one).

    `why` is empty where it can be compared with the run that is looked at; where its units are not those of that run, `units_why` says so.
    """

    side: str
    run: str
    atlas: str
    model: str
    kind: Literal["run", "changes", "alignment"]
    says: str
    text: str | None
    tokens: int | None
    text_fingerprint: str | None
    seed: int
    depths: dict[str, str]
    same_model: bool
    why: str
    units_why: str


class Sides(BaseModel):
    """The run that is looked at, and all that it can be compared with, or why not."""

    own: SideCard | None
    others: list[SideCard]


class BesideFact(BaseModel):
    """Something that is said of both runs."""

    name: str
    one: str
    other: str
    equal: bool
    mono: bool = False


class BesideRow(BaseModel):
    """A measure over depth in one run: a number for each site of the page; empty where none has one."""

    control_kind: str | None
    value: list[Number]
    control: list[Number]
    control_lo: list[Number]
    control_hi: list[Number]
    lo: list[Number]
    hi: list[Number]
    q: list[Number]


class BesideMeasure(BaseModel):
    """A measure of hidden states that both runs have."""

    subject: str
    stat: str
    label: str
    meaning: str
    headline: bool
    one: BesideRow
    other: BesideRow


class ComparedDictionary(BaseModel):
    """A dictionary of factors, by which of the two runs (0, 1) has it; `same` where the other has the very same under this name."""

    side: int
    name: str
    units: int
    width: int
    arrangement: str
    coder: str
    reads: list[str]
    same: bool


class DictionaryNumber(BaseModel):
    """How well states at a site are made of a dictionary, beside what `control_kind` names."""

    side: int
    name: str
    site: str
    stat: str
    value: Number
    control: Number
    control_kind: str
    lo: Number
    hi: Number


class DictionaryMatch(BaseModel):
    """What `microtome factors compare` has said of a dictionary and another, `beside`: a measure and its control."""

    side: int
    name: str
    beside: str
    stat: str
    site: str
    value: Number
    control: Number
    control_kind: str


class ComparedRuns(BaseModel):
    """Two runs as wholes: what they are, hidden states by layer, losses, dictionaries."""

    one: SideCard
    other: SideCard
    same_model: bool
    same_text: bool | None
    facts: list[BesideFact]
    shares: tuple[list[Share], list[Share]]
    losses: tuple[list[Loss], list[Loss]]
    sites: list[str]
    measures: list[BesideMeasure]
    dictionaries: list[ComparedDictionary]
    dictionary_numbers: list[DictionaryNumber]
    matches: list[DictionaryMatch]
    problems: list[Problem]


class Agreement(BaseModel):
    """How alike two columns of numbers rank their units, beside the mean over all ways to deal the units of each layer out anew, 95 % of which lie between lo and hi."""

    value: Number
    control: Number
    control_lo: Number
    control_hi: Number


class StatAgreement(BaseModel):
    """A statistic of the units of a basis that both runs have, at a site where a unit has several.

    `equal` units have the same number in both, `tested` an interval in both, `differing` of these q at most 0.05. Differences are the other
    run's less this one's; `effect` is their mean over the standard deviation between units.
    """

    basis: str
    label: str
    column: Column
    site: str
    units: int
    only_one: int
    only_other: int
    rank: Agreement
    mean_one: Number
    mean_other: Number
    difference: Number
    effect: Number
    equal: int
    tested: int
    differing: int


class SideUnits(BaseModel):
    """Units of a basis that are in one of two runs, or in both."""

    basis: str
    label: str
    both: int
    only_one: int
    only_other: int
    why: str


class ComparedUnits(BaseModel):
    """Statistics of units, one run's with the other's."""

    bases: list[SideUnits]
    stats: list[StatAgreement]
    problems: list[Problem]


class TokenOverlap(BaseModel):
    """How many tokens the lists of a unit in two runs share: the mean share |both| / |either| over the units of a layer (none: over all).

    The control is that of units each beside another of its layer. `kind` is what a list is of: promotes, suppresses, fires.
    """

    kind: str
    basis: str
    layer: int | None
    units: int
    value: Number
    control: Number


class LabelAgreement(BaseModel):
    """Labels of a kind: units that have one in both runs, of which `same` say the same; `control` is the share that would if the units of each layer were dealt out anew."""

    kind: str
    basis: str
    both: int
    same: int
    share: Number
    control: Number
    only_one: int
    only_other: int


class ComparedWords(BaseModel):
    """What units of two runs write, fire on, and are called."""

    overlaps: list[TokenOverlap]
    labels: list[LabelAgreement]
    why: str
    problems: list[Problem]


class BesideUnit(BaseModel):
    """A unit with a statistic in both runs, their 95 % intervals where there are some, and what it is called in each."""

    unit: str
    layer: int | None
    site: str
    one: float
    one_lo: Number
    one_hi: Number
    other: float
    other_lo: Number
    other_hi: Number
    difference: float
    effect: Number
    q: Number
    label_one: str | None
    label_other: str | None


class Differences(BaseModel):
    """A page of units by how a statistic differs."""

    total: int
    offset: int
    column: Column
    rows: list[BesideUnit]


class UnitGroup(BaseModel):
    """Units that follow each other: their addresses are `prefix` and a number."""

    prefix: str
    layer: int | None
    count: int


class Pairs(BaseModel):
    """A statistic in one run (x) against the other (y), a point for each unit, in order of address: those of `groups` one after the other.

    `number` (int32) is the number in the address, -1 where the prefix is all of it; `clear` (int8) is 1 where q is at most 0.05, 0 where
    not, -1 without a test. Of more than are shown, `of`, it has those of the largest effect, and of the others as many as fit, evenly taken.
    """

    of: int
    largest: int
    column: Column
    site: str
    groups: list[UnitGroup]
    count: int
    number: Packed
    x: Packed
    y: Packed
    clear: Packed


class BlockChanged(BaseModel):
    """A group of vectors of a layer: a measure of how it changed, beside its control."""

    group: str
    layer: int | None
    stat: str
    value: Number
    control: Number
    control_kind: str | None
    control_lo: Number
    control_hi: Number
    q: Number
    undefined: str | None


class VectorChanged(BaseModel):
    """A vector and how far it moved, over its length; `unit` is its page in the atlas that is looked at. The score tells what the change says of words."""

    vector: str
    unit: str | None
    group: str
    layer: int | None
    moved: Number
    cosine: Number
    promoted: list[str]
    demoted: list[str]
    score: Number
    control: Number
    control_kind: str | None
    q: Number


class Aligned(BaseModel):
    """A layer of this model and the one of the other that it is assigned to, by a group of vectors; `depth` is the one at the same depth."""

    group: str
    layer: int
    other: int | None
    depth: int
    alike: Number
    control: Number
    control_lo: Number
    control_hi: Number
    q: Number


class AlignedUnit(BaseModel):
    """A unit of this model and the nearest of the other; `mutual` where each chooses the other."""

    vector: str
    unit: str | None
    other: str
    mutual: bool
    score: Number
    control: Number


class Said(BaseModel):
    """A finding of the comparison."""

    kind: str
    subject: str
    sentence: str
    q: Number


class Changes(BaseModel):
    """What a run of `microtome diff` says. Of changes: blocks and the vectors that moved farthest; of an alignment: layers and units."""

    side: SideCard
    base: str
    blocks: list[BlockChanged]
    vectors: list[VectorChanged]
    of: int
    layers: list[Aligned]
    units: list[AlignedUnit]
    units_of: int
    findings: list[Said]
    problems: list[Problem]


class ChangedBlock(BaseModel):
    """The vectors of a block that moved farthest, of all that moved."""

    group: str
    layer: int | None
    of: int
    vectors: list[VectorChanged]
    problems: list[Problem]
