"""Build an atlas from a model and text, estimate what that takes, and read it."""

from microtome.atlas.build import build as build
from microtome.atlas.diff import diff as diff
from microtome.atlas.differences import Comparison as Comparison
from microtome.atlas.estimate import Estimate as Estimate
from microtome.atlas.estimate import estimate as estimate
from microtome.atlas.read import Atlas as Atlas
from microtome.atlas.read import damaged as damaged
from microtome.atlas.settings import LENSES as LENSES
from microtome.atlas.settings import Settings as Settings
