"""Factors: of which sparse dictionary of directions are hidden states superpositions?

Papers: Yun et al. 2021 (one dictionary for all layers, by sparse coding) and the sparse autoencoders that came after it. `train` learns a dictionary
and says how good it is; `FactorsLens` is the part of a build that does so and shows its factors; `Factors` is the basis of one at a site.

Beside a build: exact codes (`Lasso`, `Greedy` by `Dictionary.coded_by`), dictionaries of other tools (`read_dictionary`, `write_dictionary_as`),
edits (`factor_edit`), and what a factor is: `reach`, `saliency`, `polysemy`, `patterns`, `cofiring`; how good it all is: `evaluation`, `splicing`,
`stability`, `probing`, `described`.
"""

from microtome.factors.aims import Aimed as Aimed
from microtome.factors.basis import Factors as Factors
from microtome.factors.basis import factors_of as factors_of
from microtome.factors.coding import Greedy as Greedy
from microtome.factors.coding import Lasso as Lasso
from microtome.factors.dictionary import Dictionary as Dictionary
from microtome.factors.formats import read_dictionary as read_dictionary
from microtome.factors.formats import write_dictionary_as as write_dictionary_as
from microtome.factors.launch_cluster import OnCluster as OnCluster
from microtome.factors.launch_torchrun import Torchrun as Torchrun
from microtome.factors.learning import Learning as Learning
from microtome.factors.lens import FactorsLens as FactorsLens
from microtome.factors.plan import SOURCE_WORK as SOURCE_WORK
from microtome.factors.plan import Plan as Plan
from microtome.factors.spread import Spread as Spread
from microtome.factors.steering import factor_edit as factor_edit
from microtome.factors.stored import find_dictionary as find_dictionary
from microtome.factors.stored import open_dictionary as open_dictionary
from microtome.factors.stored import save_dictionary as save_dictionary
from microtome.factors.train import train as train
from microtome.factors.variants import BatchTopK as BatchTopK
from microtome.factors.variants import Gated as Gated
from microtome.factors.variants import JumpRelu as JumpRelu
from microtome.factors.variants import Matching as Matching
from microtome.factors.variants import Relu as Relu
from microtome.factors.variants import TopK as TopK
