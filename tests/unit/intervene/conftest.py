"""The toy tokenizers."""

import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.corpus.toy_tokenizers import byte_level, word_piece


@pytest.fixture(scope="session")
def gpt() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture(scope="session")
def bert() -> PreTrainedTokenizerFast:
    return word_piece()
