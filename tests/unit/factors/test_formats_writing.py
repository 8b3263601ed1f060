"""What is written for other tools has the dictionary's codes, in the layout that they document, and what they cannot say is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.factors.coding import Lasso
from microtome.factors.dictionary import Above, Arrangement, Coder, Dictionary, Encoder, Largest
from microtome.factors.formats import FORMATS, read_dictionary, write_dictionary_as
from microtome.factors.formats.folded import dictionary_of, folded_at
from microtome.factors.scaling import Scaling

WIDTH, UNITS, K = 6, 10, 3
SITES = (Site("resid_post", 0), Site("resid_post", 2))
IN, OUT = Site("mlp_in", 3), Site("mlp_out", 3)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = 2 * drawn(200, WIDTH, seed=0)
FLOOR = drawn(UNITS, seed=4).abs()


def made(
    rule: Above | Largest, arrangement: Arrangement = "shared", sites: tuple[Site, ...] = SITES, **change: Any
) -> Dictionary:
    across = arrangement == "transcoder"
    reads, targets = (IN,) if across else sites, len(sites) if arrangement == "crosscoder" else 1
    parts: dict[str, Any] = {
        "coder": Encoder(drawn(targets, WIDTH, UNITS, seed=2), drawn(UNITS, seed=3), rule),
        "scaling": Scaling(3 * drawn(len(reads), WIDTH, seed=1), torch.tensor([0.5, 7.0])[: len(reads)]),
        "directions": torch.nn.functional.normalize(drawn(targets, UNITS, WIDTH, seed=5), dim=2),
        "offset": drawn(targets, WIDTH, seed=6),
        "target_scaling": Scaling(drawn(1, WIDTH, seed=7), torch.tensor([4.0])) if across else None,
        "skip": 0.2 * drawn(WIDTH, WIDTH, seed=8) if across else None,
        "learnt": {"model_name": "pythia-70m", "units": UNITS},
    }
    writes = (OUT,) if across else reads
    return Dictionary(name="tiny", arrangement=arrangement, reads=reads, writes=writes, **parts | change)


RULES: dict[str, Above | Largest] = {"relu": Above(torch.zeros(UNITS)), "jump": Above(FLOOR), "largest": Largest(K)}
SAYS = {
    "saelens": ("relu", "jump", "largest"),
    "dictionary_learning": ("relu", "jump", "largest"),
    "sparsify": ("largest",),
    "gemma_scope": ("relu", "jump"),
}
WRITTEN = [(format, rule) for format, rules in SAYS.items() for rule in rules]


def require_same(again: Dictionary, place: Site, dictionary: Dictionary, site: Site) -> None:
    """Codes and reconstructions, to 1e-6 of their size."""
    codes, found = dictionary.encode({site: X}), again.encode({place: X})
    assert 0.05 < float((codes > 0).float().mean()) < 0.95
    state = X if dictionary.skip is not None else None
    pairs = [
        (found, codes),
        (
            again.decode(found, again.writes[0], state),
            dictionary.decode(codes, dictionary.writes[0] if state is not None else site, state),
        ),
    ]
    for one, other in pairs:
        assert float((one - other).abs().max()) <= 1e-6 * float(other.abs().max())
    torch.testing.assert_close(again.directions, dictionary.directions)


@pytest.mark.parametrize(("format", "rule"), WRITTEN)
def test_codes_survive_each_format_at_each_site(tmp_path: Path, format: str, rule: str) -> None:
    dictionary = made(RULES[rule])
    folders = write_dictionary_as(dictionary, tmp_path, format)
    assert len(set(folders)) == len(SITES)
    assert not list(tmp_path.rglob("*.part"))
    for folder, site in zip(folders, SITES, strict=True):
        again = read_dictionary(folder)
        assert again.reads == (site,)
        require_same(again, site, dictionary, site)
        assert "lengths" not in again.learnt


@pytest.mark.parametrize("rule", RULES)
def test_directions_of_other_lengths_are_said_to_be_in_the_codes(tmp_path: Path, rule: str) -> None:
    lengths = torch.linspace(0.5, 2, UNITS)
    dictionary = made(RULES[rule])
    longer = made(RULES[rule], directions=dictionary.directions * lengths[:, None])
    for site, folder in zip(SITES, write_dictionary_as(longer, tmp_path, "saelens"), strict=True):
        again = read_dictionary(folder)
        codes, found = longer.encode({site: X}), again.encode({site: X})
        size = longer.scaling.size[longer.place(site)]
        torch.testing.assert_close(found, codes if rule == "largest" else codes * lengths * size, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again.decode(found, site), longer.decode(codes, site), rtol=1e-5, atol=1e-5)
        assert "lengths" in again.learnt


@pytest.mark.parametrize(("format", "rule"), [("saelens", "relu"), ("saelens", "jump"), ("sparsify", "largest")])
@pytest.mark.parametrize("skip", ["skip", "none"])
def test_transcoders_survive(tmp_path: Path, format: str, rule: str, skip: str) -> None:
    dictionary = made(RULES[rule], "transcoder")
    dictionary = dictionary if skip == "skip" else replace(dictionary, skip=None)
    (folder,) = write_dictionary_as(dictionary, tmp_path, format)
    again = read_dictionary(folder)
    assert (again.reads, again.writes) == ((IN,), (OUT,))
    require_same(again, IN, dictionary, IN)


def test_a_linear_part_is_of_the_state_itself_whatever_the_centre(tmp_path: Path) -> None:
    folded = folded_at(made(RULES["jump"], "transcoder"), IN)
    assert folded.skip is not None
    assert float(folded.centre.abs().min()) > 0.01
    again = dictionary_of(folded, "again", IN, OUT, {}, "")
    wide = X.double()
    codes = folded.rule.keep((wide - folded.centre) @ folded.weights + folded.bias)
    torch.testing.assert_close(again.encode({IN: wide}), codes)
    expected = codes @ folded.directions + folded.offset + wide @ folded.skip
    torch.testing.assert_close(again.decode(codes, OUT, wide), expected, rtol=1e-6, atol=1e-6)


def test_a_bound_of_massive_states_stays_behind_and_codes_are_the_same(tmp_path: Path) -> None:
    plain = made(RULES["jump"])
    bound = replace(plain, scaling=replace(plain.scaling, longest=torch.tensor([3.0, 4.0])))
    for site, folder in zip(SITES, write_dictionary_as(bound, tmp_path, "gemma_scope"), strict=True):
        again = read_dictionary(folder)
        require_same(again, site, bound, site)
        assert again.scaling.longest is None


def test_folders_of_saelens_have_the_documented_layout(tmp_path: Path) -> None:
    first, second = write_dictionary_as(made(RULES["jump"]), tmp_path, "saelens")
    assert [each.name for each in (first, second)] == ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    told, tensors = json.loads((second / "cfg.json").read_text()), load_file(second / "sae_weights.safetensors")
    assert told["metadata"]["hook_name"] == second.name
    assert (told["architecture"], told["d_in"], told["d_sae"], told["apply_b_dec_to_input"]) == ("jumprelu", WIDTH, UNITS, True)
    z = (X - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    codes = z.relu() * (z > tensors["threshold"])
    dictionary = made(RULES["jump"])
    torch.testing.assert_close(codes, dictionary.encode({SITES[1]: X}))
    torch.testing.assert_close(codes @ tensors["W_dec"] + tensors["b_dec"], dictionary.decode(codes, SITES[1]))
    (heads,) = write_dictionary_as(made(RULES["relu"], sites=(Site("z", 1),)), tmp_path, "saelens")
    assert json.loads((heads / "cfg.json").read_text())["reshape_activations"] == "hook_z"
    assert json.loads((heads / "cfg.json").read_text())["architecture"] == "standard"


def test_ae_pt_is_a_state_dict_of_the_class_that_is_told(tmp_path: Path) -> None:
    dictionary = made(RULES["largest"])
    first, _ = write_dictionary_as(dictionary, tmp_path / "a", "dictionary_learning")
    told, saved = json.loads((first / "config.json").read_text()), torch.load(first / "ae.pt", weights_only=True)
    assert told["trainer"] | {"lm_name": "pythia-70m", "submodule_name": "resid_post_layer_0", "k": K} == told["trainer"]
    assert (told["trainer"]["dict_class"], told["trainer"]["layer"]) == ("AutoEncoderTopK", 0)
    z = (X - saved["b_dec"]) @ saved["encoder.weight"].T + saved["encoder.bias"]
    best = z.relu().topk(int(saved["k"]))
    codes = torch.zeros_like(z).scatter(1, best.indices, best.values)
    torch.testing.assert_close(codes, dictionary.encode({SITES[0]: X}))
    torch.testing.assert_close(codes @ saved["decoder.weight"].T + saved["b_dec"], dictionary.decode(codes, SITES[0]))
    plain = made(RULES["relu"], sites=SITES[:1], scaling=Scaling(drawn(1, WIDTH, seed=1), torch.ones(1)))
    kinds = [
        json.loads((write_dictionary_as(each, tmp_path / str(place), "dictionary_learning")[0] / "config.json").read_text())
        for place, each in enumerate((plain, made(RULES["relu"]), made(RULES["jump"])))
    ]
    assert [kind["trainer"]["dict_class"] for kind in kinds] == ["AutoEncoder", "JumpReluAutoEncoder", "JumpReluAutoEncoder"]


def test_sparsify_and_gemma_scope_have_the_documented_layout(tmp_path: Path) -> None:
    folders = write_dictionary_as(
        made(RULES["largest"], sites=(Site("resid_pre", 2), Site("mlp_out", 1))), tmp_path, "sparsify"
    )
    assert [each.name for each in folders] == ["layers.1", "layers.1.mlp"]
    told = json.loads((folders[0] / "cfg.json").read_text())
    assert told | {"activation": "topk", "num_latents": UNITS, "k": K, "transcode": False, "d_in": WIDTH} == told
    assert set(load_file(folders[0] / "sae.safetensors")) == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
    folders = write_dictionary_as(made(RULES["jump"]), tmp_path, "gemma_scope")
    assert [each.name for each in folders] == ["layer_0", "layer_2"]
    with np.load(folders[1] / "params.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays.files} == {
            "W_enc": (WIDTH, UNITS), "W_dec": (UNITS, WIDTH), "b_enc": (UNITS,), "b_dec": (WIDTH,), "threshold": (UNITS,),
        }  # fmt: skip
        assert {arrays[name].dtype for name in arrays.files} == {np.dtype("float32")}


def test_what_is_written_twice_has_the_same_bytes(tmp_path: Path) -> None:
    for format, rule in WRITTEN:
        runs = [write_dictionary_as(made(RULES[rule]), tmp_path / str(run) / rule, format)[0] for run in range(2)]
        for file in runs[0].iterdir():
            if file.suffix != ".npz":  # archives of numpy have the time in them
                assert file.read_bytes() == (runs[1] / file.name).read_bytes()


LASSO: Coder = Lasso(0.3, 1e-6)


@pytest.mark.parametrize(
    ("dictionary", "formats", "why"),
    [
        (made(RULES["relu"], coder=LASSO), FORMATS, "its codes are searched for"),
        (made(RULES["relu"], skip=drawn(WIDTH, WIDTH, seed=1)), FORMATS, "a linear part without being a transcoder"),
        (made(RULES["relu"], "crosscoder"), FORMATS, "one code for several sites"),
        (made(RULES["largest"], "transcoder"), ("saelens",), "it has no transcoder that keeps the largest"),
        (made(RULES["relu"], "transcoder"), ("dictionary_learning",), "it has no class for transcoders"),
        (made(RULES["relu"], "transcoder"), ("gemma_scope",), "its arrays are of one site"),
        (made(RULES["jump"]), ("sparsify",), "it keeps codes above thresholds"),
        (made(RULES["largest"]), ("gemma_scope",), "it keeps the k largest codes"),
        (made(RULES["largest"], sites=(Site("resid_pre", 0),)), ("sparsify",), "resid_pre.0 is not the output of a module"),
        (made(RULES["largest"], sites=(Site("z", 0),)), ("sparsify",), "site z.0 in huggingface: the tool has no name for it"),
        (made(RULES["relu"], sites=(Site("router_logits", 0),)), ("saelens",), "the tool has no name for it"),
    ],
)  # fmt: skip
def test_what_a_format_cannot_say_is_refused_and_nothing_is_written(
    tmp_path: Path, dictionary: Dictionary, formats: tuple[str, ...], why: str
) -> None:
    for format in formats:
        with pytest.raises(Refusal, match=why):
            write_dictionary_as(dictionary, tmp_path, format)
    assert not list(tmp_path.iterdir())
    with pytest.raises(Refusal, match="format 'onnx': it is not known here; use one of saelens, dictionary_learning"):
        write_dictionary_as(dictionary, tmp_path, "onnx")


def test_a_transcoder_between_two_modules_is_none_of_sparsify(tmp_path: Path) -> None:
    dictionary = made(RULES["largest"], "transcoder")
    other = replace(dictionary, writes=(Site("mlp_out", 4),))
    with pytest.raises(Refusal, match=r"mlp_in\.3 is not the input of the module that makes mlp_out\.4"):
        write_dictionary_as(other, tmp_path, "sparsify")
