"""The command line: one verb per job, thin over the Python functions of the same names.

Nothing is computed here. A `Refusal` becomes one message and exit status 2; being interrupted is no error of ours.
"""

from microtome.cli.main import main as main
