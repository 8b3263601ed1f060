"""The architectures microtome knows: one row each, saying where every tensor and weight is. To add one, add a row."""

from microtome.model.families.registry import FAMILIES as FAMILIES
from microtome.model.families.registry import family_of as family_of
from microtome.model.families.rows import Facts as Facts
from microtome.model.families.rows import Family as Family
from microtome.model.families.rows import Head as Head
from microtome.model.families.rows import NormRow as NormRow
from microtome.model.families.rows import Place as Place
from microtome.model.families.rows import Recipe as Recipe
from microtome.model.families.rows import Source as Source
from microtome.model.families.rows import Tap as Tap
from microtome.model.families.rows import WeightRow as WeightRow
