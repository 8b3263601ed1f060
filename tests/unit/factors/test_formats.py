"""Folders of other tools, laid out by hand as they document them, are read with their codes; what cannot be said is refused by its name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.dictionary import Dictionary
from microtome.factors.formats import read_dictionary
from tests.toys import toy_decoder

WIDTH, UNITS, K = 6, 10, 3
POST = Site("resid_post", 4)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = 2 * drawn(40, WIDTH, seed=0)
ENC, DEC = drawn(WIDTH, UNITS, seed=1), drawn(UNITS, WIDTH, seed=2)
UNIT = torch.nn.functional.normalize(DEC, dim=1)
B_ENC, B_DEC, FLOOR = drawn(UNITS, seed=3), drawn(WIDTH, seed=4), drawn(UNITS, seed=5).abs()
GATE, MAG, R = drawn(UNITS, seed=6), drawn(UNITS, seed=7), 0.3 * drawn(UNITS, seed=8)


def kept(z: Tensor, k: int = K) -> Tensor:
    value = z.sort(dim=-1, descending=True).values[:, k - 1 : k]
    return torch.where(z >= value, z.relu(), 0.0)


def require(dictionary: Dictionary, codes: Tensor, made: Tensor, lengths: Tensor | None = None) -> None:
    """The dictionary's codes are these (times lengths that went into them), and so is what it makes of them."""
    assert 0.05 < float((codes > 0).float().mean()) < 0.95
    found = dictionary.encode({dictionary.reads[0]: X})
    torch.testing.assert_close(found, codes if lengths is None else codes * lengths, atol=1e-5, rtol=1e-5)
    again = dictionary.decode(found, dictionary.writes[0], X if dictionary.skip is not None else None)
    torch.testing.assert_close(again, made, atol=1e-5, rtol=1e-5)


def save_saelens(folder: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))
    return folder


def new(architecture: str, **settings: Any) -> dict[str, Any]:
    hooks = {"hook_name": "blocks.4.hook_resid_post"}
    if "transcoder" in architecture:
        hooks = {"hook_name": "blocks.4.ln2.hook_normalized", "hook_name_out": "blocks.4.hook_mlp_out"}
    plain = {"d_in": WIDTH, "d_sae": UNITS, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}
    metadata = {"sae_lens_version": "6.2.0", "model_name": "gpt2-small", **hooks, **settings.pop("metadata", {})}
    return {"architecture": architecture, "apply_b_dec_to_input": True, **plain, **settings, "metadata": metadata}


def four(directions: Tensor = UNIT) -> dict[str, Tensor]:
    return {"W_enc": ENC, "b_enc": B_ENC, "W_dec": directions, "b_dec": B_DEC}


def gated(directions: Tensor = UNIT) -> dict[str, Tensor]:
    return {"W_enc": ENC, "b_gate": GATE, "b_mag": MAG, "r_mag": R, "W_dec": directions, "b_dec": B_DEC}


def gated_codes(x: Tensor) -> Tensor:
    """As two branches."""
    return ((x @ ENC + GATE) > 0) * (x @ (ENC * R.exp()) + MAG).relu()


def test_a_standard_autoencoder_of_saelens_has_its_codes(tmp_path: Path) -> None:
    codes = ((X - B_DEC) @ ENC + B_ENC).relu()
    found = read_dictionary(save_saelens(tmp_path / "a b", four(), **new("standard")))
    require(found, codes, codes @ UNIT + B_DEC)
    assert (found.reads, found.writes, found.name) == ((POST,), (POST,), "a-b")
    assert found.learnt == {"format": "saelens", "architecture": "standard", "model_name": "gpt2-small"}
    assert not found.model
    plain = read_dictionary(save_saelens(tmp_path / "c", four(), **new("standard", apply_b_dec_to_input=False)), name="mine")
    codes = (X @ ENC + B_ENC).relu()
    require(plain, codes, codes @ UNIT + B_DEC)
    assert plain.name == "mine"


