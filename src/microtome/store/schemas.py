"""What the tables of an atlas are: what a row means, its columns, and what orders and identifies its rows.

A row of `TABLES` is the contract between the lenses, which write, and the readers: the page, the notebook, DuckDB. What the numbers
mean belongs to the lenses, how files are written in `tables`.
"""

from typing import Final

import pyarrow as pa

from microtome.store.schemas_factors import FACTORS
from microtome.store.schemas_geometry import GEOMETRY
from microtome.store.schemas_units import MEANING, UNITS
from microtome.store.table_spec import ADDRESS, WORD, TableSpec, table_spec

__all__ = ["TABLES", "empty_table"]

_ROWS: Final = (
    *UNITS,
    *FACTORS,
    *GEOMETRY,
    table_spec(
        "tokens",
        "a token of the vocabulary that a direction promotes or looks for (end +) or the opposite (end -): of a unit its written "
        "direction, of a weight vector (W_gate.24/343) its own; control is the mean score at the same rank of random mixtures of the "
        "vectors of its layer, of the same norm",
        "unit end rank",
        unit=ADDRESS,
        end=WORD,
        rank=pa.int16(),
        token=pa.int32(),
        score=pa.float32(),
        control=pa.float32(),
    ),
    table_spec(
        "pairs",
        "two tokens that a head puts together most (end +), least (end -), or by magnitude (end ±): of circuit ov the token attended to and the other that is "
        "written, of qk the token that asks and the other that is attended to; z is the score in standard deviations over all pairs, "
        "control the z at that rank of the heads of its layer, each rotated inside",
        "circuit head end rank",
        head=ADDRESS,
        circuit=WORD,
        end=WORD,
        rank=pa.int32(),
        token=pa.int32(),
        other=pa.int32(),
        score=pa.float32(),
        z=pa.float32(),
        control=pa.float32(),
    ),
    table_spec(
        "vocabulary_stats",
        "a measure of a group of parameters in a layer, read in the vocabulary, beside its control, 95 % of whose draws lie between "
        "control_lo and control_hi; lo to hi is a 95 % interval of the value; where there is no value, undefined says why",
        "run group layer stat",
        run=WORD,
        group=WORD,
        layer=pa.int16(),
        stat=WORD,
        value=pa.float64(),
        control=pa.float64(),
        control_kind=WORD,
        control_lo=pa.float64(),
        control_hi=pa.float64(),
        lo=pa.float64(),
        hi=pa.float64(),
        q=pa.float64(),
        undefined=WORD,
    ),
    table_spec(
        "changes",
        "a parameter vector of this model beside the same one of another, `base`: how far it moved over its own length there, the "
        "cosine of both, and tokens that the difference promotes and demotes, best first; score is how well these tell the words of a "
        "list from others (AUC) or, without a list, how far the first token stands out, beside its control, which control_kind names",
        "run base group layer vector",
        run=WORD,
        base=WORD,
        group=WORD,
        layer=pa.int16(),
        vector=ADDRESS,
        moved=pa.float64(),
        cosine=pa.float64(),
        promoted=pa.list_(pa.int32()),
        demoted=pa.list_(pa.int32()),
        score=pa.float64(),
        control=pa.float64(),
        control_kind=WORD,
        q=pa.float64(),
    ),
    table_spec(
        "vocabulary",
        "a token of the tokenizer, its text with a space shown as a space",
        "token",
        token=pa.int32(),
        text=pa.string(),
    ),
    table_spec(
        "token_meanings",
        "what a token means, as the direction of a vector: its embedding about the mean of all, whitened in the directions of most variance; the "
        "cosine of two says how alike they are used",
        "token",
        token=pa.int32(),
        vector=pa.list_(pa.int8(), MEANING),
    ),
    table_spec(
        "token_counts",
        "how often a token occurs among a run's counted tokens",
        "run token",
        run=WORD,
        token=pa.int32(),
        count=pa.int64(),
    ),
    table_spec(
        "documents",
        "a document of a run's corpus, and if it was skipped, why; same_as is the first one of the same text and label, where that is another",
        "run document",
        run=WORD,
        document=pa.int64(),
        name=pa.string(),
        label=pa.string(),
        half=WORD,
        same_as=pa.int64(),
        tokens=pa.int64(),
        windows=pa.int64(),
        status=WORD,
        reason=pa.string(),
        text=pa.large_string(),
    ),
    table_spec(
        "windows",
        "a window: its tokens, their roles, and the characters of the document they cover (-1: none)",
        "run window",
        run=WORD,
        window=pa.int64(),
        document=pa.int64(),
        start=pa.int64(),
        ids=pa.list_(pa.int32()),
        roles=pa.list_(pa.uint8()),
        char_start=pa.list_(pa.int32()),
        char_end=pa.list_(pa.int32()),
    ),
    table_spec(
        "pictures",
        "what the model sees of a document that is an image: the picture as the image processor resizes and crops it, as JPEG (width x height "
        "pixels, 256 at most), which so many rows and columns of patches tile",
        "run document",
        run=WORD,
        document=pa.int64(),
        rows=pa.int32(),
        columns=pa.int32(),
        width=pa.int32(),
        height=pa.int32(),
        jpeg=pa.binary(),
    ),
    table_spec(
        "translators",
        "a row of the map that a tuned lens has learned for a site: its states h are read as h + h A + b, where b is the last row, and A "
        "are those before it",
        "run site row",
        run=WORD,
        site=WORD,
        layer=pa.int16(),
        row=pa.int32(),
        values=pa.list_(pa.float32()),
    ),
    table_spec(
        "layer_loss",
        "nats per token when a site is read through the model's own final norm and head: the loss of an objective, or, of objectives named "
        "kl, the divergence from the model's own answer; _tuned through a translator learned on the other half of the documents",
        "run objective site",
        run=WORD,
        objective=WORD,
        site=WORD,
        layer=pa.int16(),
        loss=pa.float64(),
        control=pa.float64(),
        control_kind=WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        tokens=pa.int64(),
    ),
    table_spec(
        "findings",
        "a result that survives its control, most telling first: a sentence, and what it is about",
        "run lens rank subject",
        run=WORD,
        rank=pa.int32(),
        lens=WORD,
        kind=WORD,
        subject=pa.string(),
        sentence=pa.string(),
        value=pa.float64(),
        control=pa.float64(),
        control_kind=WORD,
        q=pa.float64(),
    ),
)

TABLES: Final[dict[str, TableSpec]] = {row.name: row for row in _ROWS}


def empty_table(name: str) -> pa.Table:
    """A table of the right schema without rows."""
    return TABLES[name].schema.empty_table()
