"""Where units of work run. One process for now; worker processes and clusters follow the same `Work` protocol."""

from microtome.engine.local import Parts as Parts
from microtome.engine.local import States as States
from microtome.engine.local import Work as Work
from microtome.engine.local import run as run
from microtome.engine.tree import Node as Node
from microtome.engine.tree import root as root
