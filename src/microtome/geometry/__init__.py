"""Geometry: how do hidden states split into a global mean, a position part, a context part and a residual?

Call `GeometryLens` in a build, or run `Decomposition` over one site. What follows from the parts (rank, smoothness, clusters)
builds on them.

Source: Song & Zhong 2023, arXiv:2310.04861, sections 2 and 3.
"""

from microtome.geometry.anova import PARTS as PARTS
from microtome.geometry.decomposition import Centre as Centre
from microtome.geometry.decomposition import Decomposition as Decomposition
from microtome.geometry.decomposition import Parts as Parts
from microtome.geometry.lens import GeometryLens as GeometryLens
