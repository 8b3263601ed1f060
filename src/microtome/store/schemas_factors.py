"""Tables of dictionaries: what they are, and how well states are made of them. See `schemas`."""

from typing import Final

import pyarrow as pa

from microtome.store.table_spec import WORD, table_spec

__all__ = ["FACTORS"]

FACTORS: Final = (
    table_spec(
        "dictionaries",
        "a dictionary of factors: the sites whose states it reads and writes, whether they share its directions, how codes are made, how states are "
        "scaled before, and, as JSON, how it was learnt; its numbers are in `file` of the atlas",
        "run name",
        run=WORD,
        name=WORD,
        file=pa.string(),
        arrangement=WORD,
        reads=pa.list_(pa.string()),
        writes=pa.list_(pa.string()),
        units=pa.int32(),
        width=pa.int32(),
        coder=pa.string(),
        learnt=pa.string(),
    ),
    table_spec(
        "dictionary_stats",
        "how well states at a site are made of a dictionary's factors, and by how many, on the confirm half, beside what `control_kind` names; lo to "
        "hi is a 95 % interval over documents, where there is one; where there is no value, undefined says why",
        "run name site stat control_kind",
        run=WORD,
        name=WORD,
        site=WORD,
        stat=WORD,
        value=pa.float64(),
        control=pa.float64(),
        control_kind=WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        undefined=WORD,
    ),
)
