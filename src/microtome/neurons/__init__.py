"""Neurons: what does each feed-forward unit detect, store and promote?

Papers: Geva et al. 2021 (key-value memories) and 2022, Voita et al. 2023 (dead units, token detectors), and the methods of the
survey by Vijayakumar 2023. `NeuronsLens` is the part of a build that describes every unit; `Neurons` is the basis of one block.

Beside a build: units of a fact (`ask`, `attributed`, `refined`, `scaled_effect`) and edits of it (`swap_answer`, `rome_edit`); units of a
concept (`responses`, `experts`) and text written with them clamped (`conditioned`).
"""

from microtome.neurons.basis import Neurons as Neurons
from microtome.neurons.basis import neurons_of as neurons_of
from microtome.neurons.conditioning import clamps as clamps
from microtome.neurons.conditioning import conditioned as conditioned
from microtome.neurons.experts import expertise as expertise
from microtome.neurons.experts import experts as experts
from microtome.neurons.experts import responses as responses
from microtome.neurons.facts import Fact as Fact
from microtome.neurons.facts import ask as ask
from microtome.neurons.facts import askable as askable
from microtome.neurons.facts import known as known
from microtome.neurons.facts import read_facts as read_facts
from microtome.neurons.knowledge import Refinement as Refinement
from microtome.neurons.knowledge import activations as activations
from microtome.neurons.knowledge import attributed as attributed
from microtome.neurons.knowledge import refined as refined
from microtome.neurons.knowledge import relation_units as relation_units
from microtome.neurons.knowledge import scaled_effect as scaled_effect
from microtome.neurons.knowledge_edits import Swap as Swap
from microtome.neurons.knowledge_edits import answers_changed as answers_changed
from microtome.neurons.knowledge_edits import erasing as erasing
from microtome.neurons.knowledge_edits import swap_answer as swap_answer
from microtome.neurons.lens import NeuronsLens as NeuronsLens
from microtome.neurons.links import weight_links as weight_links
from microtome.neurons.rome import Descent as Descent
from microtome.neurons.rome import rome_edit as rome_edit
from microtome.neurons.rome import rome_scores as rome_scores
from microtome.neurons.rome import second_moment as second_moment
