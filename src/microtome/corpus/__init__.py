"""Texts and images to windows.

`prepare` reads a source, cuts it into windows and writes the tables `documents` and `windows`; the `Corpus` it returns (or
`open_corpus`, later) hands the windows to a model as batches.
"""

from microtome.corpus.corpus import Corpus as Corpus
from microtome.corpus.corpus import Extras as Extras
from microtome.corpus.corpus import Skipped as Skipped
from microtome.corpus.corpus import open_corpus as open_corpus
from microtome.corpus.documents import Document as Document
from microtome.corpus.documents import Reading as Reading
from microtome.corpus.images import Grid as Grid
from microtome.corpus.images import is_image_source as is_image_source
from microtome.corpus.images import open_images as open_images
from microtome.corpus.images import prepare_images as prepare_images
from microtome.corpus.joined import Joined as Joined
from microtome.corpus.joined import prepare_joined as prepare_joined
from microtome.corpus.preparation import Sink as Sink
from microtome.corpus.preparation import prepare as prepare
from microtome.corpus.prompts import Prompts as Prompts
from microtome.corpus.prompts import prompt_batch as prompt_batch
from microtome.corpus.readers import Source as Source
from microtome.corpus.readers import documents as documents
from microtome.corpus.readers import is_path as is_path
from microtome.corpus.readers import source_name as source_name
from microtome.corpus.windows import Cutting as Cutting
