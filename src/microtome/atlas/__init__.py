"""Build an atlas from a model and text, and read it."""

from microtome.atlas.read import Atlas as Atlas
