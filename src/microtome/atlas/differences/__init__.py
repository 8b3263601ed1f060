"""Kinds of comparison of two models or two atlases, a module each: what is compared, the report, and its rows."""

from microtome.atlas.differences.alignment import ModelAlignment as ModelAlignment
from microtome.atlas.differences.alignment import alignment as alignment
from microtome.atlas.differences.atlases import LARGEST_Q as LARGEST_Q
from microtome.atlas.differences.atlases import AtlasDifference as AtlasDifference
from microtome.atlas.differences.atlases import compare_atlases as compare_atlases
from microtome.atlas.differences.atlases import compare_statistics as compare_statistics
from microtome.atlas.differences.comparison import Comparison as Comparison
from microtome.atlas.differences.comparison import Kind as Kind
from microtome.atlas.differences.comparison import differing_sizes as differing_sizes
from microtome.atlas.differences.comparison import require_idle as require_idle
from microtome.atlas.differences.displacement import ModelDifference as ModelDifference
from microtome.atlas.differences.displacement import displacement as displacement
