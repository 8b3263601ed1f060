"""Differences of models into an atlas, and of atlases, through the one function and the report."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.atlas.diff import diff
from microtome.atlas.differences import AtlasDifference, Comparison, ModelAlignment, ModelDifference
from microtome.cli.diff import show_difference
from microtome.core import Refusal
from microtome.store import TABLES, digest, read_manifest, write_manifest, write_table
from tests import toys
from tests.unit.model.adapters import linear, save_adapter


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


def test_a_report_of_two_models_goes_into_an_atlas_of_the_second(
    base: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "nouns.txt"
    words.write_text("\n".join(["river", "stone", "garden", "letter", "engine"]))
    found = diff(base, tuned, output=tmp_path / "atlas", comparison=Comparison(words=(words,)))
    assert isinstance(found, ModelDifference)
    assert not found.identical
    atlas = Atlas(tmp_path / "atlas")
    assert atlas.manifest.model.name == "tuned"
    rows = atlas.sql('select "group", layer, count(*) as n from changes where run = ? group by all', ["since-base"]).to_pylist()
    assert rows == [{"group": "W_V", "layer": 1, "n": 16}]
    moved = atlas.sql(
        "select \"group\", layer, value from vocabulary_stats where stat = 'moved' order by value desc"
    ).to_pylist()
    assert (moved[0]["group"], moved[0]["layer"]) == ("W_V", 1)
    assert all(row["value"] == 0 for row in moved[1:])
    (first,) = atlas.sql("select sentence from findings order by rank limit 1").to_pylist()
    assert first["sentence"].startswith("W_V of layer 1 moved farthest from base")
    before = {file: digest(atlas.path / file) for file in atlas.manifest.runs["since-base"].files}
    diff(base, tuned, output=tmp_path / "atlas", comparison=Comparison(words=(words,)))
    assert before == atlas.manifest.runs["since-base"].files
    with pytest.raises(Refusal, match="run since-base: it is of something else than this comparison; use --run NAME"):
        diff(base, tuned, output=tmp_path / "atlas")
    with pytest.raises(Refusal, match="it is the atlas of tuned, whose weights are not those of base"):
        diff(tuned, base, output=tmp_path / "atlas", run="back")
    build(tuned, output=tmp_path / "atlas", settings=Settings(run="main"))
    assert set(atlas.manifest.runs) == {"main", "since-base"}
    show_difference(found, 3)
    told = capsys.readouterr().out
    assert "From base to tuned: 16 of" in told
    assert "W_V.1.0/" in told


def test_an_adapter_is_compared_with_the_model_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "mine", linear("model.layers.2.self_attn.q_proj", 24, 32))
    found = diff(base, adapter)
    assert isinstance(found, ModelDifference)
    assert found.tuned == "base+mine"
    assert [(each.group, each.layer) for each in found.blocks if each.addresses] == [("W_Q", 2)]
    with pytest.raises(Refusal, match="is built; name the folder of the model it was trained on"):
        diff(toys.toy_decoder(), adapter)


def test_equal_models_are_said_to_be_equal(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = diff(base, base)
    assert isinstance(found, ModelDifference)
    assert found.identical
    show_difference(found, 3)
    assert "base and base are the same: all" in capsys.readouterr().out


@pytest.fixture(scope="module")
def cut(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first and the last layer of the base, as a model of two layers."""
    folder = tmp_path_factory.mktemp("diff") / "cut"
    module, whole = toys.llama(2), toys.llama()
    state = whole.state_dict()
    state |= {name: state[name.replace("layers.1.", "layers.2.")] for name in state if "layers.1." in name}
    module.load_state_dict({name: value for name, value in state.items() if "layers.2." not in name})
    module.save_pretrained(folder)
    toys.decoder_tokenizer().save_pretrained(folder)
    return folder


