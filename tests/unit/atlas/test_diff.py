"""Differences of models, and how they come into an atlas, through the one function and the report."""

from pathlib import Path

import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.atlas.diff import diff
from microtome.atlas.differences import Comparison, Kind, ModelAlignment, ModelDifference
from microtome.cli.diff import show_difference
from microtome.core import Refusal
from microtome.store import Compared, digest
from tests import toys
from tests.unit.model.adapters import linear, save_adapter


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


def test_an_adapter_that_names_another_model_is_read_and_doubted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tensors = linear("model.layers.2.self_attn.q_proj", 24, 32)
    found = diff(base, save_adapter(tmp_path / "mine", tensors, base_model_name_or_path="runs/base"))
    assert isinstance(found, ModelDifference)
    assert (found.doubt, caplog.messages) == (None, [])
    adapter = save_adapter(tmp_path / "astray", tensors, base_model_name_or_path="somebody/Model-1B")
    found = diff(base, adapter, output=tmp_path / "atlas")
    assert isinstance(found, ModelDifference)
    doubt = "astray says that it was trained on somebody/Model-1B, and is read here as a change of base"
    assert caplog.messages == [found.doubt] == [doubt]
    card = Atlas(tmp_path / "atlas").manifest.runs["since-base"]
    assert card.compared == Compared(kind="changes", other="base", says=f"what changed since base; {doubt}")
    assert card.absent["neurons"] == f"this run says what changed since base; {doubt}"
    show_difference(found, 1)
    assert f"vectors differ, 623 are equal. But {doubt}." in " ".join(capsys.readouterr().out.split())


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
    assert "as many random mixtures of the other model's vectors, 100 times" in sentences[0]
    assert set(atlas.manifest.runs["beside-base"].files) == {
        "tables/findings/alignment.beside-base.parquet",
        "tables/links/alignment.beside-base.parquet",
        "tables/vocabulary/vocabulary.parquet",
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
    assert "have the same W_gate: all 120 vectors are equal. Nothing else was compared." in told


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base with other embeddings, and with another last norm."""
    folder = tmp_path_factory.mktemp("ends")
    for name, weight in {"embedded": "model.embed_tokens.weight", "normed": "model.norm.weight"}.items():
        module = toys.llama()
        torch.manual_seed(2)
        with torch.no_grad():
            changed = module.get_parameter(weight)
            changed.add_(torch.randn_like(changed))
        module.save_pretrained(folder / name)
    return {path.name: path for path in folder.iterdir()}


def test_only_the_groups_that_are_named_are_compared(
    base: Path, ends: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    norm = Comparison(groups=("final_norm",))
    found = diff(base, ends["embedded"], comparison=norm)
    assert isinstance(found, ModelDifference)
    assert found.identical
    show_difference(found, 3)
    told = capsys.readouterr().out
    assert told == "base and embedded have the same final_norm: its one vector is equal. Nothing else was compared.\n"
    found = diff(base, ends["normed"], comparison=norm)
    assert isinstance(found, ModelDifference)
    assert found.findings() == [], "there is no other block to be farther than"
    show_difference(found, 3)
    told = capsys.readouterr().out
    assert told.startswith("From base to normed: 1 of 1 vectors of final_norm differ, 0 are equal.")
    assert "final_norm/0" in told
    show_difference(diff(base, ends["embedded"]), 3)
    told = capsys.readouterr().out
    assert "0 of 655 vectors differ" in told
    assert "W_E moved by" in told
    assert "layer" not in told, "a table of nothing"


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
    with pytest.raises(Refusal, match="words: a list scores how vectors have moved"):
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
    assert found.unmatched["W_out"] == (
        "80 with 120 would take 7.8e+06 operations, and 1.0e+06 were allowed; --operations 8.6e+06, or Comparison(operations=8.6e+06), "
        "matches them"
    )
    for operations, draws in ((8.6e6, 8), (1e7, 10), (5e13, 100)):  # (1 + 2 draws) x 2 x 80 x 120 x 24 operations
        enough = diff(base, cut, comparison=Comparison(groups=("W_out",), operations=operations))
        assert isinstance(enough, ModelAlignment)
        assert [len(each.draws) for each in enough.matches] == [draws]
    fewer = diff(base, cut, comparison=Comparison(groups=("W_out", "W_gate"), operations=1e6))
    assert isinstance(fewer, ModelAlignment)
    assert fewer.vectors == 64, "more than a layer has: no fewer stand for all"
    show_difference(fewer, 3)
    told = capsys.readouterr().out
    assert "Of each group 64 vectors of a layer stand for all." in told
    assert "Units of W_out are not matched: 80 with 120 would take" in told


@pytest.mark.parametrize(
    ("kind", "draws", "words", "why"),
    [
        ("displacement", 50, True, "50 shuffles: no p-value could be small; use 100 or more"),
        ("displacement", 500, False, "draws: there is no list of words to shuffle; leave it out"),
        ("alignment", 19, False, "19 shuffles: no p-value could be small; use 20 or more"),
    ],
)
def test_too_few_shuffles_are_refused_by_what_is_shuffled(
    base: Path, tmp_path: Path, kind: Kind, draws: int, words: bool, why: str
) -> None:
    (tmp_path / "words.txt").write_text("river\nstone")
    listed = (tmp_path / "words.txt",) if words else ()
    with pytest.raises(Refusal, match=why):
        diff(base, base, comparison=Comparison(kind, words=listed, draws=draws))


def test_an_alignment_has_as_many_shuffles_as_are_asked_for(base: Path, cut: Path) -> None:
    found = diff(base, cut, comparison=Comparison(groups=("W_V",), draws=20))
    assert isinstance(found, ModelAlignment)
    assert [len(each.shuffled) for each in found.alignments] == [20]


@pytest.mark.parametrize("operations", [0.0, -1.0, float("nan")])
def test_operations_are_some(operations: float) -> None:
    with pytest.raises(Refusal, match="operations: nothing could be computed; use 5e13, or more"):
        Comparison(operations=operations)


def test_operations_without_end_are_all_there_is_to_do(base: Path, cut: Path) -> None:
    found = diff(base, cut, comparison=Comparison(groups=("W_out",), operations=float("inf")))
    assert isinstance(found, ModelAlignment)
    assert (found.vectors, len(found.alignments[0].shuffled), len(found.matches[0].draws)) == (None, 100, 100)
