"""Geometry: how do hidden states split into a global mean, a position part, a context part and a residual?

Call `measure(model, text)` for records and tables, or run `microtome geometry MODEL TEXT -o ATLAS`. `compare` sets two of
them side by side. Each measure is also a function of
plain tensors in a module of its own: `rank`, `smoothness`, `spiral`, `context`, `incoherence`, `isotropy`, `dimension`, `alignment`,
`attention`, `weights`.

Source: Song & Zhong 2023, arXiv:2310.04861, sections 2 and 3.
"""

from microtome.geometry.anova import PARTS as PARTS
from microtome.geometry.attention import HeadSplit as HeadSplit
from microtome.geometry.comparison import compare as compare
from microtome.geometry.decomposition import Centre as Centre
from microtome.geometry.decomposition import Decomposition as Decomposition
from microtome.geometry.decomposition import Parts as Parts
from microtome.geometry.lens import GeometryLens as GeometryLens
from microtome.geometry.measure import Geometry as Geometry
from microtome.geometry.measure import measure as measure
from microtome.geometry.measured import Measured as Measured
from microtome.geometry.sites import SiteGeometry as SiteGeometry