def test_layouts_from_before_metadata_are_read(tmp_path: Path) -> None:
    old = {"hook_point": "blocks.4.hook_resid_post", "hook_point_layer": 4, "model_name": "gpt2", "d_in": WIDTH}
    codes = ((X - B_DEC) @ ENC + B_ENC).relu()
    require(read_dictionary(save_saelens(tmp_path / "a", four(), **old)), codes, codes @ UNIT + B_DEC)
    top = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False}
    codes = kept((X - B_DEC) @ ENC + B_ENC)
    found = read_dictionary(save_saelens(tmp_path / "b", four(), **old, **top))
    require(found, codes, codes @ UNIT + B_DEC)
    ones = {"scaling_factor": torch.ones(UNITS)}
    found = read_dictionary(save_saelens(tmp_path / "c", four() | ones, **old, **top))
    require(found, codes, codes @ UNIT + B_DEC)
    tuned = save_saelens(tmp_path / "d", four() | {"scaling_factor": FLOOR + 1}, **old, finetuning_scaling_factor=True)
    codes = ((X - B_DEC) @ ENC + B_ENC).relu()
    require(read_dictionary(tuned), codes, (codes * (FLOOR + 1)) @ UNIT + B_DEC, FLOOR + 1)
    with pytest.raises(Refusal, match="the settings say that it is not used"):
        read_dictionary(save_saelens(tmp_path / "d", four() | {"scaling_factor": FLOOR + 1}, **old))


def test_coarse_numbers_are_read_as_they_are_and_hooks_of_hugging_face_name_sites(tmp_path: Path) -> None:
    coarse = {name: tensor.bfloat16() for name, tensor in four(DEC).items()}
    enc, bias, dec, offset = (tensor.float() for tensor in coarse.values())
    codes = ((X - offset) @ enc + bias).relu()
    hooks = {"hook_name": None, "hf_hook_name": "model.layers.4.output"}
    found = read_dictionary(save_saelens(tmp_path, coarse, **new("standard", metadata=hooks)))
    require(found, codes, codes @ dec + offset, dec.norm(dim=1))
    assert found.reads == (POST,)
    assert found.directions.dtype == torch.float32


@pytest.mark.parametrize("directions", [UNIT, DEC])
def test_gated_and_jumprelu_autoencoders_are_thresholds(tmp_path: Path, directions: Tensor) -> None:
    lengths = directions.norm(dim=1)
    scaled = None if directions is UNIT else lengths
    codes = gated_codes(X - B_DEC)
    found = read_dictionary(save_saelens(tmp_path / "a", gated(directions), **new("gated")))
    require(found, codes, codes @ directions + B_DEC, scaled)
    z = (X - B_DEC) @ ENC + B_ENC
    codes = z.relu() * (z > FLOOR)
    jump = four(directions) | {"threshold": FLOOR}
    for architecture in ("jumprelu", "batchtopk", "matryoshka_batchtopk"):
        found = read_dictionary(save_saelens(tmp_path / architecture, jump, **new(architecture)))
        require(found, codes, codes @ directions + B_DEC, scaled)
        torch.testing.assert_close(found.directions.norm(dim=2), torch.ones(1, UNITS))
        assert ("lengths" in found.learnt) == (directions is DEC)
    below = read_dictionary(save_saelens(tmp_path / "b", four() | {"threshold": -FLOOR}, **new("jumprelu")))
    require(below, z.relu(), z.relu() @ UNIT + B_DEC)


def test_thresholds_of_a_checkpoint_in_training_are_of_stretched_codes(tmp_path: Path) -> None:
    floor, lengths = torch.tensor(0.8, dtype=torch.float64), DEC.norm(dim=1)
    z = ((X - B_DEC) @ ENC + B_ENC) * lengths
    codes = z.relu() * (z > 0.8)
    tensors = four(DEC) | {"topk_threshold": floor}
    found = read_dictionary(save_saelens(tmp_path, tensors, **new("batchtopk", k=2.5, rescale_acts_by_decoder_norm=True)))
    require(found, codes, codes @ UNIT + B_DEC)
    learning = save_saelens(tmp_path / "b", four() | {"log_threshold": FLOOR.log()}, **new("jumprelu"))
    z = (X - B_DEC) @ ENC + B_ENC
    require(read_dictionary(learning), z.relu() * (z > FLOOR), (z.relu() * (z > FLOOR)) @ UNIT + B_DEC)


