"""Models whose differences are looked at: one, and what became of it."""

from pathlib import Path

import pytest
import torch

from tests import toys


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.save_checkpoint(tmp_path_factory.mktemp("diff") / "base")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With W_V of layer 1 changed; saved without its tokenizer, as training often does."""
    folder = tmp_path_factory.mktemp("diff") / "tuned"
    module = toys.llama()
    torch.manual_seed(1)
    with torch.no_grad():
        module.get_parameter("model.layers.1.self_attn.v_proj.weight").add_(torch.randn(16, 24))
    module.save_pretrained(folder)
    return folder
