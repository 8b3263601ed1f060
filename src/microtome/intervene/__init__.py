"""Interventions: what changes when a tensor inside the model is changed?

Make `Edit` values, run the model inside `edited(model, batch, edits)`, and compare what comes out, clean against edited: `predictions`
for models that predict the next token, `state_change` for any.
"""

from microtome.intervene.edits import Add as Add
from microtome.intervene.edits import Edit as Edit
from microtome.intervene.edits import edited as edited
from microtome.intervene.effects import Predictions as Predictions
from microtome.intervene.effects import final_states as final_states
from microtome.intervene.effects import predictions as predictions
from microtome.intervene.effects import state_change as state_change