def test_the_largest_stay_the_largest_whatever_directions_are_long(tmp_path: Path) -> None:
    z = (X - B_DEC) @ ENC + B_ENC
    found = read_dictionary(save_saelens(tmp_path / "a", four(DEC), **new("topk", k=K)))
    require(found, kept(z), kept(z) @ DEC + B_DEC)
    assert "keep their lengths" in str(found.learnt["lengths"])
    torch.testing.assert_close(found.directions[0], DEC)
    lengths = DEC.norm(dim=1)
    stretched = kept(z * lengths)
    found = read_dictionary(save_saelens(tmp_path / "b", four(DEC), **new("topk", k=K, rescale_acts_by_decoder_norm=True)))
    require(found, stretched, stretched @ UNIT + B_DEC)
    assert "lengths" not in found.learnt
    found = read_dictionary(save_saelens(tmp_path / "c", four(0.1 * UNIT), **new("topk", k=K)))
    require(found, kept(z), kept(z) @ (0.1 * UNIT) + B_DEC)  # one length of all is a size, and codes stay
    torch.testing.assert_close(found.directions[0], UNIT)
    assert float(found.scaling.size[0]) == pytest.approx(0.1)


def test_a_direction_of_zeros_is_no_division_by_zero(tmp_path: Path) -> None:
    directions = DEC.clone()
    directions[2] = 0
    z = ((X - B_DEC) @ ENC + B_ENC).relu()
    lengths = torch.where(directions.norm(dim=1) > 0, directions.norm(dim=1), 1)
    found = read_dictionary(save_saelens(tmp_path, four(directions), **new("standard")))
    require(found, z, z @ directions + B_DEC, lengths)