def test_models_of_different_shapes_are_aligned(
    base: Path, cut: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = diff(base, cut, output=tmp_path / "atlas")
    assert isinstance(found, ModelAlignment)
    assert (found.model, found.other, found.vectors, found.numbered) == ("cut", "base", None, False)
    assert found.tokens == found.vocabularies[0] == found.vocabularies[1]
    assert [each.group for each in found.alignments] == ["W_gate", "W_up", "W_out", "W_Q", "W_K", "W_V", "W_O"]
    atlas = Atlas(tmp_path / "atlas")
    assert atlas.manifest.model.name == "cut"
    layers = atlas.sql("select \"group\", layer, value from vocabulary_stats where stat = 'aligned_layer'").to_pylist()
    assert len(layers) == 14
    assert all(row["value"] == 2 * row["layer"] for row in layers), "layer 1 is the base's last, layer 0 its first"
    links = atlas.sql("select unit, other, kind, score from links").to_pylist()
    assert len(links) == 80
    for row in links:
        layer, unit = row["unit"].removeprefix("W_out.").split("/")
        assert row["other"] == f"base:W_out.{2 * int(layer)}/{unit}"
        assert row["kind"] == "mutual in base"
        assert row["score"] == pytest.approx(1, abs=1e-4)
    sentences = [row["sentence"] for row in atlas.sql("select sentence from findings order by rank").to_pylist()]
    assert sentences[0].startswith("80 of 80 feed-forward values (W_out) of cut have a like in base")
    assert set(atlas.manifest.runs["beside-base"].files) == {
        "tables/findings/alignment.beside-base.parquet",
        "tables/links/alignment.beside-base.parquet",
        "tables/vocabulary_stats/alignment.beside-base.parquet",
    }
    again = diff(base, cut, output=tmp_path / "atlas", run="again", comparison=Comparison(groups=("W_out",)))
    assert isinstance(again, ModelAlignment)
    assert len(atlas.sql("select * from links")) == 80, "links hold for any run"
    diff(base, cut, output=tmp_path / "atlas", run="gates", comparison=Comparison(groups=("W_gate",)))
    kinds = atlas.sql(
        "select split_part(unit, '.', 1) as kind, count(*) as n from links group by all order by kind"
    ).to_pylist()
    assert kinds == [{"kind": "W_gate", "n": 80}, {"kind": "W_out", "n": 80}]
    assert atlas.damaged() == []
    with pytest.raises(Refusal, match="run later: nothing is written; name an output"):
        diff(base, cut, run="later")
    show_difference(found, 3)
    told = capsys.readouterr().out
    assert f"cut beside base: {found.tokens} shared tokens (100 % of the" in told
    assert "80 of 80 feed-forward values" in told
    assert "is nearest to" not in told, "pairs are in the table"


def test_models_of_one_shape_are_aligned_when_asked(base: Path, tuned: Path, cut: Path) -> None:
    toys.decoder_tokenizer().save_pretrained(tuned.parent / "told")
    toys.llama().save_pretrained(tuned.parent / "told")
    found = diff(base, tuned.parent / "told", comparison=Comparison("alignment", groups=("W_V", "W_gate")))
    assert isinstance(found, ModelAlignment)
    assert [each.group for each in found.alignments] == ["W_V", "W_gate"]
    assert [each.group for each in found.matches] == ["W_gate"]
    assert all(each.feature is not None for each in found.alignments)
    with pytest.raises(Refusal, match="layers is 3 and 2; name a model and what it was fine-tuned to"):
        diff(base, cut, comparison=Comparison("displacement"))


def test_groups_that_are_equal_are_not_said_to_be_the_model(
    base: Path, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_difference(diff(base, tuned, comparison=Comparison(groups=("W_gate",))), 3)
    told = " ".join(capsys.readouterr().out.split())
    assert "have the same W_gate: all 120 vectors are equal. Other groups were not compared." in told


def test_weights_that_hold_nan_are_not_aligned_and_nothing_is_written(base: Path, tmp_path: Path) -> None:
    module = toys.llama(2)
    with torch.no_grad():
        module.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] = torch.nan
    module.save_pretrained(tmp_path / "bad")
    toys.decoder_tokenizer().save_pretrained(tmp_path / "bad")
    with pytest.raises(Refusal, match="W_out of layer 1 of bad: it holds NaN or infinity"):
        diff(base, tmp_path / "bad", output=tmp_path / "atlas")
    assert not (tmp_path / "atlas").exists()


def test_what_cannot_be_aligned_is_refused(base: Path, tuned: Path, cut: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="tuned comes without its tokenizer"):
        diff(base, tuned, comparison=Comparison("alignment"))
    toys.llama(2).save_pretrained(tmp_path / "bare")
    with pytest.raises(Refusal, match="bare comes without its tokenizer, so nobody can say which tokens the two share"):
        diff(base, tmp_path / "bare")
    words = tmp_path / "nouns.txt"
    words.write_text("river")
    with pytest.raises(Refusal, match="a list of words: it scores how vectors have moved"):
        diff(base, cut, comparison=Comparison(words=(words,)))
    with pytest.raises(Refusal, match="W_in of cut and base: not both models have such vectors"):
        diff(base, cut, comparison=Comparison(groups=("W_in",)))


def test_an_alignment_that_would_take_too_long_says_what_it_left_out(
    base: Path, cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = diff(base, cut, comparison=Comparison(groups=("W_out",), operations=1e6))
    assert isinstance(found, ModelAlignment)
    # 2 FLOP x 2 comparisons x 2 x 3 layers x 24 coordinates = 576 for each pair of vectors: 40 x 40 of them are 0.9 million
    assert found.vectors is None
    assert found.matches == ()
    # 2 FLOP x 17 comparisons x 80 x 120 units x 24 coordinates
    assert found.unmatched["W_out"].startswith("80 with 120 would take 7.8e+06 operations, and 1e+06 were allowed")
    fewer = diff(base, cut, comparison=Comparison(groups=("W_out", "W_gate"), operations=1e6))
    assert isinstance(fewer, ModelAlignment)
    assert fewer.vectors == 64, "more than a layer has: no fewer stand for all"
    show_difference(fewer, 3)
    told = capsys.readouterr().out
    assert "Of each group 64 vectors of a layer stand for all." in told
    assert "Units of W_out are not matched: 80 with 120 would take" in told


@pytest.fixture(scope="module")
def atlases(base: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of both models; the second has a statistic with intervals in place of its own."""
    folder = tmp_path_factory.mktemp("atlases")
    paths = [
        build(model, output=folder / model.name, settings=Settings(lenses=("vocabulary",))).path for model in (base, tuned)
    ]
    for number, path in enumerate(paths):
        values = [1.0, 2.0, 3.0, 4.0 + 5.0 * number]
        rows = [
            {"unit": f"neurons.0/{unit}", "stat": "rate", "value": value, "lo": value - 0.98, "hi": value + 0.98, "run": "main"}
            for unit, value in enumerate(values)
        ] + [{"unit": "neurons.1/0", "stat": "exact", "value": 7.0 + number, "run": "main"}]
        if number:
            rows.append({"unit": "neurons.9/9", "stat": "rate", "value": 1.0, "run": "main"})
        table = pa.Table.from_pylist(rows, TABLES["unit_stats"].schema)
        file = write_table(path, "unit_stats", "vocabulary.main", table)
        manifest = read_manifest(path)
        manifest.runs["main"].files[str(file.relative_to(path))] = digest(file)
        write_manifest(path, manifest)
    return paths[0], paths[1]


def test_units_of_two_atlases_are_matched_by_address_and_ranked(
    atlases: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = diff(*atlases)
    assert isinstance(found, AtlasDifference)
    assert (found.matched, found.only_base, found.only_tuned, found.same_text) == (5, 0, 1, True)
    first = found.rows.to_pylist()[0]
    assert (first["unit"], first["base"], first["tuned"], first["difference"]) == ("neurons.0/3", 4.0, 9.0, 5.0)
    assert first["z"] == pytest.approx(5 / 0.5**0.5 / 1)  # standard errors of 0.5 each
    assert first["effect"] == pytest.approx(5 / torch.tensor([1.0, 2, 3, 4]).std().item())
    p = 2 * (1 - torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(first["z"], dtype=torch.float64)).item())
    assert first["q"] == pytest.approx(4 * p, rel=1e-3, abs=1e-12)
    exact = next(row for row in found.rows.to_pylist() if row["stat"] == "exact")
    assert (exact["difference"], exact["z"], exact["q"], exact["effect"]) == (1.0, None, None, None)
    show_difference(found, 2)
    told = capsys.readouterr().out
    assert "neurons.0/3" in told
    assert "equal" not in told
    show_difference(diff(atlases[0], atlases[0]), 2)
    told = capsys.readouterr().out
    assert told.endswith("All of them are equal.\n")
    assert "What differs most" not in told


def test_what_does_not_correspond_is_refused(atlases: tuple[Path, Path], base: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="it is an atlas and the other is a model; name two models or two atlases"):
        diff(atlases[0], base)
    with pytest.raises(Refusal, match="they are for models, and these are atlases"):
        diff(*atlases, output=tmp_path / "x")
    with pytest.raises(Refusal, match="there is no run other; name one by --run: main"):
        diff(*atlases, run="other")
    toys.llama(2).save_pretrained(tmp_path / "short")
    toys.decoder_tokenizer().save_pretrained(tmp_path / "short")
    short = build(tmp_path / "short", output=tmp_path / "short-atlas").path
    with pytest.raises(Refusal, match="whose units do not correspond"):
        diff(atlases[0], short)
