"""Vocabulary: what do the parameters themselves say, read in the model's own vocabulary, with no forward pass?

Call `read` for weight vectors, heads and units by address, or for any direction of the stream, and `search` for where weights speak of
some words. `subject_of` makes what all methods of the modules here take: weights, and token vectors to read them by. `VocabularyLens` is
all of it in a build.

Source: Dar et al. 2022, arXiv:2209.02535, section 3.
"""

from microtome.vocabulary.head_reading import HeadReading as HeadReading
from microtome.vocabulary.heads import HeadScores as HeadScores
from microtome.vocabulary.heads import HeadWeights as HeadWeights
from microtome.vocabulary.heads import head_weights as head_weights
from microtome.vocabulary.lens import VocabularyLens as VocabularyLens
from microtome.vocabulary.lens import all_head_scores as all_head_scores
from microtome.vocabulary.reading import read as read
from microtome.vocabulary.subject import Subject as Subject
from microtome.vocabulary.subject import subject_of as subject_of
from microtome.vocabulary.topics import Search as Search
from microtome.vocabulary.topics import search as search
from microtome.vocabulary.tuned import TunedLens as TunedLens
from microtome.vocabulary.tuned import tuned_lens as tuned_lens
from microtome.vocabulary.unit_reading import UnitReading as UnitReading
from microtome.vocabulary.values import Values as Values
from microtome.vocabulary.values import read_values as read_values
from microtome.vocabulary.vector_reading import Reading as Reading
from microtome.vocabulary.words import unreadable_tokens as unreadable_tokens
