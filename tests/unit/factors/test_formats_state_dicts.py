"""Dictionaries of dictionary_learning and sparsify, laid out by hand as these tools save them, are read with their codes; pickles are not run."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.formats import read_dictionary
from tests.unit.factors.test_formats import (
    B_DEC,
    B_ENC,
    DEC,
    ENC,
    FLOOR,
    GATE,
    MAG,
    UNIT,
    UNITS,
    WIDTH,
    K,
    R,
    X,
    drawn,
    gated_codes,
    kept,
    require,
)

POST = Site("resid_post", 8)


def save_state(folder: Path, tensors: Any, dict_class: str | None, **trainer: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "ae.pt")
    told = {"layer": 8, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid_post_layer_8", **trainer}
    if dict_class is not None:
        told["dict_class"] = dict_class
    (folder / "config.json").write_text(json.dumps({"trainer": told, "buffer": {"ctx_len": 128, "io": "out"}}))
    return folder


def linear(bias: str, directions: Tensor = UNIT) -> dict[str, Tensor]:
    return {"encoder.weight": ENC.T, "encoder.bias": B_ENC, "decoder.weight": directions.T, bias: B_DEC}


def matrices(directions: Tensor = UNIT) -> dict[str, Tensor]:
    return {"W_enc": ENC, "b_enc": B_ENC, "W_dec": directions, "b_dec": B_DEC}


def counted(threshold: float = 0.7) -> dict[str, Tensor]:
    return {"k": torch.tensor(K, dtype=torch.int), "threshold": torch.tensor(threshold)}


def above(z: Tensor, floor: Tensor | float) -> Tensor:
    return z.relu() * (z.relu() > floor)


CENTRED = (X - B_DEC) @ ENC + B_ENC
GATED = {
    "encoder.weight": ENC.T,
    "decoder.weight": UNIT.T,
    "decoder_bias": B_DEC,
    "r_mag": R,
    "gate_bias": GATE,
    "mag_bias": MAG,
}
CASES = {
    "AutoEncoder": (linear("bias"), CENTRED.relu()),
    "AutoEncoderNew": (linear("decoder.bias"), (X @ ENC + B_ENC).relu()),
    "GatedAutoEncoder": (GATED, gated_codes(X - B_DEC)),
    "JumpReluAutoEncoder": (matrices() | {"threshold": FLOOR}, above(X @ ENC + B_ENC, FLOOR)),
    "AutoEncoderTopK": (linear("b_dec") | counted(), kept(CENTRED)),
    "BatchTopKSAE": (linear("b_dec") | counted(), above(CENTRED, 0.7)),
    "MatryoshkaBatchTopKSAE": (matrices() | counted() | {"group_sizes": torch.tensor([4, 6])}, above(CENTRED, 0.7)),
}


@pytest.mark.parametrize("dict_class", CASES)
def test_each_class_of_dictionary_learning_has_its_codes(tmp_path: Path, dict_class: str) -> None:
    tensors, codes = CASES[dict_class]
    found = read_dictionary(save_state(tmp_path / "trainer_0", tensors, dict_class))
    require(found, codes, codes @ UNIT + B_DEC)
    assert (found.reads, found.name, found.learnt["architecture"]) == ((POST,), "trainer_0", dict_class)
    assert found.learnt["model_name"] == "EleutherAI/pythia-70m"
    assert read_dictionary(tmp_path / "trainer_0" / "ae.pt").fingerprint == found.fingerprint


@pytest.mark.parametrize("dict_class", CASES)
def test_classes_are_known_by_their_tensors_where_settings_are_lost(tmp_path: Path, dict_class: str) -> None:
    tensors, codes = CASES[dict_class]
    (save_state(tmp_path, tensors, dict_class) / "config.json").unlink()
    if dict_class in ("AutoEncoderTopK", "BatchTopKSAE"):  # their tensors are the same
        with pytest.raises(Refusal, match=r'does not say of which class; write \{"trainer": \{"dict_class": its class\}\}'):
            read_dictionary(tmp_path, site=POST)
        return
    require(read_dictionary(tmp_path, site=POST), codes, codes @ UNIT + B_DEC)
    with pytest.raises(Refusal, match="do not say at which site"):
        read_dictionary(tmp_path)


def test_what_was_never_kept_as_threshold_or_number_has_its_place(tmp_path: Path) -> None:
    found = read_dictionary(save_state(tmp_path / "a", linear("b_dec") | counted(-1.0), "BatchTopKSAE"))
    require(found, CENTRED.relu(), CENTRED.relu() @ UNIT + B_DEC)
    found = read_dictionary(save_state(tmp_path / "b", linear("b_dec"), "AutoEncoderTopK", k=K))
    require(found, kept(CENTRED), kept(CENTRED) @ UNIT + B_DEC)
    found = read_dictionary(save_state(tmp_path / "c", linear("bias", DEC), "AutoEncoder"))
    require(found, CENTRED.relu(), CENTRED.relu() @ DEC + B_DEC, DEC.norm(dim=1))
    for k in (0, 2.5, None):
        with pytest.raises(Refusal, match="no whole number above 0"):
            read_dictionary(save_state(tmp_path / "d", linear("b_dec"), "AutoEncoderTopK", k=k))


@pytest.mark.parametrize(
    ("tensors", "dict_class", "why"),
    [
        (linear("bias"), "MyAutoEncoder", "its class MyAutoEncoder is none of AutoEncoder, AutoEncoderNew"),
        ({"x": B_DEC}, "AutoEncoder", "tensor x in .*: nothing is known"),
        (linear("b_dec"), "AutoEncoder", "tensor bias in .*: it is missing"),
        (linear("bias", DEC[:4]), "AutoEncoder", r"tensor decoder.weight in .*: it is of shape \[6, 4\], and \[6, 10\] fits"),
        (linear("bias") | {"bias": B_DEC / 0}, "AutoEncoder", "tensor bias in .*: some numbers are not finite"),
        ([B_DEC], "AutoEncoder", "it is no state dict"),
        ({"step": 3}, "AutoEncoder", "it is no state dict"),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(tmp_path: Path, tensors: Any, dict_class: str, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        read_dictionary(save_state(tmp_path, tensors, dict_class))


def test_states_of_a_module_s_input_have_no_site_of_that_name(tmp_path: Path) -> None:
    folder = save_state(tmp_path, linear("bias"), "AutoEncoder")
    (folder / "config.json").write_text(json.dumps({"trainer": {"submodule_name": "mlp_out_layer_3"}, "buffer": {"io": "in"}}))
    with pytest.raises(Refusal, match="do not say at which site"):
        read_dictionary(folder)
    assert read_dictionary(folder, site=Site("mlp_in", 3)).reads == (Site("mlp_in", 3),)


class Code:
    """Unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = save_state(tmp_path / "a", {"bias": Code(mark)}, "AutoEncoder")
    with pytest.raises(Refusal, match=r"ae\.pt: it holds objects that run code when they are opened; save its state dict"):
        read_dictionary(folder)
    (folder / "ae.pt").write_bytes(pickle.dumps({"bias": Code(mark)}))
    with pytest.raises(Refusal, match=r"ae\.pt: the file is damaged, or is none that torch.save writes"):
        read_dictionary(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Code(mark)))
    assert mark.exists()  # so it would have been seen


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    folder = save_state(tmp_path, linear("bias"), "AutoEncoder")
    whole = (folder / "ae.pt").read_bytes()
    for part in (whole[: len(whole) // 2], whole[:-30], b""):
        (folder / "ae.pt").write_bytes(part)
        with pytest.raises(Refusal, match="the file is damaged"):
            read_dictionary(folder)


def save_sparsify(folder: Path, tensors: dict[str, Tensor] | None = None, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if tensors is None:
        tensors = {"encoder.weight": ENC.T, "encoder.bias": B_ENC, "W_dec": UNIT, "b_dec": B_DEC}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    told = {"activation": "topk", "expansion_factor": 32, "num_latents": UNITS, "k": K, "transcode": False, "d_in": WIDTH}
    (folder / "cfg.json").write_text(json.dumps({**told, "multi_topk": False, "skip_connection": False, **settings}))
    return folder


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("layers.6", Site("resid_post", 6)),
        ("layers.6.mlp", Site("mlp_out", 6)),
        ("h.3", Site("resid_post", 3)),
        ("model.layers.2.self_attn", Site("attn_out", 2)),
    ],
)
def test_sparsify_names_the_module_whose_output_it_codes(tmp_path: Path, hook: str, site: Site) -> None:
    found = read_dictionary(save_sparsify(tmp_path / hook))
    require(found, kept(CENTRED), kept(CENTRED) @ UNIT + B_DEC)
    assert (found.reads, found.name) == ((site,), hook.replace(".", "-"))


def test_a_transcoder_of_sparsify_is_of_a_module_s_input_and_output(tmp_path: Path) -> None:
    skip = drawn(WIDTH, WIDTH, seed=9)
    tensors = {"encoder.weight": ENC.T, "encoder.bias": B_ENC, "W_dec": DEC, "b_dec": B_DEC, "W_skip": skip}
    found = read_dictionary(save_sparsify(tmp_path / "layers.6.mlp", tensors, transcode=True, skip_connection=True))
    codes = kept(X @ ENC + B_ENC)
    require(found, codes, codes @ DEC + B_DEC + X @ skip.T)
    assert (found.reads, found.writes) == ((Site("mlp_in", 6),), (Site("mlp_out", 6),))
    with pytest.raises(Refusal, match="a linear part without being a transcoder"):
        read_dictionary(save_sparsify(tmp_path / "layers.7.mlp", tensors))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"activation": "groupmax"}, "its activation groupmax keeps one code of each group"),
        ({"signed": True}, "its codes have signs"),
        ({"k": 0}, "it is 0, and no whole number above 0"),
    ],
)
def test_what_sparsify_does_otherwise_is_refused(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(Refusal, match=why):
        read_dictionary(save_sparsify(tmp_path / "layers.6", **settings))


def test_a_folder_of_hookpoints_is_refused_with_their_names(tmp_path: Path) -> None:
    for layer in range(5):
        save_sparsify(tmp_path / f"layers.{layer}")
    with pytest.raises(Refusal, match=r"name one of its folders, as layers\.0, layers\.1, layers\.2$"):
        read_dictionary(tmp_path)
    with pytest.raises(Refusal, match="its files call it 'best'"):
        read_dictionary(save_sparsify(tmp_path / "best"))
