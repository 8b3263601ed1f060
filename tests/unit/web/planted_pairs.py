"""Pairs of planted atlases: one that another was copied from, and what was changed of the copy."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fastapi.testclient import TestClient

from microtome.store import TABLES, read_manifest, table_path, write_manifest, write_table
from microtome.web import create_app
from tests import toys
from tests.unit.web.planted import RUN

__all__ = ["asking", "copied", "rates", "remodelled", "rewritten", "tuned_models"]


def copied(atlas: Path, name: str) -> Path:
    """The atlas again, beside itself."""
    return shutil.copytree(atlas, atlas.parent / name)


def rewritten(atlas: Path, table: str, writer: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """Change rows of a table, or leave them out (None)."""
    rows = [
        changed for row in pq.read_table(table_path(atlas, table, writer)).to_pylist() if (changed := change(row)) is not None
    ]
    write_table(atlas, table, writer, pa.Table.from_pylist(rows, TABLES[table].schema))
    return atlas


def rates(atlas: Path, values: Sequence[float], *, width: int, run: str = RUN) -> Path:
    """A statistic `rate` of the first feed-forward units, each with a standard error of 0.5."""
    rows = [
        {
            "unit": f"neurons.{n // width}/{n % width}", "stat": "rate", "value": value, "lo": value - 0.98, "hi": value + 0.98, "run": run,
        }
        for n, value in enumerate(values)
    ]  # fmt: skip
    write_table(atlas, "unit_stats", f"rates.{run}", pa.Table.from_pylist(rows, TABLES["unit_stats"].schema))
    return atlas


def remodelled(atlas: Path, **changes: Any) -> Path:
    """Say something else of the model: its fingerprint, its shape."""
    manifest = read_manifest(atlas)
    write_manifest(atlas, manifest.model_copy(update={"model": manifest.model.model_copy(update=changes)}))
    return atlas


def asking(atlas: Path, *beside: Path) -> Callable[..., Any]:
    """What a server of the atlas answers to a path with parameters; anything but an answer is an error."""
    client = TestClient(create_app(atlas, beside=beside), base_url="http://127.0.0.1")

    def ask(path: str, **parameters: Any) -> Any:
        answer = client.get(f"/api/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return ask


def tuned_models(folder: Path) -> tuple[Path, Path]:
    """A model, and the same with unit 3 of layer 1 writing twice as much."""
    base, tuned = toys.save_checkpoint(folder / "base"), folder / "tuned"
    module = toys.llama()
    toys.decoder_tokenizer().save_pretrained(tuned)
    with torch.no_grad():
        module.get_parameter("model.layers.1.mlp.down_proj.weight")[:, 3] *= 2
    module.save_pretrained(tuned)
    return base, tuned
