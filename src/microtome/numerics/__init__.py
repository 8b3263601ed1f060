"""Numbers of streams: mergeable states over tensors, and free functions for their mathematics. Knows no model and no site.

A state is a dict of tensors. Modules of states share the names `init`, `update` (in place), `merge` and, where there is
something to compute at the end, `result`, so they are used with their module's name: `moments.update(state, x)`.
"""

from microtome.numerics import gram as gram
from microtome.numerics import histogram as histogram
from microtome.numerics import kernels as kernels
from microtome.numerics import moments as moments
from microtome.numerics import reservoir as reservoir
from microtome.numerics import topk as topk
from microtome.numerics.extremes import Extremes as Extremes
from microtome.numerics.gram import Gram as Gram
from microtome.numerics.hashing import hash_parts as hash_parts
from microtome.numerics.hashing import hash_text as hash_text
from microtome.numerics.hashing import splitmix64 as splitmix64
from microtome.numerics.hashing import uniform as uniform
from microtome.numerics.matmul_topk import Ends as Ends
from microtome.numerics.matmul_topk import matmul_topk as matmul_topk
from microtome.numerics.moments import Moments as Moments
from microtome.numerics.multiple import benjamini_hochberg as benjamini_hochberg
from microtome.numerics.multiple import bootstrap_interval as bootstrap_interval
from microtome.numerics.multiple import permutation_p as permutation_p
from microtome.numerics.multiple import resamples as resamples
from microtome.numerics.places import diagonal_places as diagonal_places
from microtome.numerics.positive import solve_positive as solve_positive
from microtome.numerics.product_topk import End as End
from microtome.numerics.product_topk import Pairs as Pairs
from microtome.numerics.product_topk import product_diagonal as product_diagonal
from microtome.numerics.product_topk import product_ends as product_ends
from microtome.numerics.product_topk import product_topk as product_topk
from microtome.numerics.quantiles import quantiles as quantiles
from microtome.numerics.quantised import quantise as quantise
from microtome.numerics.rounding import Columns as Columns
from microtome.numerics.rounding import Precision as Precision
from microtome.numerics.shifts import window_shifts as window_shifts
