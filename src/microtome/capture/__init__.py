"""Plan stages, run them: what the lenses need from one pass over a corpus."""

from microtome.capture.execution import execution_class as execution_class
from microtome.capture.execution import tokens_per_batch as tokens_per_batch
from microtome.capture.folds import SiteGram as SiteGram
from microtome.capture.folds import sampled as sampled
from microtome.capture.lens import MAIN as MAIN
from microtome.capture.lens import MASKED as MASKED
from microtome.capture.lens import PILOT as PILOT
from microtome.capture.lens import Depth as Depth
from microtome.capture.lens import Lens as Lens
from microtome.capture.lens import Results as Results
from microtome.capture.lens import Run as Run
from microtome.capture.lens import Stage as Stage
from microtome.capture.material import Material as Material
from microtome.capture.material import material_of as material_of
from microtome.capture.material import writing_to as writing_to
from microtome.capture.progress import Progress as Progress
from microtome.capture.progress import Silent as Silent
from microtome.capture.run import fold_batch as fold_batch
from microtome.capture.run import run_stages as run_stages
