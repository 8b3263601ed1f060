"""atlas.json: what cannot be read is refused, whatever is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from microtome.core import Refusal
from microtome.store import SCHEMA_VERSION, Manifest, ModelCard, manifest_path, read_manifest, write_manifest

_MODEL = ModelCard(name="toy", family="llama", architecture="LlamaForCausalLM", fingerprint="0", shape={"layers": 2})


def _manifest(**changes: Any) -> dict[str, Any]:
    return Manifest(written_by="a test", model=_MODEL).model_dump() | changes


def test_what_was_written_is_read(tmp_path: Path) -> None:
    manifest = Manifest(written_by="a test", model=_MODEL)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize(
    "contents",
    [
        _manifest(schema_version=SCHEMA_VERSION + 1),
        _manifest(schema_version=str(SCHEMA_VERSION + 1)),
        _manifest(schema_version=float(SCHEMA_VERSION + 1)),
        {"schema_version": SCHEMA_VERSION + 1, "runs": ["of another shape"]},
    ],
)
def test_a_newer_one_says_so(tmp_path: Path, contents: object) -> None:
    manifest_path(tmp_path).write_text(json.dumps(contents))
    with pytest.raises(Refusal, match=f"schema version {SCHEMA_VERSION + 1}, newer than {SCHEMA_VERSION}.*; upgrade microtome"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"null",
        b"[1]",
        b"\xff\xfe\xfa",
        json.dumps(_manifest()).encode()[:-20],
        b"[" * 200_000,
        b'{"schema_version": ' + b"9" * 5000 + b"}",
        json.dumps(_manifest(format="another")).encode(),
        json.dumps(_manifest(model=None)).encode(),
        json.dumps(_manifest(schema_version=None)).encode(),
    ],
)
def test_a_damaged_one_is_named(tmp_path: Path, contents: bytes) -> None:
    manifest_path(tmp_path).write_bytes(contents)
    with pytest.raises(Refusal, match=r"atlas\.json: it is damaged, or not the manifest.*build it again in a new folder"):
        read_manifest(tmp_path)


def test_a_folder_without_one_is_no_atlas(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"there is no atlas\.json in it; name a folder that `microtome build` has made"):
        read_manifest(tmp_path)
