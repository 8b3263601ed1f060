"""atlas.json: what an atlas is of, and which runs it holds. The only file of an atlas that is not a table.

Readers accept every schema version up to their own. What tables hold belongs in `tables`.
"""

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from microtome.core import Refusal
from microtome.store.files import committed

__all__ = [
    "SCHEMA_VERSION",
    "Compared",
    "Depth",
    "Manifest",
    "ModelCard",
    "RunCard",
    "manifest_of",
    "manifest_path",
    "read_manifest",
    "write_manifest",
]

SCHEMA_VERSION: Final = 1
"""Raised whenever a table or the manifest changes in a way that older readers misread."""


Depth = Literal["quick", "standard", "full"]
"""How much of a lens is computed: each has all of the one before."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class ModelCard(_Record):
    """The model an atlas is of."""

    name: str
    family: str
    architecture: str
    fingerprint: str
    shape: dict[str, Any]


class Compared(_Record):
    """What a run says of two models that no lens was in: how they were compared, and the model (`other`) that this one is compared with.

    `says` is the rest of a sentence that begins with the run.
    """

    kind: Literal["changes", "alignment"]
    other: str
    says: str


class RunCard(_Record):
    """One run: a corpus and a seed, and what came of them.

    `depths` says how deep each lens has gone that is complete, `pending` how deep those are to go that are being computed. `sites`
    are the hidden states that were asked for by name; none is the residual stream. `protocol` says how windows were taken. `given` are
    the fingerprints of what was in files that were given: facts. A run that compares two models has `compared`, and no lens.
    """

    status: Literal["building", "complete"]
    identity: str
    depths: dict[str, Depth] = Field(default_factory=dict)
    pending: dict[str, Depth] = Field(default_factory=dict)
    seed: int
    window: int
    sites: tuple[str, ...] = ()
    protocol: Literal["clean", "paper"] = "clean"
    execution: dict[str, Any]
    certificate: dict[str, Any]
    corpus: dict[str, Any] | None = None
    absent: dict[str, str] = Field(default_factory=dict)
    given: dict[str, str] = Field(default_factory=dict)
    compared: Compared | None = None
    files: dict[str, str] = Field(default_factory=dict)


class Manifest(_Record):
    """The contents of atlas.json; `files` of a run are its tables with their SHA-256."""

    format: Literal["microtome atlas"] = "microtome atlas"
    schema_version: int = SCHEMA_VERSION
    written_by: str
    model: ModelCard
    runs: dict[str, RunCard] = Field(default_factory=dict)

    def digests(self) -> dict[str, set[str]]:
        """What each table's SHA-256 may be: runs share the tables that hold for any run, and the last to write them counts."""
        found: dict[str, set[str]] = {}
        for run in self.runs.values():
            for file, sha in run.files.items():
                found.setdefault(file, set()).add(sha)
        return found


def manifest_path(atlas: Path) -> Path:
    """Where the manifest of an atlas is."""
    return atlas / "atlas.json"


def read_manifest(atlas: Path) -> Manifest:
    """Read and check atlas.json.

    Errors: `Refusal` where the folder is no atlas, or one of a newer schema.
    """
    path = manifest_path(atlas)
    if not path.is_file():
        raise Refusal(str(atlas), why="there is no atlas.json in it", instead="name a folder that `microtome build` has made")
    return manifest_of(path.read_bytes(), str(atlas))


def manifest_of(content: bytes, atlas: str) -> Manifest:
    """The manifest that `content` is, of the atlas that a person calls `atlas`. Errors: as of `read_manifest`."""
    try:
        raw = json.loads(content)
        _require_known(atlas, raw.get("schema_version"))
        manifest = Manifest.model_validate(raw)
    except Refusal:
        raise
    except (ValueError, AttributeError, RecursionError) as error:
        raise Refusal(
            f"{atlas}/atlas.json",
            why="it is damaged, or not the manifest of a microtome atlas",
            instead="name a folder that `microtome build` has made; where this is one, build it again in a new folder",
        ) from error
    _require_known(atlas, manifest.schema_version)
    return manifest


def _require_known(atlas: str, version: object) -> None:
    """Refuse a newer schema, before its fields are looked at."""
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise Refusal(
            atlas,
            why=f"it has schema version {version}, newer than {SCHEMA_VERSION}, the newest this microtome reads",
            instead="upgrade microtome",
        )


def write_manifest(atlas: Path, manifest: Manifest) -> None:
    """Commit the manifest."""
    with committed(manifest_path(atlas)) as temporary:
        temporary.write_text(json.dumps(manifest.model_dump(), indent=1, sort_keys=True) + "\n")
