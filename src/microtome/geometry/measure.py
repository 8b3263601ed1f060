"""The geometry of a model over a text, in memory: what `microtome geometry` writes into an atlas, as records and tables.

Call `measure`. Which passes are made is said in `lens`, what the records mean in `sites` and `attention`.
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from microtome.capture import Depth, Progress, Run, Silent, material_of, run_stages, writing_to
from microtome.core import Site
from microtome.corpus import Joined, Reading, Source
from microtome.geometry.asked import require_depth, require_seed, require_window
from microtome.geometry.attention import HeadSplit
from microtome.geometry.lens import GeometryLens, effects_of, splits_of
from microtome.geometry.sites import SiteGeometry
from microtome.model import Model, load, sites_named

__all__ = ["Geometry", "measure"]

_RUN = "main"


@dataclass(frozen=True, eq=False)
class Geometry:
    """What was measured: records by site, scores of attention by layer (none at depth "quick"), and the same as tables of an atlas.

    `documents` has the SHA-256 of the text that each document number stands for (of its name, for an image).
    """

    documents: Mapping[int, str]
    sites: Mapping[Site, SiteGeometry]
    attention: Mapping[int, HeadSplit]
    tables: Mapping[str, pa.Table]

    @property
    def findings(self) -> tuple[str, ...]:
        """The sentences, most telling first."""
        return tuple(self.tables["findings"]["sentence"].to_pylist())


def measure(
    model: Model | str | Path,
    text: Source,
    *,
    depth: Depth = "standard",
    sites: str | Site | Sequence[str | Site] = (),
    window: int | Joined = 256,
    seed: int = 0,
    reading: Reading | None = None,
    progress: Progress | None = None,
) -> Geometry:
    """Split the hidden states of `model` over `text` into mu, pos, ctx and resid at every site of the stream, and measure each part.

        found = mt.geometry.measure("HuggingFaceTB/SmolLM2-135M", "speeches/")
        found.sites[mt.Site("resid_post", 3)].position.corrected.stable_rank

    `sites` are `Site`s or names of hidden states: `resid_mid` is every layer of it, `attn_out.3` one, `mlp_out.0:6` a range; none named
    is the residual stream, from the embeddings on. `text` is anything that `microtome build` reads, images for a vision model included. Nothing is kept on disk.
    `window=Joined()` is the paper's protocol: 6,400 windows of 512 tokens, drawn from the joined texts. They overlap and none of them
    is held out, so what takes two halves of the documents is undefined.
    Errors: `Refusal` where the model or the text cannot be used. Cost: two or three forward passes, and about a second a site.
    Source: Song & Zhong 2023, arXiv:2310.04861, all sections.
    """
    require_depth(depth)
    require_seed(seed)
    require_window(window)
    subject = model if isinstance(model, Model) else load(model)
    named = sites_named(subject, [sites] if isinstance(sites, str | Site) else sites)
    lens, reporter = GeometryLens(), progress or Silent()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        material = material_of(subject, text, reading or Reading(), window=window, seed=seed)
        run = Run(_RUN, subject, material.prepare(writing_to(folder, _RUN), _RUN), seed, depth, named)
        results = run_stages(run, (lens,), folder / "work", reporter)
        measured, splits = lens.measured(run, results), splits_of(results)
        tables = lens.rows(run, measured, splits, effects_of(results))
        pieces = {name: [rows] if isinstance(rows, pa.Table) else [*rows] for name, rows in tables.items()}
        documents = {
            row["document"]: hashlib.sha256((row["text"] or row["name"]).encode()).hexdigest()
            for row in pq.read_table(folder / "tables" / "documents", columns=["document", "name", "text"]).to_pylist()
        }
    return Geometry(
        documents=documents,
        sites={site.site: site for site in measured},
        attention={split.layer: split for split in splits},
        tables={name: pa.concat_tables(tables) for name, tables in pieces.items()},
    )
