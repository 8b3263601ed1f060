"""A training as a value: what is learnt, from which rows, in which steps; and its form in a folder, from which the processes of a training read it.

The folder holds JSON and safetensors; rows are read where they are. Who runs it belongs in `spread` and `rank`, what a dictionary is asked to be in
`plan`.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from microtome.core import Half, Refusal, Site
from microtome.engine import Parts
from microtome.factors.autoencoder import Autoencoder
from microtome.factors.dictionary import Arrangement, Dictionary
from microtome.factors.harvest import Harvest, Harvested, Live, Source, of_half, usual
from microtome.factors.mesh import ALONE, Mesh
from microtome.factors.mixing import Mixing, batches
from microtome.factors.scaling import Scaling
from microtome.factors.training import Trained, Training
from microtome.factors.variant import Variant
from microtome.factors.variants import BatchTopK, Gated, JumpRelu, Matching, Relu, Steps, Tanh, Target, TopK
from microtome.store import Folder, Shelf, committed, fingerprint

__all__ = [
    "CHECKPOINTS", "DICTIONARY", "KINDS", "LAYOUT", "REFUSED", "STEP", "Job", "Told", "folder_of", "identity_of", "read_job", "write_job",
]  # fmt: skip

Told = Mapping[str, str | int | float]
"""What is kept of how a dictionary came about."""

KINDS: Final[dict[str, type]] = {
    kind.__name__: kind for kind in (BatchTopK, Gated, JumpRelu, Matching, Mixing, Relu, Steps, Tanh, Target, TopK, Training)
}
"""Values that have a form in JSON. A new variant is a new entry."""
LAYOUT: Final = "spread.json"
DICTIONARY: Final = "dictionary.safetensors"
CHECKPOINTS: Final = "checkpoints"
REFUSED: Final = "refused.json"
STEP: Final = "step"
"""Names in the folder of a training: how ranks are laid out, the result, checkpoints, why there is no result, and how many steps were taken."""
_JOB: Final = "job.json"
_SCALING: Final = "scaling.safetensors"


@dataclass(frozen=True, eq=False)
class Job:
    """The training of one autoencoder of `units` on the rows of the discover half, and the dictionary that is to be made of it.

    `device` is the one that a single process trains on, and of the kind that each of several does.
    """

    name: str
    units: int
    variant: Variant
    arrangement: Arrangement
    harvested: Harvested | Live
    massive: Literal["left out", "kept"]
    scaling: Scaling
    training: Training
    mixing: Mixing
    seed: int
    model: str
    learnt: Told
    device: str = "cpu"

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where the states are of."""
        return self.harvested.harvest.sites

    def autoencoder(self, mesh: Mesh = ALONE) -> Autoencoder:
        """As it begins; of a mesh, this rank's units of it.

        Errors: `Refusal` where the units cannot be spread so, see `Autoencoder`.
        """
        places = len(self.sites) if self.arrangement == "crosscoder" else 1
        width = self.scaling.centre.shape[1]
        return Autoencoder(
            self.variant, self.units, width, arrangement=self.arrangement, places=places, seed=self.seed, mesh=mesh
        )

    def batches(self, mesh: Mesh = ALONE, first: int = 0) -> Iterator[Float[Tensor, "row place d_model"]]:
        """This rank's rows of every batch from the `first` on, without end."""
        part = (mesh.row_rank, mesh.data)
        return batches(self._share, self.scaling, self.arrangement, self.mixing, part=part, first=first)

    def _share(self, number: int, of: int) -> Source:
        mine = self.harvested if of == 1 else self.harvested.share(number, of)
        every = of_half(mine.rows, Half.DISCOVER)
        return every if self.massive == "kept" else usual(every, self.scaling)

    def dictionary(self, trained: Trained) -> Dictionary:
        """What was learnt, in the form that is used and kept."""
        across, last = self.arrangement == "transcoder", trained.curve[-1]
        return trained.autoencoder.to("cpu").dictionary(
            self.name,
            self.sites[:1] if across else self.sites,
            self.sites[1:] if across else self.sites,
            self.scaling.at(0) if across else self.scaling,
            target_scaling=self.scaling.at(1) if across else None,
            model=self.model,
            learnt={
                **self.learnt,
                "steps": self.training.steps,
                "explained while learning": last.explained,
                "dead while learning": last.dead,
            },
        )


