"""Dictionaries in the formats of other tools, read and written without those tools.

`read_dictionary` knows a layout by its files, `write_dictionary_as` writes one where it can say all that decides about codes; `neuronpedia` writes
batches of features from records. A new format is a module with a `FORMAT`, and a row in `exchange`. Our own file is the business of `stored`.
"""

from microtome.factors.formats.exchange import FORMATS as FORMATS
from microtome.factors.formats.exchange import read_dictionary as read_dictionary
from microtome.factors.formats.exchange import write_dictionary_as as write_dictionary_as
