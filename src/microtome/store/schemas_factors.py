"""Tables of dictionaries: what they are, and how well states are made of them. See `schemas`."""

from typing import Final

import pyarrow as pa

from microtome.store.table_spec import ADDRESS, WORD, table_spec

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
    table_spec(
        "unit_places",
        "where a unit is on a map of its basis, on which units near each other point alike; how far it can be believed is said in dictionary_stats "
        "(trustworthiness, continuity)",
        "unit layout",
        unit=ADDRESS,
        layout=WORD,
        x=pa.float32(),
        y=pa.float32(),
    ),
    table_spec(
        "cofirings",
        "a unit that is active with another: score is the tokens at which both are, of those at which either is, in the confirm half, chosen by the "
        "discover half; shifted is the same where one is turned round in its windows, expected that of two that know nothing of each other, control "
        "the mean at this rank of partners found in the same way in text that was turned round",
        "run unit other",
        run=WORD,
        unit=ADDRESS,
        other=ADDRESS,
        score=pa.float64(),
        shifted=pa.float64(),
        expected=pa.float64(),
        control=pa.float64(),
    ),
    table_spec(
        "saliencies",
        "what a unit's code at a token is owed to: the weight of each token of the window that may be taken away, by its position; whole is the code, nothing "
        "that without these tokens; deletion and insertion are areas under the code's share while tokens are taken away and put in, those that it owes "
        "most to first (a good deletion is small, a good insertion large), beside orders drawn at random",
        "run unit site window position",
        run=WORD,
        unit=ADDRESS,
        site=WORD,
        window=pa.int64(),
        position=pa.int32(),
        half=WORD,
        method=WORD,
        tokens=pa.list_(pa.int32()),
        weights=pa.list_(pa.float32()),
        whole=pa.float64(),
        nothing=pa.float64(),
        deletion=pa.float64(),
        insertion=pa.float64(),
        deletion_control=pa.float64(),
        insertion_control=pa.float64(),
    ),
    table_spec(
        "senses",
        "a label of a word that has several, told from the word's others on held-out occurrences by one factor (method factor), by all of the state (state), or by "
        "one number of it (coordinate, component, random direction; majority: always the commoner), at a site or at the best of all; unit is the factor that was "
        "chosen most often, in a share `chosen` of the parts that chose, at the site `at`; in_sample is the AUROC if all occurrences choose and judge; where there is nothing, undefined says why",
        "run name word label site method",
        run=WORD,
        name=WORD,
        word=pa.string(),
        label=WORD,
        site=WORD,
        method=WORD,
        unit=pa.string(),
        at=WORD,
        chosen=pa.float64(),
        positives=pa.int32(),
        occurrences=pa.int32(),
        f1=pa.float64(),
        precision=pa.float64(),
        recall=pa.float64(),
        auroc=pa.float64(),
        in_sample=pa.float64(),
        undefined=WORD,
    ),
)
