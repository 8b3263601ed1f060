"""The axis vocabulary: every shape annotation in microtome uses these words, and no others mean the same thing.

window      one row of a batch: a run of tokens of one document (or one image)
token       position inside a window
row         a token, after windows and positions are flattened and the uncounted ones are left out
d_model     coordinate of the residual stream
unit        a unit of a basis: a neuron (coordinate of the activation space), a factor, a head
head        query head;  head_kv is a key/value head, shared by head/head_kv query heads
d_head      coordinate inside one head
query, key  token positions on the two sides of attention
expert      expert of a mixture-of-experts block
vocab       entry of the vocabulary
layer       transformer block, counted from 0
k           entry of a top-k list
draw        one draw of a null distribution
decile      tenth of a unit's own activation distribution, 0 lowest

A module docstring may add an axis that only it uses. This module holds words; shapes live in signatures.
"""

from typing import Final

AXES: Final = (
    "window",
    "token",
    "row",
    "d_model",
    "unit",
    "head",
    "head_kv",
    "d_head",
    "query",
    "key",
    "expert",
    "vocab",
    "layer",
    "k",
    "draw",
    "decile",
)
