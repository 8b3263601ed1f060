"""What the tables of an atlas are: what a row means, its columns, and what orders and identifies its rows.

A row of `TABLES` is the contract between the lenses, which write, and the readers: the page, the notebook, DuckDB. What the numbers
mean belongs to the lenses, how files are written in `tables`.
"""

from dataclasses import dataclass
from typing import Final

import pyarrow as pa

__all__ = ["NEIGHBOURS", "TABLES", "TableSpec", "empty_table"]

NEIGHBOURS: Final = 16
"""Tokens on each side of a context's token whose activations are kept."""

_ADDRESS: Final = pa.dictionary(pa.int32(), pa.string())
_WORD: Final = pa.dictionary(pa.int16(), pa.string())


@dataclass(frozen=True)
class TableSpec:
    """One table: what a row is, its columns, and the columns that order (and identify) its rows."""

    name: str
    row: str
    schema: pa.Schema
    key: tuple[str, ...]


def _spec(name: str, row: str, key: str, /, **columns: pa.DataType) -> TableSpec:
    return TableSpec(name, row, pa.schema([pa.field(k, v) for k, v in columns.items()]), tuple(key.split()))


_ROWS: Final = (
    _spec(
        "units",
        "a unit of a basis",
        "basis name layer expert index",
        unit=pa.string(),
        basis=_WORD,
        name=_WORD,
        layer=pa.int16(),
        expert=pa.int16(),
        index=pa.int32(),
    ),
    _spec(
        "unit_stats",
        "a statistic of a unit at a site, beside its control: what it would be by chance; lo to hi is a 95 % interval of the value "
        "itself, empty where the value has no sampling error",
        "stat unit site run",
        unit=_ADDRESS,
        site=_WORD,
        stat=_WORD,
        value=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        q=pa.float64(),
        run=_WORD,
    ),
    _spec(
        "contexts",
        "a token at which a unit is extreme (end: top, bottom) or typical (decile0 .. decile9), with the "
        "activations around it: activations[j] * scale is that at token `first` + j of the window; -128 is no token",
        "unit site end half rank run",
        unit=_ADDRESS,
        site=_WORD,
        end=_WORD,
        half=_WORD,
        rank=pa.int16(),
        value=pa.float32(),
        window=pa.int64(),
        position=pa.int32(),
        first=pa.int32(),
        scale=pa.float32(),
        activations=pa.list_(pa.int8(), 2 * NEIGHBOURS + 1),
        run=_WORD,
    ),
    _spec(
        "tokens",
        "a token of the vocabulary that a direction promotes or looks for (end +) or the opposite (end -): of a unit its written "
        "direction, of a weight vector (W_gate.24/343) its own; control is the mean score at the same rank of random mixtures of the "
        "vectors of its layer, of the same norm",
        "unit end rank",
        unit=_ADDRESS,
        end=_WORD,
        rank=pa.int16(),
        token=pa.int32(),
        score=pa.float32(),
        control=pa.float32(),
    ),
    _spec(
        "pairs",
        "two tokens that a head puts together most (end +), least (end -), or by magnitude (end ±): of circuit ov the token attended to and the other that is "
        "written, of qk the token that asks and the other that is attended to; z is the score in standard deviations over all pairs, "
        "control the z at that rank of the heads of its layer, each rotated inside",
        "circuit head end rank",
        head=_ADDRESS,
        circuit=_WORD,
        end=_WORD,
        rank=pa.int32(),
        token=pa.int32(),
        other=pa.int32(),
        score=pa.float32(),
        z=pa.float32(),
        control=pa.float32(),
    ),
    _spec(
        "vocabulary_stats",
        "a measure of a group of parameters in a layer, read in the vocabulary, beside its control, 95 % of whose draws lie between "
        "control_lo and control_hi; lo to hi is a 95 % interval of the value; where there is no value, undefined says why",
        "run group layer stat",
        run=_WORD,
        group=_WORD,
        layer=pa.int16(),
        stat=_WORD,
        value=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        control_lo=pa.float64(),
        control_hi=pa.float64(),
        lo=pa.float64(),
        hi=pa.float64(),
        q=pa.float64(),
        undefined=_WORD,
    ),
    _spec(
        "changes",
        "a parameter vector of this model beside the same one of another, `base`: how far it moved over its own length there, the "
        "cosine of both, and tokens that the difference promotes and demotes, best first; score is how well these tell the words of a "
        "list from others (AUC) or, without a list, how far the first token stands out, beside its control, which control_kind names",
        "run base group layer vector",
        run=_WORD,
        base=_WORD,
        group=_WORD,
        layer=pa.int16(),
        vector=_ADDRESS,
        moved=pa.float64(),
        cosine=pa.float64(),
        promoted=pa.list_(pa.int32()),
        demoted=pa.list_(pa.int32()),
        score=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        q=pa.float64(),
    ),
    _spec(
        "vocabulary",
        "a token of the tokenizer, its text with a space shown as a space",
        "token",
        token=pa.int32(),
        text=pa.string(),
    ),
    _spec(
        "token_counts",
        "how often a token occurs among a run's counted tokens",
        "run token",
        run=_WORD,
        token=pa.int32(),
        count=pa.int64(),
    ),
    _spec(
        "documents",
        "a document of a run's corpus, and if it was skipped, why; same_as is the first one of the same text and label, where that is another",
        "run document",
        run=_WORD,
        document=pa.int64(),
        name=pa.string(),
        label=pa.string(),
        half=_WORD,
        same_as=pa.int64(),
        tokens=pa.int64(),
        windows=pa.int64(),
        status=_WORD,
        reason=pa.string(),
        text=pa.large_string(),
    ),
    _spec(
        "windows",
        "a window: its tokens, their roles, and the characters of the document they cover (-1: none)",
        "run window",
        run=_WORD,
        window=pa.int64(),
        document=pa.int64(),
        start=pa.int64(),
        ids=pa.list_(pa.int32()),
        roles=pa.list_(pa.uint8()),
        char_start=pa.list_(pa.int32()),
        char_end=pa.list_(pa.int32()),
    ),
    _spec(
        "links",
        "two units that have to do with each other",
        "kind unit other",
        unit=_ADDRESS,
        other=_ADDRESS,
        kind=_WORD,
        score=pa.float32(),
        control=pa.float32(),
    ),
    _spec(
        "translators",
        "a row of the map that a tuned lens has learned for a site: its states h are read as h + h A + b, where b is the last row, and A "
        "are those before it",
        "run site row",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        row=pa.int32(),
        values=pa.list_(pa.float32()),
    ),
    _spec(
        "geometry_shares",
        "the share of the variance of hidden states at a site that a part explains; norm is the root mean "
        "square length of the part (of mu: its length)",
        "run site part",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        part=_WORD,
        share=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        norm=pa.float64(),
        windows=pa.int64(),
        tokens=pa.int64(),
    ),
    _spec(
        "geometry_stats",
        "a measure of a part of hidden states at a site, beside its control, 95 % of whose draws lie between control_lo and "
        "control_hi; lo to hi is a 95 % interval of the value; where there is no value, undefined says why",
        "run site subject stat",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        subject=_WORD,
        stat=_WORD,
        value=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        control_lo=pa.float64(),
        control_hi=pa.float64(),
        lo=pa.float64(),
        hi=pa.float64(),
        q=pa.float64(),
        undefined=_WORD,
    ),
    _spec(
        "geometry_positions",
        "a place among the counted tokens of a window: how many windows have it, the length of its position vector, the root mean "
        "square length of hidden states there, and its coordinates on the leading directions of position",
        "run site position",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        position=pa.int32(),
        windows=pa.int64(),
        norm=pa.float64(),
        state_norm=pa.float64(),
        x=pa.float64(),
        y=pa.float64(),
        z=pa.float64(),
    ),
    _spec(
        "geometry_spectra",
        "a singular value of a part, largest first; of the cross-validated Gram matrix the root of an eigenvalue with its sign, of "
        "states the standard deviation along a principal axis",
        "run site subject rank",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        subject=_WORD,
        rank=pa.int32(),
        value=pa.float64(),
    ),
    _spec(
        "geometry_frequencies",
        "an entry of the two-dimensional cosine transform of the Gram matrix of position vectors, frequencies in half periods a window",
        "run site subject row column",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        subject=_WORD,
        row=pa.int16(),
        column=pa.int16(),
        value=pa.float64(),
    ),
    _spec(
        "geometry_windows",
        "a sampled window: the length of its context part, its place on the map of context parts, its label and its cluster",
        "run site window",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        window=pa.int64(),
        document=pa.int64(),
        label=_WORD,
        cluster=pa.int16(),
        norm=pa.float64(),
        x=pa.float64(),
        y=pa.float64(),
    ),
    _spec(
        "geometry_cosines",
        "cosines of a position vector or a context part (subject, index) with all of those at the site, in the order of row",
        "run site row",
        run=_WORD,
        site=_WORD,
        layer=pa.int16(),
        row=pa.int32(),
        subject=_WORD,
        index=pa.int64(),
        cosines=pa.list_(pa.float32()),
    ),
    _spec(
        "geometry_alignment",
        "how alike a part is at two sites, beside its control",
        "run subject stat site other",
        run=_WORD,
        subject=_WORD,
        stat=_WORD,
        site=_WORD,
        other=_WORD,
        value=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        q=pa.float64(),
        undefined=_WORD,
    ),
    _spec(
        "geometry_attention",
        "what a part of queries with a part of keys contributes to the scores of a head, centred over keys: energy is its share of "
        "the sum of all terms' squares, share its part of the variance of the scores",
        "run layer head query_part key_part",
        run=_WORD,
        layer=pa.int16(),
        head=pa.int16(),
        query_part=_WORD,
        key_part=_WORD,
        energy=pa.float64(),
        energy_control=pa.float64(),
        share=pa.float64(),
        share_control=pa.float64(),
        control_kind=_WORD,
    ),
    _spec(
        "layer_loss",
        "nats per token when a site is read through the model's own final norm and head: the loss of an objective, or, of objectives named "
        "kl, the divergence from the model's own answer; _tuned through a translator learned on the other half of the documents",
        "run objective site",
        run=_WORD,
        objective=_WORD,
        site=_WORD,
        layer=pa.int16(),
        loss=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        tokens=pa.int64(),
    ),
    _spec(
        "findings",
        "a result that survives its control, most telling first: a sentence, and what it is about",
        "run lens rank subject",
        run=_WORD,
        rank=pa.int32(),
        lens=_WORD,
        kind=_WORD,
        subject=pa.string(),
        sentence=pa.string(),
        value=pa.float64(),
        control=pa.float64(),
        control_kind=_WORD,
        q=pa.float64(),
    ),
)

TABLES: Final[dict[str, TableSpec]] = {row.name: row for row in _ROWS}


def empty_table(name: str) -> pa.Table:
    """A table of the right schema without rows."""
    return TABLES[name].schema.empty_table()