@pytest.mark.parametrize("architecture", ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"])
def test_transcoders_of_saelens_read_one_place_and_write_another(tmp_path: Path, architecture: str) -> None:
    z, skip = X @ ENC + B_ENC, drawn(WIDTH, WIDTH, seed=9)
    codes = z.relu() * (z > FLOOR) if "jumprelu" in architecture else z.relu()
    tensors = four(DEC) | ({"threshold": FLOOR} if "jumprelu" in architecture else {})
    made = codes @ DEC + B_DEC
    if "skip" in architecture:
        tensors, made = tensors | {"W_skip": skip}, made + X @ skip.T
    found = read_dictionary(save_saelens(tmp_path, tensors, **new(architecture, apply_b_dec_to_input=False)))
    assert (found.reads, found.writes) == ((Site("mlp_in", 4),), (Site("mlp_out_post", 4),))
    require(found, codes, made, DEC.norm(dim=1))
    other = read_dictionary(tmp_path, site=Site("resid_mid", 1), writes=Site("mlp_out", 1))
    assert (other.reads, other.writes) == ((Site("resid_mid", 1),), (Site("mlp_out", 1),))


def test_a_transcoder_may_write_another_width(tmp_path: Path) -> None:
    wide, offset = drawn(UNITS, 8, seed=10), drawn(8, seed=11)
    tensors = {"W_enc": ENC, "b_enc": B_ENC, "W_dec": wide, "b_dec": offset}
    codes = (X @ ENC + B_ENC).relu()
    require(
        read_dictionary(save_saelens(tmp_path, tensors, **new("transcoder", d_out=8))),
        codes,
        codes @ wide + offset,
        wide.norm(dim=1),
    )


def test_a_multiplication_of_states_is_read_where_its_number_is_there(tmp_path: Path) -> None:
    folder = save_saelens(tmp_path, four(DEC), **new("standard", normalize_activations="expected_average_only_in"))
    with pytest.raises(
        Refusal, match=r"it is not in the folder; write \{\"scaling_factor\": that number\} into activation_scaler"
    ):
        read_dictionary(folder)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    codes = ((0.25 * X - B_DEC) @ ENC + B_ENC).relu()
    require(read_dictionary(folder), codes, (codes @ DEC + B_DEC) / 0.25, DEC.norm(dim=1) / 0.25)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null}')
    with pytest.raises(Refusal, match="it is None, and no number above 0"):
        read_dictionary(folder)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"normalize_activations": "layer_norm"}, "normalize_activations is layer_norm: each state is normed"),
        ({"normalize_activations": "constant_norm_rescale"}, "constant_norm_rescale: each state is divided by its own length"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening: states are multiplied by a matrix"),
        ({"architecture": "temporal"}, "its architecture temporal is none of standard, gated"),
        ({"activation_fn": "tanh-relu"}, "its activation function tanh-relu"),
        ({"metadata": {"hook_head_index": 3}}, "it is of head 3 alone"),
        ({"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}}, "TransformerLens had changed"),
        ({"metadata": {"hook_name": "blocks.4.hook_mlp_in"}}, "it is the norm's input in TransformerLens 2"),
        ({"metadata": {"hook_name": "somewhere"}}, "its files call it 'somewhere': no tool known here writes it so; give site="),
        ({"metadata": {"hook_name": None}}, "do not say at which site its states were taken; give site="),
        ({"architecture": "topk"}, "it is None, and no whole number above 0"),
        ({"architecture": "topk", "k": "many"}, "it is many, and no whole number"),
        ({"architecture": "jumprelu"}, "tensor threshold in .*: it is missing; there are W_dec, W_enc"),
        ({"architecture": "gated"}, "tensor b_enc in .*: nothing is known here about what it does"),
    ],
)  # fmt: skip
def test_what_a_dictionary_cannot_say_is_refused_by_its_name(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    told = new("standard", **{name: value for name, value in settings.items() if name != "architecture"})
    folder = save_saelens(tmp_path, four(), **told | {k: v for k, v in settings.items() if k == "architecture"})
    with pytest.raises(Refusal, match=why):
        read_dictionary(folder)


def test_a_site_that_is_given_stands_above_the_files(tmp_path: Path) -> None:
    folder = save_saelens(tmp_path, four(), **new("standard", metadata={"hook_name": "somewhere"}))
    assert read_dictionary(folder, site=Site("resid_mid", 2)).reads == (Site("resid_mid", 2),)
    with pytest.raises(Refusal, match="it is no transcoder"):
        read_dictionary(folder, site=POST, writes=POST)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"W_enc": torch.full_like(ENC, torch.nan)}, "tensor W_enc in .*: some numbers are not finite"),
        ({"b_dec": drawn(WIDTH + 1, seed=1)}, r"tensor b_dec in .*: it is of shape \[7\], and \[6\] fits the others"),
        ({"W_dec": UNIT.T}, r"tensor W_dec in .*: it is of shape \[6, 10\], and \[10, 6\] fits the others"),
        ({"W_enc": drawn(0, 0, seed=1)}, r"tensor W_enc .* \[any, any\]"),
        ({"b_enc": None}, "tensor b_enc in .*: it is missing; there are W_dec, W_enc, b_dec"),
        ({"W_extra": ENC.clone()}, "tensor W_extra in .*: nothing is known"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Tensor | None], why: str) -> None:
    tensors = {name: tensor for name, tensor in {**four(), **change}.items() if tensor is not None}
    with pytest.raises(Refusal, match=why):
        read_dictionary(save_saelens(tmp_path, tensors, **new("standard")))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = save_saelens(tmp_path / "a", four(), **new("standard"))
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    for part in (whole[:-7], whole[:20], b""):
        weights.write_bytes(part)
        with pytest.raises(Refusal, match="the file is damaged; copy or download it again"):
            read_dictionary(folder)
    weights.write_bytes(whole)
    for text in ("{", "[1]", "\udce9"):
        (folder / "cfg.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(Refusal, match=r"cfg\.json: (the file is not JSON|it holds no settings)"):
            read_dictionary(folder)
    with pytest.raises(Refusal, match="there is no such file or folder"):
        read_dictionary(tmp_path / "nowhere")
    with pytest.raises(Refusal, match="no dictionary of a known layout; name one of its folders, as a"):
        read_dictionary(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(Refusal, match=r"name a folder with one of: cfg\.json and sae_weights\.safetensors \(saelens\); ae\.pt"):
        read_dictionary(tmp_path / "b")


def save_gemma(folder: Path, **change: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = {name: tensor.numpy() for name, tensor in four(DEC).items()} | {"threshold": FLOOR.numpy()}
    np.savez(folder / "params.npz", allow_pickle=True, **tensors | change)
    return folder


def test_gemma_scope_is_read_and_its_folders_name_the_site(tmp_path: Path) -> None:
    z = X @ ENC + B_ENC
    codes = z.relu() * (z > FLOOR)
    below = Path("layer_20/width_16k/average_l0_71")
    found = read_dictionary(save_gemma(tmp_path / below))
    require(found, codes, codes @ DEC + B_DEC, DEC.norm(dim=1))
    assert found.reads == (Site("resid_post", 20),)
    assert found.learnt["folder"] == str(below)
    assert read_dictionary(tmp_path / below / "params.npz").fingerprint == found.fingerprint
    for repository, site in [("res", Site("resid_post", 20)), ("mlp", Site("mlp_out_post", 20)), ("att", Site("z", 20))]:
        folder = tmp_path / f"models--google--gemma-scope-2b-pt-{repository}" / "snapshots" / "12ab" / below
        found = read_dictionary(save_gemma(folder))
        assert (found.reads, found.learnt["model_name"]) == ((site,), "gemma-2-2b")
    for other, why in [
        ("gemma-scope-2b-pt-transcoders", "normed without the norm's own weights"),
        ("gemma-scope-9b-it-new", "new is none of res, mlp, att"),
    ]:
        with pytest.raises(Refusal, match=why):
            read_dictionary(save_gemma(tmp_path / other / below), site=POST)
    with pytest.raises(Refusal, match="before the model scales them"):
        read_dictionary(save_gemma(tmp_path / "embedding" / "width_4k" / "average_l0_6"))
    nameless = save_gemma(tmp_path / "w1" / "w2" / "w3" / "w4")
    with pytest.raises(Refusal, match="do not say at which site"):
        read_dictionary(nameless)
    assert read_dictionary(nameless, site=POST).reads == (POST,)


def test_damaged_arrays_and_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    folder = save_gemma(tmp_path / "layer_1")
    path = folder / "params.npz"
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"no archive", whole[:300] + b"abcdefgh" + whole[308:]):
        path.write_bytes(part)
        with pytest.raises(Refusal, match=r"params\.npz: the file is damaged, or holds more than numbers"):
            read_dictionary(folder)
    with pytest.raises(Refusal, match="holds more than numbers"):
        read_dictionary(save_gemma(folder, b_enc=np.array([Path()], dtype=object)))
    with pytest.raises(Refusal, match="threshold .* not finite"):
        read_dictionary(save_gemma(folder, threshold=np.full(UNITS, np.inf)))
    with pytest.raises(Refusal, match=r"threshold .* shape \[4\]"):
        read_dictionary(save_gemma(folder, threshold=np.ones(4)))


def test_a_dictionary_is_of_the_model_that_is_named_and_refuses_others(tmp_path: Path) -> None:
    model = toy_decoder()
    folder = save_saelens(tmp_path, four(), **new("standard"))
    with pytest.raises(Refusal, match=r"it is of resid_post\.4, and toy-llama has layers 0 to 2"):
        read_dictionary(folder, model=model)
    with pytest.raises(Refusal, match=r"states at resid_post\.1 of toy-llama have 24 numbers, and the dictionary is of 6"):
        read_dictionary(folder, model=model, site=Site("resid_post", 1))
    wide = {"W_enc": drawn(24, 5, seed=1), "b_enc": drawn(5, seed=1), "W_dec": drawn(5, 24, seed=1), "b_dec": drawn(24, seed=1)}
    folder = save_saelens(tmp_path, wide, **new("standard", metadata={"hook_name": "blocks.1.hook_resid_post"}))
    found = read_dictionary(folder, model=model)
    found.require_for(model.fingerprint, model.name)
    with pytest.raises(Refusal, match="learnt on states of another model"):
        found.require_for("another", "another")
    with pytest.raises(Refusal, match=r"learnt at resid_post\.1"):
        found.encode({Site("resid_post", 0): drawn(3, 24, seed=2)})
    with pytest.raises(Refusal, match="they have 6 numbers each, and it was learnt on states of 24"):
        found.encode({Site("resid_post", 1): X})
