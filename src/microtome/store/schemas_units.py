"""Tables of units: what they are, where they are active, what they have to do with each other, and what they know and tell. See `schemas`."""

from typing import Final

import pyarrow as pa

from microtome.store.table_spec import ADDRESS, WORD, table_spec

__all__ = ["MEANING", "NEIGHBOURS", "UNITS"]

NEIGHBOURS: Final = 16
"""Tokens on each side of a context's token whose activations are kept."""

MEANING: Final = 96
"""Numbers of a vector that says what something means."""

UNITS: Final = (
    table_spec(
        "units",
        "a unit of a basis",
        "basis name layer expert index",
        unit=pa.string(),
        basis=WORD,
        name=WORD,
        layer=pa.int16(),
        expert=pa.int16(),
        index=pa.int32(),
    ),
    table_spec(
        "unit_stats",
        "a statistic of a unit at a site, beside its control: what it would be by chance; lo to hi is a 95 % interval of the value "
        "itself, empty where the value has no sampling error",
        "stat unit site run",
        unit=ADDRESS,
        site=WORD,
        stat=WORD,
        value=pa.float64(),
        control=pa.float64(),
        control_kind=WORD,
        lo=pa.float64(),
        hi=pa.float64(),
        q=pa.float64(),
        run=WORD,
    ),
    table_spec(
        "unit_labels",
        "what a unit can be called, by a test that it passed in the confirm half: a word that half of its contexts at an end are at or before, a run "
        "of words that they end in, a question about the token that explains a tenth of its variance, a place in the window that its being active "
        "depends on (in all documents), or what its weights write; value is what was tested (share, variance explained, nats, or a moment of cosines), "
        "control the same by chance",
        "unit kind end run",
        unit=pa.string(),
        end=WORD,
        kind=WORD,
        text=pa.string(),
        value=pa.float64(),
        control=pa.float64(),
        control_kind=WORD,
        q=pa.float64(),
        run=WORD,
    ),
    table_spec(
        "explanations",
        "one end of a unit explained by the tokens at which it is active (text: runs of tokens with their mean activation, from 0 to 10, the largest "
        "of training; at the end bottom, of the activation times -1), by a table of tokens, 2-grams or 3-grams made in the discover half and scored on "
        "excerpts of the confirm half: pearson is the correlation of what it predicts over all their tokens; control is the mean of what explanations of "
        "other units reach on them, q is for its standing out among those, directions is the mean for explained random directions of the layer; "
        "detection and fuzzing are accuracies (chance 0.5) in telling excerpts in which the end fires, and tokens at which it does, beside "
        "those by explanations of other units, empty where no held-out excerpt fires",
        "run unit end",
        unit=pa.string(),
        end=WORD,
        method=WORD,
        text=pa.string(),
        pearson=pa.float64(),
        control=pa.float64(),
        directions=pa.float64(),
        q=pa.float64(),
        detection=pa.float64(),
        detection_control=pa.float64(),
        fuzzing=pa.float64(),
        fuzzing_control=pa.float64(),
        excerpts=pa.int32(),
        run=WORD,
    ),
    table_spec(
        "contexts",
        "a token at which a unit is extreme (end: top, bottom) or typical (decile0 .. decile9), with the "
        "activations around it: activations[j] * scale is that at token `first` + j of the window; -128 is no token",
        "unit site end half rank run",
        unit=ADDRESS,
        site=WORD,
        end=WORD,
        half=WORD,
        rank=pa.int16(),
        value=pa.float32(),
        window=pa.int64(),
        position=pa.int32(),
        first=pa.int32(),
        scale=pa.float32(),
        activations=pa.list_(pa.int8(), 2 * NEIGHBOURS + 1),
        run=WORD,
    ),
    table_spec(
        "histograms",
        "how often a unit is how active, counted over a sample of a run's tokens (of a factor over those at which it is active): the first of the "
        "counts is of activations below low, the last of those above high, and those between are of bins of one width from low to high",
        "unit site run",
        unit=ADDRESS,
        site=WORD,
        low=pa.float32(),
        high=pa.float32(),
        counts=pa.list_(pa.int32()),
        run=WORD,
    ),
    table_spec(
        "unit_meanings",
        "what a unit has to do with, in the directions of token_meanings, as the direction of a vector: the mean over its top contexts (end top; "
        "the token at the peak counts most, frequent tokens hardly), or over the tokens that it promotes (end +), about the mean of all units; draw is 0. "
        "Those of draw 1 to 256 are of as many contexts, or tokens, dealt to no unit: what cosines with them come to, others come to by chance",
        "run end draw unit",
        run=WORD,
        unit=pa.string(),
        end=WORD,
        draw=pa.int16(),
        vector=pa.list_(pa.int8(), MEANING),
    ),
    table_spec(
        "links",
        "two units that have to do with each other",
        "kind unit other",
        unit=ADDRESS,
        other=ADDRESS,
        kind=WORD,
        score=pa.float32(),
        control=pa.float32(),
    ),
    table_spec(
        "coactivations",
        "a unit that goes with another: the correlation of their activations at sampled tokens of the confirm half, chosen by that of the discover "
        "half; control is the mean size of those found in the same way among directions that units were turned to",
        "run unit other",
        run=WORD,
        unit=ADDRESS,
        other=ADDRESS,
        score=pa.float32(),
        control=pa.float32(),
    ),
    table_spec(
        "facts",
        "a fact that a model was asked for: `known` is the share of its prompts that are answered right, `probability` the mean of the "
        "answer; `units` know it, the one worth most first, found in at least a share `prompts` of the prompts, which was moved `rounds` times; "
        "`explained` is the share of the probability that is attributed to those of one layer, `error` the most that attributions are off "
        "by (neither where no prompt is answered right). Relative changes of the probability: suppressed and amplified, where units are set to "
        "0 and doubled; of other facts of the relation and of other relations, where they are set to 0; random, with as many random units of "
        "the same layers that write as much, 95 % of which lie between random_lo and random_hi; p, q are for suppressed. Where a fact was not asked, undefined says why",
        "run fact",
        run=WORD,
        fact=pa.int32(),
        relation=WORD,
        subject=pa.string(),
        answer=pa.string(),
        known=pa.float64(),
        probability=pa.float64(),
        prompts=pa.float64(),
        rounds=pa.int16(),
        settled=pa.bool_(),
        explained=pa.float64(),
        error=pa.float64(),
        units=pa.list_(pa.string()),
        worth=pa.list_(pa.float64()),
        suppressed=pa.float64(),
        amplified=pa.float64(),
        same_relation=pa.float64(),
        other_relations=pa.float64(),
        random=pa.float64(),
        random_lo=pa.float64(),
        random_hi=pa.float64(),
        p=pa.float64(),
        q=pa.float64(),
        undefined=pa.string(),
    ),
    table_spec(
        "probes",
        "a probe of a label, from `units` of a layer that the discover half chose, judged on the confirm half: by k of them whether a word has the "
        "label (f1, precision, recall, mcc, auroc; base is the share of words that have it; control is the mean f1 of as many random units, whose "
        "draws lie between control_lo and control_hi), or, where no label is named, which of all (accuracy; base is that of the commonest; control "
        "is its accuracy where every word has a random label for good); where a label has too few words, undefined says so",
        "run layer label k",
        run=WORD,
        site=WORD,
        layer=pa.int16(),
        label=WORD,
        k=pa.int32(),
        units=pa.list_(pa.string()),
        f1=pa.float64(),
        precision=pa.float64(),
        recall=pa.float64(),
        mcc=pa.float64(),
        auroc=pa.float64(),
        accuracy=pa.float64(),
        base=pa.float64(),
        control=pa.float64(),
        control_lo=pa.float64(),
        control_hi=pa.float64(),
        control_kind=WORD,
        undefined=pa.string(),
    ),
)
