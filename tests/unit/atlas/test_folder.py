"""The folder of an atlas: whose files are left alone, and what a build that fails leaves behind."""

import errno
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from microtome.atlas import Atlas, Settings, build, estimate
from microtome.atlas.folder import claimed, require_run_name, require_usable
from microtome.core import Refusal
from microtome.store import DiskFull
from tests import toys


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "/tmp/x", "a.b", "a b", "main\n", "a\0", "-x", "x" * 65])
def test_run_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(Refusal, match="names of runs become names of files"):
        require_run_name(name)


@pytest.mark.parametrize("name", ["main", "2026-11-21", "première_fois", "x" * 64])
def test_plain_run_names_are_taken(name: str) -> None:
    require_run_name(name)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_some_generator_refuses_are_refused_first(seed: int) -> None:
    with pytest.raises(Refusal, match=f"seed {seed}"):
        Settings(seed=seed)


def test_a_folder_of_the_user_with_a_folder_called_work_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "download.part").write_text("half")
    with pytest.raises(Refusal, match="no atlas.json"):
        build(toys.toy_decoder(), toys.toy_texts(), output=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download.part", "work"]


def test_leftovers_are_swept_in_the_places_of_the_atlas_alone(tmp_path: Path) -> None:
    (tmp_path / "atlas.json").write_text(
        '{"written_by": "x", "model": {"name": "", "family": "", "architecture": "", "fingerprint": "", "shape": {}}}'
    )
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.parquet.part").touch()
    (tmp_path / "mine.part").touch()
    with claimed(tmp_path, "main"):
        assert not (tmp_path / "tables" / "a.parquet.part").exists()
        assert (tmp_path / "mine.part").exists()


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="not valid Unicode; name another folder"):
        require_usable(tmp_path / os.fsdecode(b"\xe9") / "atlas")


def test_a_link_to_nothing_and_a_place_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    with pytest.raises(Refusal, match="link to nothing"):
        require_usable(link)
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="cannot be made: Not a directory"), claimed(tmp_path / "file" / "atlas", "main"):
        pass


@pytest.mark.parametrize(
    "error", [Refusal("a", why="b", instead="c"), OSError(errno.EIO, "Input/output error"), KeyError("bug")]
)
def test_a_failure_before_the_manifest_leaves_no_new_folder(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), claimed(tmp_path / "atlas", "main"):
        raise error
    assert not (tmp_path / "atlas").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="no space is left"), claimed(tmp_path / "atlas", "main"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def forbidden(path: Path, mode: int) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr("os.access", forbidden)
    for output in (tmp_path, tmp_path / "new" / "atlas"):
        with pytest.raises(Refusal, match=f"nothing may be written in {tmp_path}; name a folder where you may write"):
            build("no such model", "no such text", output=output)
    assert asked == [tmp_path, tmp_path]
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"atlas: .*/file is a file; name a folder for the atlas"):
        require_usable(tmp_path / "file" / "atlas")


def test_an_estimate_for_a_folder_refuses_what_a_build_in_it_would(tmp_path: Path) -> None:
    model, texts, settings = toys.toy_decoder(), toys.toy_texts(), Settings(window=24)
    output = build(model, texts, output=tmp_path / "atlas", settings=settings).path
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert estimate(model, texts, output=output, settings=settings).documents == 12
    assert estimate(model, texts[:6], output=output, settings=Settings(run="half", window=24)).documents == 6
    assert estimate(model, texts, output=tmp_path / "new" / "atlas", settings=settings).windows > 0
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").touch()
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "atlas.json").write_text('{"schema_version": 99}')
    for subject, text, folder, message in [
        (model, texts[:6], output, "run main: its text was another one; use --run NAME"),
        (toys.toy_encoder(), texts, output, "it is the atlas of toy-llama, whose weights are not those of toy-bert"),
        (model, texts, tmp_path / "notes", "holds files but no atlas.json"),
        (model, texts, tmp_path / "notes" / "diary.txt", "it is a file"),
        (model, texts, tmp_path / "newer", "schema version 99, newer than 1"),
    ]:
        with pytest.raises(Refusal, match=message):
            estimate(subject, text, output=folder, settings=settings)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlas", "newer", "notes"]


def test_a_refused_second_run_leaves_the_first_as_it_was(tmp_path: Path) -> None:
    atlas = build(toys.toy_decoder(), toys.toy_texts(), output=tmp_path / "atlas", settings=Settings(window=24))
    before = {path: path.read_bytes() for path in atlas.path.rglob("*") if path.is_file()}
    with pytest.raises(Refusal, match="usable"):
        build(toys.toy_decoder(), ["\0"], output=atlas.path, settings=Settings(run="second", window=24))
    with pytest.raises(Refusal, match="it is a run over texts"):
        _weights_only(tmp_path, atlas.path)
    assert {path: path.read_bytes() for path in atlas.path.rglob("*") if path.is_file()} == before
    assert not (atlas.path / "work").exists()


def _weights_only(tmp_path: Path, output: Path) -> None:
    model = toys.toy_decoder()
    folder = toys.save_checkpoint(tmp_path / "toy")
    manifest = (output / "atlas.json").read_text()
    from microtome.model import open_checkpoint

    (output / "atlas.json").write_text(manifest.replace(model.fingerprint, open_checkpoint(folder).fingerprint))
    try:
        build(folder, output=output, settings=Settings(window=24))
    finally:
        (output / "atlas.json").write_text(manifest)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_without_a_text_too(tmp_path: Path, number: float) -> None:
    folder = toys.save_checkpoint(tmp_path / "toy")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = number
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refusal, match=r"model\.norm\.weight holds 1 of 24 numbers that are NaN or infinite"):
        build(folder, output=tmp_path / "atlas")
    assert not (tmp_path / "atlas").exists()


def test_runs_of_other_seeds_do_not_damage_each_other(tmp_path: Path) -> None:
    model, output = toys.toy_decoder(), tmp_path / "atlas"
    for run, seed in (("main", 0), ("second", 3)):
        build(model, toys.toy_texts(), output=output, settings=Settings(run=run, seed=seed, window=24))
    assert Atlas(output).damaged() == []


def test_a_damaged_table_is_named_by_sql_and_by_the_build_that_makes_it_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, output = toys.toy_decoder(), tmp_path / "atlas"
    atlas = build(model, toys.toy_texts(), output=output, settings=Settings(window=24))
    table = output / "tables" / "units" / "neurons.parquet"
    written = table.read_bytes()
    for damage in (b"", written[:100]):
        table.write_bytes(damage)
        with pytest.raises(Refusal, match=r"tables/units/neurons\.parquet is missing, or damaged"):
            atlas.sql("select * from units")
        build(model, toys.toy_texts(), output=output, settings=Settings(window=24))
        assert "tables/units/neurons.parquet is missing or damaged" in caplog.text
        assert table.read_bytes() == written
    with pytest.raises(Refusal, match="it is empty"):
        atlas.sql("  ")
