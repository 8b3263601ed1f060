"""Directions and hidden states read in the model's own vocabulary: which tokens a direction promotes, what a layer knows.

Call `output_reader` on a model's weights, `random_directions` once, then `top_tokens` for any directions of the stream.
"""

from microtome.readout.losses import LayerLoss as LayerLoss
from microtome.readout.losses import layer_loss as layer_loss
from microtome.readout.losses import unigram_entropy as unigram_entropy
from microtome.readout.nulls import central_interval as central_interval
from microtome.readout.nulls import pooled_chance as pooled_chance
from microtome.readout.reader import Folding as Folding
from microtome.readout.reader import Reader as Reader
from microtome.readout.reader import fold_norm as fold_norm
from microtome.readout.reader import input_reader as input_reader
from microtome.readout.reader import output_reader as output_reader
from microtome.readout.reader import written as written
from microtome.readout.sample import TargetCounts as TargetCounts
from microtome.readout.sample import Tokens as Tokens
from microtome.readout.sample import TokenSample as TokenSample
from microtome.readout.stored import stored_weights as stored_weights
from microtome.readout.tokens import ENDS as ENDS
from microtome.readout.tokens import RandomDirections as RandomDirections
from microtome.readout.tokens import TopTokens as TopTokens
from microtome.readout.tokens import chance as chance
from microtome.readout.tokens import quickest as quickest
from microtome.readout.tokens import random_directions as random_directions
from microtome.readout.tokens import read_random as read_random
from microtome.readout.tokens import tokens_table as tokens_table
from microtome.readout.tokens import top_tokens as top_tokens
from microtome.readout.words import is_whole as is_whole
from microtome.readout.words import named as named
from microtome.readout.words import quoted as quoted
from microtome.readout.words import texts_of as texts_of