def identity_of(job: Job) -> dict[str, str]:
    """What determines the numbers of a training, by name: how many processes take part does not."""
    told = {name: value for name, value in _told(job).items() if name not in ("parts", "learnt", "name", "device")}
    return {name: json.dumps(value, sort_keys=True) for name, value in told.items()}


def folder_of(job: Job) -> Path:
    """Where several processes train it: beside the states, and that of no other training.

    Errors: `Refusal` for states that no other process can read.
    """
    return Path(str(_where(job.harvested)["place"])) / f"training-{fingerprint(identity_of(job))[:16]}"


def write_job(job: Job, folder: Path) -> None:
    """Put it into a folder.

    Errors: `Refusal` for states that no other process can read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scaling = {"centre": job.scaling.centre, "size": job.scaling.size}
    if job.scaling.longest is not None:
        scaling["longest"] = job.scaling.longest
    with committed(folder / _SCALING) as temporary:
        save_file({name: each.contiguous() for name, each in scaling.items()}, temporary)
    with committed(folder / _JOB) as temporary:
        temporary.write_text(json.dumps(_told(job), indent=1, sort_keys=True))


def read_job(folder: Path) -> Job:
    """What `write_job` put there.

    Errors: `Refusal` where there is none.
    """
    try:
        told, scaling = json.loads((folder / _JOB).read_bytes()), load_file(folder / _SCALING)
    except (OSError, ValueError) as error:
        why = "it has no job.json with its scaling.safetensors"
        raise Refusal(f"training in {folder}", why=why, instead="name the folder of a training") from error
    parts = told["parts"]
    harvest = Harvest(tuple(map(Site.parse, told["sites"])), told["rate"], told["harvest seed"], told["form"])
    kept = Parts(Shelf(Folder(Path(parts["place"])), parts["of"]), parts["fold"], parts["units"])
    return Job(
        name=told["name"],
        units=told["units"],
        variant=cast(Variant, _value(told["variant"])),
        arrangement=told["arrangement"],
        harvested=Harvested(harvest, kept),
        massive=told["massive"],
        scaling=Scaling(scaling["centre"], scaling["size"], scaling.get("longest")),
        training=cast(Training, _value(told["training"])),
        mixing=cast(Mixing, _value(told["mixing"])),
        seed=told["seed"],
        model=told["model"],
        learnt=told["learnt"],
        device=told["device"],
    )


def _told(job: Job) -> dict[str, Any]:
    harvest = job.harvested.harvest
    return {
        "name": job.name,
        "units": job.units,
        "variant": _plain(job.variant),
        "arrangement": job.arrangement,
        "massive": job.massive,
        "training": _plain(job.training),
        "mixing": _plain(job.mixing),
        "seed": job.seed,
        "model": job.model,
        "learnt": dict(job.learnt),
        "device": job.device,
        "sites": [str(site) for site in job.sites],
        "rate": harvest.rate,
        "harvest seed": harvest.seed,
        "form": harvest.form,
        "parts": _where(job.harvested),
    }


def _where(harvested: Harvested | Live) -> dict[str, str | int]:
    """Where rows are, for other processes."""
    if isinstance(harvested, Live):
        why = "states are taken while this process reads the text"
        raise Refusal("training over several processes", why=why, instead="keep states: --keep bfloat16")
    parts = harvested.parts
    if not isinstance(parts, Parts) or not isinstance(parts.shelf.place, Folder):
        raise Refusal("training over several processes", why="states are in no folder", instead="train in one process")
    return {"place": str(parts.shelf.place.path.resolve()), "of": parts.shelf.work, "fold": parts.fold, "units": parts.units}


def _plain(value: object) -> Any:
    """A frozen value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _value(plain: Any) -> Any:
    """What `_plain` was made of."""
    if isinstance(plain, dict):
        return KINDS[plain["kind"]](**{name: _value(each) for name, each in plain.items() if name != "kind"})
    return tuple(map(_value, plain)) if isinstance(plain, list) else plain
