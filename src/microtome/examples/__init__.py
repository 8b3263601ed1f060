"""Contexts of any basis: where its units are most active, least active, and typically active.

Question: on what text does a unit act? Call `UnitSurvey` as a fold, and `contexts_table` for the rows of an atlas.
`PilotQuantiles`, then `DecileContexts`, show the middle of the distribution.
"""

from microtome.examples.counts import TokenCounts as TokenCounts
from microtome.examples.deciles import DecileContexts as DecileContexts
from microtome.examples.deciles import DecileRecord as DecileRecord
from microtome.examples.deciles import PilotQuantiles as PilotQuantiles
from microtome.examples.deciles import PilotRecord as PilotRecord
from microtome.examples.entries import NO_TOKEN as NO_TOKEN
from microtome.examples.entries import Contexts as Contexts
from microtome.examples.rows import contexts_table as contexts_table
from microtome.examples.rows import histograms_table as histograms_table
from microtome.examples.rows import in_order_of_text as in_order_of_text
from microtome.examples.rows import units_table as units_table
from microtome.examples.survey import UnitSurvey as UnitSurvey
from microtome.examples.survey import UnitSurveyRecord as UnitSurveyRecord
