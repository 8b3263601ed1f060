"""The toy tokenizers, and a sink that writes an atlas folder."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from microtome.corpus import Sink
from microtome.store import stream_table
from tests.unit.corpus.toy_tokenizers import byte_level, metaspace, word_piece

_KINDS = {"byte_level": byte_level, "word_piece": word_piece, "metaspace": metaspace}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {name: make() for name, make in _KINDS.items()}


@pytest.fixture(params=sorted(_KINDS))
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return tokenizers[request.param]


@pytest.fixture
def gpt(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return tokenizers["byte_level"]


@pytest.fixture
def bert(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return tokenizers["word_piece"]


@pytest.fixture
def llama(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return tokenizers["metaspace"]


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return tmp_path / "atlas"


@pytest.fixture
def sink(atlas: Path) -> Sink:
    return lambda table, batches: stream_table(atlas, table, "corpus.main", batches)
