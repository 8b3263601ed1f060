"""Automatic explanations: what does a unit look for, said so that somebody else can predict it?

Papers: Bills et al. 2023 (explain, simulate, score), Foote et al. 2023 (neuron graphs), Paulo et al. 2024 (detection, fuzzing). For units of
any basis: `excerpt_records` finds their texts (by the fold `ExcerptSurvey`), `explain_ends` explains them and says how well. One by one, `.examples`
of a record are those of one unit. An explainer (`TableExplainer`,
`GraphExplainer`, `LanguageExplainer`) makes an explanation of them, a simulator (`ByRule`, `LanguageSimulator`) predicts from it, `scores` says
how well, and `controlled` how well explanations of other units do.
"""

from microtome.explain.ablation import Ablated as Ablated
from microtome.explain.ablation import ablation_score as ablation_score
from microtome.explain.ends import Explained as Explained
from microtome.explain.ends import both_ends as both_ends
from microtome.explain.ends import excerpt_records as excerpt_records
from microtome.explain.ends import explain_ends as explain_ends
from microtome.explain.examples import NOTHING as NOTHING
from microtome.explain.examples import SCALE as SCALE
from microtome.explain.examples import End as End
from microtome.explain.examples import Examples as Examples
from microtome.explain.examples import Excerpts as Excerpts
from microtome.explain.excerpts import BILLS as BILLS
from microtome.explain.excerpts import ExcerptRecord as ExcerptRecord
from microtome.explain.excerpts import ExcerptSurvey as ExcerptSurvey
from microtome.explain.excerpts import Selection as Selection
from microtome.explain.graphs import FOOTE as FOOTE
from microtome.explain.graphs import Activation as Activation
from microtome.explain.graphs import GraphExplainer as GraphExplainer
from microtome.explain.graphs import Growing as Growing
from microtome.explain.graphs import NeuronGraph as NeuronGraph
from microtome.explain.graphs import grown as grown
from microtome.explain.judging import Judge as Judge
from microtome.explain.judging import Judged as Judged
from microtome.explain.judging import Questions as Questions
from microtome.explain.judging import RuleJudge as RuleJudge
from microtome.explain.judging import detection as detection
from microtome.explain.judging import fuzzing as fuzzing
from microtome.explain.language import Answer as Answer
from microtome.explain.language import Complete as Complete
from microtome.explain.language import LanguageExplainer as LanguageExplainer
from microtome.explain.language import LanguageSimulator as LanguageSimulator
from microtome.explain.protocols import ByRule as ByRule
from microtome.explain.protocols import Explainer as Explainer
from microtome.explain.protocols import Explanation as Explanation
from microtome.explain.protocols import Names as Names
from microtome.explain.protocols import Rule as Rule
from microtome.explain.protocols import Simulator as Simulator
from microtome.explain.scoring import Controlled as Controlled
from microtome.explain.scoring import Firing as Firing
from microtome.explain.scoring import Scores as Scores
from microtome.explain.scoring import calibrated as calibrated
from microtome.explain.scoring import controlled as controlled
from microtome.explain.scoring import firing as firing
from microtome.explain.scoring import scores as scores
from microtome.explain.substitutes import Substitutes as Substitutes
from microtome.explain.substitutes import near as near
from microtome.explain.substitutes import seen_there as seen_there
from microtome.explain.tables import RunTable as RunTable
from microtome.explain.tables import TableExplainer as TableExplainer
