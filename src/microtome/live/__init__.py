"""Text that is typed now, read by an atlas's own model: what do its layers say, which units are active, and what if they were changed?

Get the model with `ModelOfAtlas(atlas, source).loaded()`, make tokens of a text with `read_text`, and call `look` for the logit lens and the
active units, `decompose` for the parts of one token's state, `attention` for a layer's heads, `compare` and `write` for edits.
Nothing here is written into the atlas. What an edit is belongs in `intervene`; who may ask over the network, in `web`.
"""

from microtome.live.active import Active as Active
from microtome.live.active import Largest as Largest
from microtome.live.active import largest_of as largest_of
from microtome.live.attention import attention as attention
from microtome.live.clock import Clock as Clock
from microtome.live.clock import Overdue as Overdue
from microtome.live.edited import Comparison as Comparison
from microtome.live.edited import UnitEdit as UnitEdit
from microtome.live.edited import compare as compare
from microtome.live.edited import edits_of as edits_of
from microtome.live.edited import write as write
from microtome.live.looking import Look as Look
from microtome.live.looking import look as look
from microtome.live.model_of_atlas import Loaded as Loaded
from microtome.live.model_of_atlas import ModelOfAtlas as ModelOfAtlas
from microtome.live.model_of_atlas import Told as Told
from microtome.live.parts import Decomposition as Decomposition
from microtome.live.parts import Part as Part
from microtome.live.parts import decompose as decompose
from microtome.live.reading import MOST_TOKENS as MOST_TOKENS
from microtome.live.reading import LogitLens as LogitLens
from microtome.live.reading import predicts as predicts
from microtome.live.reading import read_text as read_text
from microtome.live.reading import spelt as spelt
