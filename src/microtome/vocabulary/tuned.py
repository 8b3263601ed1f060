"""The tuned lens that a build has learned, kept in its atlas and read back: rows of the table `translators`, and logits by them.

How it is learned and judged is said in `translators`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core import Refusal, Site
from microtome.model import Model
from microtome.store import digest, folder_of, read_manifest, table_path
from microtome.store.schemas import TABLES
from microtome.vocabulary.translators import Translator, head_of

__all__ = ["TunedLens", "translator_rows", "tuned_lens"]

_WRITER = "vocabulary"


@dataclass(frozen=True, eq=False)
class TunedLens:
    """A model with a translator for the states that leave each of its layers but the last, which the head reads as they are."""

    model: Model
    translators: Mapping[int, Translator]

    def logits(self, states: Float[Tensor, "*any d_model"], layer: int) -> Float[Tensor, "*any vocab"]:
        """What states that leave `layer` say of the model's answer, as logits.

        Errors: `Refusal` for a layer that the model does not have, and for what is no tensor of states.
        Cost: 2 d_model (d_model + vocab) FLOP for each state.
        Source: Belrose et al. 2023, arXiv:2303.08112, section 3.
        """
        last, width = self.model.shape.layers - 1, self.model.shape.d_model
        if not isinstance(states, Tensor) or not states.is_floating_point() or states.shape[-1:] != (width,):
            found = f"{states.dtype} of shape {tuple(states.shape)}" if isinstance(states, Tensor) else type(states).__name__
            why = f"{self.model.name} has states of width {width}"
            raise Refusal(f"states in {found}", why=why, instead=f"give a tensor of floats whose last axis is {width}")
        if not isinstance(layer, Integral) or not 0 <= layer <= last:
            why = f"{self.model.name} has layers 0 to {last}"
            raise Refusal(f"the tuned lens at layer {layer}", why=why, instead="name one of them")
        rows = states.reshape(-1, states.shape[-1])
        with torch.inference_mode():
            said = head_of(self.model)(self.translators[layer](rows) if layer < last else rows)
        return said.reshape(*states.shape[:-1], said.shape[-1])


def translator_rows(translators: Sequence[Translator], run: str) -> pa.Table:
    """Rows of the table `translators`: those of A, and b behind them, by site."""
    tables = []
    for each in sorted(translators, key=lambda each: str(each.site)):
        into = each.into if each.onto is None else each.into @ each.onto
        values = torch.cat([into, each.shift[None]]).float().cpu().contiguous()
        rows, width = values.shape
        ends = pa.array(range(0, rows * width + 1, width), pa.int32())
        place = {"run": run, "site": str(each.site), "layer": each.site.layer}
        columns = {name: pa.array([value] * rows) for name, value in place.items()}
        columns |= {"row": pa.array(range(rows)), "values": pa.ListArray.from_arrays(ends, pa.array(values.flatten().numpy()))}
        tables.append(pa.table(columns).cast(TABLES["translators"].schema))
    return pa.concat_tables(tables)


def tuned_lens(atlas: str | Path, model: Model, run: str = "main") -> TunedLens:
    """The tuned lens that a run of the atlas in a folder, or at an address, has learned, for the model that the atlas is of.

    Errors: `Refusal` for the atlas of another model, a run that is not there or has learned none, and a damaged file.
    Cost: a read of the table, 4 layers d_model^2 bytes.
    """
    folder, what = folder_of(atlas), f"the tuned lens of {atlas}"
    manifest = read_manifest(folder)
    if manifest.model.fingerprint != model.fingerprint:
        why = f"it is of {manifest.model.name}, whose weights are not those of {model.name}"
        raise Refusal(what, why=why, instead="load the model that the atlas is of")
    if run not in manifest.runs:
        raise Refusal(what, why=f"there is no run {run}", instead=f"name one of {', '.join(manifest.runs)}")
    path = table_path(folder, "translators", f"{_WRITER}.{run}")
    recorded = manifest.runs[run].files.get(str(path.relative_to(folder)))
    if recorded is None:
        why = f"run {run} has learned none: that takes a text of some length, and a depth beyond quick"
        raise Refusal(what, why=why, instead="run microtome vocabulary MODEL TEXT -o ATLAS")
    if not path.is_file() or digest(path) != recorded:
        raise Refusal(what, why=f"{path} is missing or damaged", instead="run the command that made the atlas again")
    return TunedLens(model, {each.site.layer or 0: each for each in _stored(pq.read_table(path))})


def _stored(table: pa.Table) -> list[Translator]:
    """Translators from their rows, which are sorted by site and row."""
    sites = table["site"].to_pylist()
    values = torch.tensor(table["values"].combine_chunks().flatten().to_numpy()).unflatten(0, (len(sites), -1))
    found = []
    for name, rows in zip(
        dict.fromkeys(sites), values.split([sites.count(name) for name in dict.fromkeys(sites)]), strict=True
    ):
        found.append(Translator(Site.parse(name), rows[:-1], None, rows[-1]))
    return found
