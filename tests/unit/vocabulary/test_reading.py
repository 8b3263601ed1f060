"""Single directions as a person asks for them: numbers are those of a plain product, and what cannot be read is refused."""

from pathlib import Path

import pytest
import torch

from microtome.core import Refusal
from microtome.model import load, wrap
from microtome.vocabulary import read
from tests.toys import bert, save_checkpoint, toy_decoder


def test_a_weight_vector_is_read_as_it_is_stored_under_the_papers_preset() -> None:
    model = toy_decoder()
    (found,) = read(model, "W_out.1/7", k=4, preset="paper")
    scores = model.weights.get("W_out", 1)[7] @ model.weights.get("W_U")
    best = scores.sort(descending=True, stable=True)
    assert [word.token for word in found.promoted] == best.indices[:4].tolist()
    assert [word.score for word in found.promoted] == pytest.approx(best.values[:4].tolist(), rel=1e-5)
    assert [word.token for word in found.demoted] == scores.sort(stable=True).indices[:4].tolist()
    assert found.control_kind == "mixtures of W_out.1"
    assert found.norm == pytest.approx(float(model.weights.get("W_out", 1)[7].norm()))
    assert str(found).startswith("W_out.1/7  (length ")


def test_a_tokens_own_direction_stands_out_and_a_random_one_does_not() -> None:
    model = toy_decoder()
    token = model.weights.get("W_U")[:, 50]
    towards, anything = read(model, torch.stack([token, torch.randn(24, generator=torch.Generator().manual_seed(1))]), k=3)
    assert towards.promoted[0].token == 50
    assert towards.p[0] < anything.p[0]


def test_a_model_without_a_head_says_where_it_is_read() -> None:
    assert "read in the input embedding W_E" in str(read(wrap(bert().base_model), "W_out.1/7", k=3)[0])


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    model = load(save_checkpoint(tmp_path), dtype="float32")
    with pytest.raises(Refusal, match="k = 0"):
        read(model, "W_out.1/7", k=0)
    with pytest.raises(Refusal, match="directions of width 5: the stream of .* has width 24"):
        read(model, torch.ones(5))
    with pytest.raises(Refusal, match="directions: they hold NaN"):
        read(model, torch.full((24,), torch.nan))
    with torch.no_grad():
        model.weights.get("W_out", 1)[3, 0] = torch.nan
    with pytest.raises(Refusal, match=r"weight vector W_out.1/7: it, or another vector of its layer, holds NaN"):
        read(model, "W_out.1/7", preset="paper")
