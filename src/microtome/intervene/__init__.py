"""Interventions: what changes when a tensor inside the model, or a weight, is changed?

Make `Edit` values (a site, a change, units, tokens), run the model inside `edited(model, batch, edits)`, and compare what comes out:
`answers` to a question, `predictions` of the next token, `state_change` for any model, `generate` for text. Weights are changed inside
`reweighted`. `integrated_gradients`, `gradient_times_activation` and `attribution_patching` say to first order, or along a path, what each
unit is worth; `causal_trace` where an answer is restored.
"""

from microtome.intervene.answers import Question as Question
from microtome.intervene.answers import answers as answers
from microtome.intervene.answers import asked as asked
from microtome.intervene.answers import single_token as single_token
from microtome.intervene.changes import Add as Add
from microtome.intervene.changes import Change as Change
from microtome.intervene.changes import Chosen as Chosen
from microtome.intervene.changes import Clamp as Clamp
from microtome.intervene.changes import Noise as Noise
from microtome.intervene.changes import ProjectOut as ProjectOut
from microtome.intervene.changes import Resample as Resample
from microtome.intervene.changes import Scale as Scale
from microtome.intervene.changes import Set as Set
from microtome.intervene.edits import Edit as Edit
from microtome.intervene.edits import edited as edited
from microtome.intervene.edits import unit_edit as unit_edit
from microtome.intervene.effects import Predictions as Predictions
from microtome.intervene.effects import final_states as final_states
from microtome.intervene.effects import predictions as predictions
from microtome.intervene.effects import state_change as state_change
from microtome.intervene.generation import GREEDY as GREEDY
from microtome.intervene.generation import Sampling as Sampling
from microtome.intervene.generation import Written as Written
from microtome.intervene.generation import generate as generate
from microtome.intervene.generation import text_loss as text_loss
from microtome.intervene.gradients import attribution_patching as attribution_patching
from microtome.intervene.gradients import gradient_times_activation as gradient_times_activation
from microtome.intervene.gradients import gradients_at as gradients_at
from microtome.intervene.integrated import Integrated as Integrated
from microtome.intervene.integrated import Path as Path
from microtome.intervene.integrated import integrated_gradients as integrated_gradients
from microtome.intervene.tokens import EVERY as EVERY
from microtome.intervene.tokens import At as At
from microtome.intervene.tokens import Every as Every
from microtome.intervene.tokens import Generated as Generated
from microtome.intervene.tokens import Labelled as Labelled
from microtome.intervene.tokens import Masked as Masked
from microtome.intervene.tokens import OfRole as OfRole
from microtome.intervene.tokens import Prompt as Prompt
from microtome.intervene.tokens import Tokens as Tokens
from microtome.intervene.tracing import Blur as Blur
from microtome.intervene.tracing import Trace as Trace
from microtome.intervene.tracing import causal_trace as causal_trace
from microtome.intervene.tracing import subject_deviation as subject_deviation
from microtome.intervene.weights import RankOne as RankOne
from microtome.intervene.weights import SetVector as SetVector
from microtome.intervene.weights import WeightEdit as WeightEdit
from microtome.intervene.weights import reweighted as reweighted
