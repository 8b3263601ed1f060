"""Where units of work run: in this process, in others of this machine, on a cluster. The same bytes wherever that is."""

from microtome.engine.cluster import Cluster as Cluster
from microtome.engine.crew import Crew as Crew
from microtome.engine.crew import Engine as Engine
from microtome.engine.crew import Here as Here
from microtome.engine.forecast import Forecast as Forecast
from microtome.engine.forecast import Rates as Rates
from microtome.engine.forecast import forecast as forecast
from microtome.engine.processes import Processes as Processes
from microtome.engine.running import HERE as HERE
from microtome.engine.running import run as run
from microtome.engine.schedule import Schedule as Schedule
from microtome.engine.tree import Node as Node
from microtome.engine.tree import root as root
from microtome.engine.work import Advance as Advance
from microtome.engine.work import Parts as Parts
from microtome.engine.work import Recipe as Recipe
from microtome.engine.work import States as States
from microtome.engine.work import Subject as Subject
from microtome.engine.work import Work as Work
