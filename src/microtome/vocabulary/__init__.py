"""Vocabulary: what do the parameters themselves say, read in the model's own vocabulary, with no forward pass?

Call `VocabularyLens` in a build. For single questions: `read_values` for what feed-forward units write, `all_head_scores` for
what heads do; reading any other direction is `microtome.readout`.

Source: Dar et al. 2022, arXiv:2209.02535, section 3.
"""

from microtome.vocabulary.heads import HeadScores as HeadScores
from microtome.vocabulary.heads import HeadWeights as HeadWeights
from microtome.vocabulary.heads import head_weights as head_weights
from microtome.vocabulary.lens import VocabularyLens as VocabularyLens
from microtome.vocabulary.lens import all_head_scores as all_head_scores
from microtome.vocabulary.values import Values as Values
from microtome.vocabulary.values import read_values as read_values
from microtome.vocabulary.words import unreadable_tokens as unreadable_tokens
