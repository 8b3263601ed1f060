"""Neurons: what does each feed-forward unit detect, store and promote?

Papers: Geva et al. 2021 (key-value memories) and 2022, Voita et al. 2023 (dead units, token detectors), and the methods of the
survey by Vijayakumar 2023. `NeuronsLens` is the part of a build that describes every unit; `Neurons` is the basis of one block.
"""

from microtome.neurons.basis import Neurons as Neurons
from microtome.neurons.basis import neurons_of as neurons_of
from microtome.neurons.counts import TokenCounts as TokenCounts
from microtome.neurons.lens import NeuronsLens as NeuronsLens
