"""Whole builds on toy models: contents, resuming to the same bytes, and refusals that leave nothing behind."""

import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from microtome.atlas import Atlas, Settings, build
from microtome.capture import Silent
from microtome.core import Refusal
from microtome.corpus import Document, Joined
from microtome.model import Model, wrap
from microtome.store import digest, locked
from tests import toys
from tests.contract.tiny_inputs import word_tokenizer
from tests.unit.model.tiny import TINY, built

_SETTINGS = Settings(window=24)
_TEXTS = toys.toy_texts(documents=40, words=300)


class _Killed(BaseException):
    """Stands in for SIGKILL."""


class _KillAfter(Silent):
    """Ends the build after so many batches."""

    def __init__(self, batches: int) -> None:
        self._left = batches

    def advance(self, windows: int, tokens: int) -> None:
        self._left -= 1
        if self._left == 0:
            raise _Killed


@pytest.fixture(scope="module", autouse=True)
def _several_units() -> Iterator[None]:
    """A toy's unit of work would be the whole text; cut it so that there is something to interrupt and merge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("microtome.capture.lens.windows_per_unit", lambda *_: 120)
        yield


@pytest.fixture(scope="module")
def decoder() -> Model:
    return toys.toy_decoder()


@pytest.fixture(scope="module")
def atlas(decoder: Model, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    return build(decoder, _TEXTS, output=tmp_path_factory.mktemp("build") / "atlas", settings=_SETTINGS)


def _tables(folder: Path) -> dict[str, str]:
    files = [*(folder / "tables").rglob("*.parquet"), *(folder / "dictionaries").glob("*")]
    return {str(path.relative_to(folder)): digest(path) for path in sorted(files)}


def test_a_build_fills_the_tables_and_leaves_no_work_behind(atlas: Atlas, decoder: Model) -> None:
    assert sorted(path.name for path in atlas.path.iterdir()) == [".lock", "atlas.json", "dictionaries", "tables"]
    run = atlas.manifest.runs["main"]
    assert run.status == "complete"
    assert run.files == _tables(atlas.path)
    assert run.corpus is not None
    assert run.corpus["documents"] == 40
    counts = atlas.sql("select basis, count(*) as n from units group by basis order by basis").to_pylist()
    shape = decoder.shape
    assert {row["basis"]: row["n"] for row in counts} == {
        "factors": sum(atlas.sql("select units from dictionaries").to_pydict()["units"]),
        "heads": shape.layers * shape.heads,
        "neurons": shape.layers * shape.d_mlp,
    }
    sites = atlas.sql("select distinct site from geometry_shares order by site").to_pylist()
    assert [row["site"] for row in sites] == ["resid_post.0", "resid_post.1", "resid_post.2", "resid_pre.0"]
    losses = atlas.sql("select count(*) as n from layer_loss where loss > 0").to_pylist()
    assert losses[0]["n"] > 0


def test_every_row_of_contexts_points_at_a_token_of_a_window(atlas: Atlas) -> None:
    rows = atlas.sql(
        "select count(*) as n, count(w.window) as found, count(*) filter (c.position < len(w.ids)) as inside "
        "from contexts c left join windows w on c.run = w.run and c.window = w.window"
    ).to_pylist()[0]
    assert rows["n"] == rows["found"] == rows["inside"] > 0


def test_building_again_changes_nothing(atlas: Atlas, decoder: Model) -> None:
    before = {path: path.stat().st_mtime_ns for path in (atlas.path / "tables").rglob("*.parquet")}
    build(decoder, _TEXTS, output=atlas.path, settings=_SETTINGS)
    assert before == {path: path.stat().st_mtime_ns for path in (atlas.path / "tables").rglob("*.parquet")}


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_interrupted_and_continued_gives_the_same_bytes(atlas: Atlas, decoder: Model, tmp_path: Path, batches: int) -> None:
    output = tmp_path / "atlas"
    with pytest.raises(_Killed):
        build(decoder, _TEXTS, output=output, settings=_SETTINGS, progress=_KillAfter(batches))
    build(decoder, _TEXTS, output=output, settings=_SETTINGS)
    assert _tables(output) == _tables(atlas.path)


def test_a_damaged_table_is_named_and_rebuilt(atlas: Atlas, decoder: Model, tmp_path: Path) -> None:
    copy = tmp_path / "atlas"
    shutil.copytree(atlas.path, copy)
    victim = next((copy / "tables" / "contexts").glob("*.parquet"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert Atlas(copy).damaged() == [victim.relative_to(copy).as_posix()]
    build(decoder, _TEXTS, output=copy, settings=_SETTINGS)
    assert Atlas(copy).damaged() == []
    assert _tables(copy) == _tables(atlas.path)


def test_another_text_in_the_same_run_is_refused_and_changes_nothing(atlas: Atlas, decoder: Model) -> None:
    before = _tables(atlas.path)
    with pytest.raises(Refusal, match="run main: its text was another one; use --run NAME"):
        build(decoder, toys.toy_texts(documents=6), output=atlas.path, settings=_SETTINGS)
    with pytest.raises(Refusal, match="run main: seed was 0 and is now 1; use --run NAME"):
        build(decoder, _TEXTS, output=atlas.path, settings=Settings(window=24, seed=1))
    assert _tables(atlas.path) == before


def test_a_second_run_joins_the_first(atlas: Atlas, decoder: Model, tmp_path: Path) -> None:
    copy = tmp_path / "atlas"
    shutil.copytree(atlas.path, copy)
    both = build(decoder, toys.toy_texts(documents=6), output=copy, settings=Settings(run="half", window=24))
    assert set(both.manifest.runs) == {"main", "half"}
    runs = both.sql("select distinct run from contexts order by run").to_pylist()
    assert [row["run"] for row in runs] == ["half", "main"]
    units = both.sql("select count(*) as n, count(distinct unit) as different from units").to_pylist()[0]
    assert units["n"] == units["different"]


def test_an_atlas_has_one_model(atlas: Atlas) -> None:
    with pytest.raises(Refusal, match="it is the atlas of toy-llama, whose weights are not those of toy-bert"):
        build(toys.toy_encoder(), _TEXTS, output=atlas.path, settings=_SETTINGS)


def test_folders_that_cannot_be_used_are_refused(decoder: Model, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear")
    with pytest.raises(Refusal, match="holds files but no atlas.json; name a new folder"):
        build(decoder, _TEXTS, output=tmp_path / "notes", settings=_SETTINGS)
    with pytest.raises(Refusal, match="it is a file"):
        build(decoder, _TEXTS, output=tmp_path / "notes" / "diary.txt", settings=_SETTINGS)
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["diary.txt"]


def test_an_atlas_in_use_is_refused(atlas: Atlas, decoder: Model) -> None:
    with locked(atlas.path), pytest.raises(Refusal, match="another run is writing in it"):
        build(decoder, _TEXTS, output=atlas.path, settings=_SETTINGS)


def test_bad_text_leaves_no_folder(decoder: Model, tmp_path: Path) -> None:
    with pytest.raises(Refusal):
        build(decoder, ["", "  "], output=tmp_path / "atlas", settings=_SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_gets_its_masked_loss(tmp_path: Path) -> None:
    built = build(toys.toy_encoder(), _TEXTS, output=tmp_path / "atlas", settings=_SETTINGS)
    rows = built.sql("select distinct objective from layer_loss where site is not null").to_pylist()
    assert rows == [{"objective": "masked_token"}]


def test_without_text_only_the_weights_are_read(tmp_path: Path) -> None:
    folder = toys.save_checkpoint(tmp_path / "model")
    built = build(folder, output=tmp_path / "atlas")
    assert built.sql("select count(*) as n from tokens").to_pylist()[0]["n"] > 0
    assert built.sql("select count(*) as n from contexts").to_pylist()[0]["n"] == 0
    assert built.manifest.runs["main"].corpus is None
    assert built.manifest.runs["main"].absent


def test_a_depth_that_is_not_computed_is_refused() -> None:
    with pytest.raises(Refusal, match="depth full: this version has no random-weight twin; use standard"):
        Settings(depth="full")
    untyped = Settings()
    object.__setattr__(untyped, "depth", "deep")  # as a caller without a type checker may say; the tests have one
    with pytest.raises(Refusal, match="depth deep: there is none of that name; use quick or standard"):
        untyped.__post_init__()
    with pytest.raises(Refusal, match="lens geometries: there is none of that name; name geometry, neurons, vocabulary"):
        Settings(lenses=("geometries",))


def _digests(atlas: Path) -> dict[str, str]:
    return {path.relative_to(atlas).as_posix(): digest(path) for path in sorted(atlas.rglob("*.parquet"))}


def test_a_lens_goes_deeper_in_an_atlas_that_is_there(tmp_path: Path) -> None:
    """One lens deepened in place is that lens built deep at once; the tables of the others stay, byte for byte."""
    model, text = toys.save_checkpoint(tmp_path / "model"), toys.toy_texts(documents=24)
    deep = Settings(depth="standard", window=24, lenses=("geometry",))
    first = build(model, text, output=tmp_path / "both", settings=Settings(window=24))
    before = _digests(tmp_path / "both")
    assert first.manifest.runs["main"].depths == dict.fromkeys(("factors", "geometry", "neurons", "vocabulary"), "quick")
    assert "geometry_attention" in first.manifest.runs["main"].absent
    card = build(model, text, output=tmp_path / "both", settings=deep).manifest.runs["main"]
    after = _digests(tmp_path / "both")
    assert card.depths == {"factors": "quick", "geometry": "standard", "neurons": "quick", "vocabulary": "quick"}
    assert "geometry_attention" not in card.absent
    assert (card.status, card.pending) == ("complete", {})
    assert set(card.files) == set(after)
    changed = {name for name in before if before[name] != after[name]}
    assert changed
    assert all(Path(name).name.startswith("geometry.") for name in changed)
    alone = build(model, text, output=tmp_path / "alone", settings=deep)
    assert alone.manifest.runs["main"].depths == {"geometry": "standard"}
    assert "neurons" in alone.manifest.runs["main"].absent
    deepened = {name: sha for name, sha in after.items() if Path(name).name.startswith("geometry.")}
    assert deepened == {name: sha for name, sha in _digests(tmp_path / "alone").items() if name in deepened}
    build(model, text, output=tmp_path / "both", settings=Settings(window=24))
    assert _digests(tmp_path / "both") == after, "what stands deeper stays"


def test_sites_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    model, texts = toys.toy_decoder(), toys.toy_texts(documents=12)
    settings = Settings(window=24, lenses=("geometry",), sites=("mlp_out.0:2",))
    atlas = build(model, texts, output=tmp_path / "atlas", settings=settings)
    assert atlas.manifest.runs["main"].sites == ("mlp_out.0", "mlp_out.1")
    assert {row["site"] for row in atlas.sql("select distinct site from geometry_stats").to_pylist()} == {
        "mlp_out.0",
        "mlp_out.1",
    }
    before = _digests(tmp_path / "atlas")
    build(model, texts, output=tmp_path / "atlas", settings=replace(settings, sites=("mlp_out.0", "mlp_out.1")))
    assert _digests(tmp_path / "atlas") == before
    with pytest.raises(Refusal, match=r"what is looked at was mlp_out\.0, mlp_out\.1 and is now the residual stream"):
        build(model, texts, output=tmp_path / "atlas", settings=replace(settings, sites=()))
    with pytest.raises(Refusal, match="hidden states are of a text"):
        build(toys.save_checkpoint(tmp_path / "model"), output=tmp_path / "other", settings=replace(settings, lenses=()))


def test_an_unfinished_run_is_continued_by_its_own_command_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = toys.save_checkpoint(tmp_path / "model"), toys.toy_texts(documents=24)
    settings = Settings(window=24, lenses=("geometry",))

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["microtome.atlas.build"], "run_stages", fail)
        with pytest.raises(KeyboardInterrupt):
            build(model, text, output=tmp_path / "atlas", settings=settings)
    with pytest.raises(Refusal, match="unfinished: geometry at depth quick was begun, and geometry at depth quick, neurons"):
        build(model, text, output=tmp_path / "atlas", settings=Settings(window=24))
    assert build(model, text, output=tmp_path / "atlas", settings=settings).manifest.runs["main"].status == "complete"


_DEEP = Settings(window=20, depth="standard", lenses=("geometry",))


def _worded(name: str, module: torch.nn.Module | None = None) -> Model:
    """A tiny model of a family with a tokenizer of the words of the toy texts."""
    template = "[CLS] $A [SEP]" if name == "bert" else "$A"
    return wrap(module or built(name), word_tokenizer(template), name=name)


def _sound(atlas: Atlas) -> None:
    """No number that is none, no empty value without its reason, no kind of a control that is not there."""
    for name in sorted(path.name for path in (atlas.path / "tables").iterdir()):
        for row in atlas.sql(f"select * from {name}").to_pylist():
            values = [each for value in row.values() for each in (value if isinstance(value, list) else [value])]
            assert all(math.isfinite(value) for value in values if isinstance(value, float)), (name, row)
            if "undefined" in row:
                assert (row["value"] is None) == bool(row["undefined"]), (name, row)
                assert row["value"] is not None or row["control"] is row["q"] is None, (name, row)
                assert row["undefined"] != "its formula divides by 0 here", (name, row)
            if name.startswith("geometry_") and "control_kind" in row:
                control = row["control"] if "control" in row else row["energy_control"]
                assert (control is None) == (row["control_kind"] is None), (name, row)
    for row in atlas.sql("select sentence from findings").to_pylist():
        assert not {"nan", "inf", "None"} & set(row["sentence"].split()), row


@pytest.mark.parametrize("family", ["bert", "bloom", "gpt_neo"])
def test_every_number_of_the_geometry_is_one_or_says_why_it_is_none(family: str, tmp_path: Path) -> None:
    made = build(_worded(family), toys.toy_texts(documents=4, words=60), output=tmp_path / "atlas", settings=_DEEP)
    _sound(made)
    assert made.sql("select count(*) as n from geometry_attention where share is not null").to_pylist()[0]["n"] > 0


def _zeroed() -> torch.nn.Module:
    module = TINY["llama"]().float().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(toys.toy_texts(documents=1, words=9), id="one window"),
        pytest.param(toys.toy_texts(documents=2, words=60), id="documents in both halves"),
        pytest.param([text[: 60 + 7 * row] for row, text in enumerate(toys.toy_texts(documents=12, words=40))], id="ragged"),
        pytest.param(toys.toy_texts(documents=1, words=60) * 6, id="one text again and again"),
    ],
)
def test_texts_with_little_in_them_give_numbers_or_reasons(texts: list[str], tmp_path: Path) -> None:
    _sound(build(_worded("llama"), texts, output=tmp_path / "atlas", settings=_DEEP))


def test_a_model_whose_states_do_not_vary_has_no_shares(tmp_path: Path) -> None:
    made = build(_worded("llama", _zeroed()), toys.toy_texts(documents=6), output=tmp_path / "atlas", settings=_DEEP)
    _sound(made)
    assert made.sql("select count(*) as n from geometry_shares where share is not null").to_pylist() == [{"n": 0}]
    assert made.sql("select count(*) as n from findings").to_pylist() == [{"n": 0}]
    reasons = made.sql("select distinct undefined from geometry_stats where stat = 'omega2'").to_pylist()
    assert reasons == [{"undefined": "hidden states do not vary"}]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["plants"] * 5 + ["winds"], "1 of 2 labels has two members or more, and comparing takes two"),
        (list("abcdef"), "0 of 6 labels has two members or more, and comparing takes two"),
    ],
)
def test_labels_that_cannot_be_compared_say_so(labels: list[str], reason: str, tmp_path: Path) -> None:
    texts = toys.toy_texts(documents=6, words=12)
    documents = [Document(str(row), text, label) for row, (text, label) in enumerate(zip(texts, labels, strict=True))]
    settings = Settings(window=20, lenses=("geometry",))
    made = build(_worded("gpt2"), documents, output=tmp_path / "atlas", settings=settings)
    _sound(made)
    found = made.sql("select distinct value, undefined from geometry_stats where stat = 'k_means_adjusted_rand'").to_pylist()
    assert found == [{"value": None, "undefined": reason}]


def test_infinite_states_and_windows_without_context_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    module = built("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.down_proj.weight.mul_(1e38)
    with pytest.raises(Refusal, match="hidden states contain NaN or infinite numbers; check the checkpoint"):
        build(_worded("llama", module), toys.toy_texts(documents=6), output=tmp_path / "atlas", settings=_DEEP)
    settings = Settings(window=2, depth="standard", lenses=("geometry",))
    with pytest.raises(Refusal, match="windows of 2 tokens: there is no context in them; use 4 or more"):
        build(_worded("gpt2"), toys.toy_texts(documents=6), output=tmp_path / "none", settings=settings)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("settings", [_SETTINGS, Settings(window=24, depth="standard", lenses=("geometry",))])
def test_a_repair_that_was_interrupted_goes_on(atlas: Atlas, decoder: Model, tmp_path: Path, settings: Settings) -> None:
    """What was to be made anew is still to be made, although its lens stands as deep already."""
    copy = tmp_path / "atlas"
    shutil.copytree(atlas.path, copy)
    victim = next((copy / "tables" / "contexts").glob("*.parquet"))
    victim.unlink()
    with pytest.raises(_Killed):
        build(decoder, _TEXTS, output=copy, settings=settings, progress=_KillAfter(1))
    assert Atlas(copy).manifest.runs["main"].status == "building"
    card = build(decoder, _TEXTS, output=copy, settings=settings).manifest.runs["main"]
    assert (card.status, card.pending, Atlas(copy).damaged()) == ("complete", {}, [])
    assert digest(victim) == digest(atlas.path / victim.relative_to(copy))


def test_a_protocol_takes_texts(tmp_path: Path) -> None:
    paper = Settings(protocol="paper", lenses=("geometry",))
    with pytest.raises(Refusal, match="it joins texts, and images cannot be joined"):
        build(wrap(built("vit")), tmp_path / "pictures", output=tmp_path / "atlas", settings=paper)
    with pytest.raises(Refusal, match="protocol paper: it says how windows of a text are taken"):
        build(toys.save_checkpoint(tmp_path / "model"), output=tmp_path / "atlas", settings=paper)
    assert not (tmp_path / "atlas").exists()


def test_the_protocol_is_part_of_a_run_and_has_windows_of_its_own(
    decoder: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings(protocol="paper").windows == Joined(512, 6400, seed=1234)
    monkeypatch.setattr(Settings, "windows", property(lambda own: 24 if own.protocol == "clean" else Joined(contexts=200)))
    clean = Settings(window=24, depth="quick", lenses=("geometry",))
    paper = replace(clean, protocol="paper", run="paper")
    build(decoder, _TEXTS[:8], output=tmp_path / "atlas", settings=clean)
    atlas = build(decoder, _TEXTS[:8], output=tmp_path / "atlas", settings=paper)
    runs = atlas.manifest.runs
    assert (runs["main"].protocol, runs["main"].window) == ("clean", 24)
    assert (runs["paper"].protocol, runs["paper"].window) == ("paper", 64), "512, or the context of the model"
    assert runs["paper"].corpus is not None
    assert (runs["paper"].corpus["windows"], runs["paper"].corpus["documents"]) == (200, 1)
    table = atlas.sql("select distinct windows, tokens from geometry_shares where run = 'paper'").to_pylist()
    assert table == [{"windows": 200, "tokens": 200 * 63}]
    with pytest.raises(Refusal, match="protocol was paper and is now clean"):
        build(decoder, _TEXTS[:8], output=tmp_path / "atlas", settings=replace(clean, run="paper"))
