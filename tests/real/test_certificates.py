"""The packaged models keep every identity of the certificate, in fp32 and, to that dtype's rounding, in bf16."""

from pathlib import Path

import pytest
import torch

from microtome.model import load

pytestmark = pytest.mark.weights


def test_smollm2_in_fp32(smollm2: Path) -> None:
    model = load(smollm2, dtype="float32")
    certificate = model.certificate
    assert certificate.passed
    assert len(certificate.identities) == 20
    assert max(row.worst_error for row in certificate.identities) < 1e-5
    assert (model.shape.layers, model.shape.heads, model.shape.heads_kv, model.shape.d_mlp) == (30, 9, 3, 1536)


def test_smollm2_in_bf16_is_measured_layer_by_layer(smollm2: Path) -> None:
    model = load(smollm2, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert [row.layer for row in model.certificate.dtypes] == list(range(30))
    assert all(0.0 < row.relative_error < 0.2 and row.worst_cosine > 0.9 for row in model.certificate.dtypes)


def test_minilm(minilm: Path) -> None:
    certificate = load(minilm).certificate
    assert certificate.passed
    assert len(certificate.identities) == 17
