"""Numbers of streams: mergeable states over tensors, and free functions for their mathematics. Knows no model and no site.

A state is a dict of tensors; modules of states share the names `init`, `update` (in place), `merge` and `result`, so they are
used with their module's name: `moments.update(state, x)`.
"""

from microtome.numerics import kernels as kernels
from microtome.numerics import moments as moments
from microtome.numerics import topk as topk
from microtome.numerics.extremes import Extremes as Extremes
from microtome.numerics.extremes import window_extremes as window_extremes
from microtome.numerics.hashing import hash_parts as hash_parts
from microtome.numerics.hashing import hash_text as hash_text
from microtome.numerics.hashing import splitmix64 as splitmix64
from microtome.numerics.hashing import uniform as uniform
from microtome.numerics.moments import Moments as Moments
from microtome.numerics.quantised import dequantise as dequantise
from microtome.numerics.quantised import quantise as quantise
