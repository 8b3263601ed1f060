"""Building an atlas from the terminal: what `build` and the verbs of single lenses have in common."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from microtome.core import Refusal

if TYPE_CHECKING:
    from microtome.atlas import Settings
    from microtome.corpus import Reading
    from microtome.engine import Engine
    from microtome.factors.spread import Launcher
    from microtome.model import Model as BuiltModel

__all__ = ["EngineOptions", "ModelOptions", "build_atlas", "reading_of"]


@dataclass(frozen=True)
class EngineOptions:
    """Where passes over the text run, by the options of that."""

    engine: Literal["here", "processes", "ray"] = "here"
    workers: int | None = None
    threads: int | None = None
    address: str | None = None

    def chosen(self) -> "Engine":
        """The engine.

        Errors: `Refusal` for an option that it does not have.
        """
        own = {"--workers": self.workers, "--worker-threads": self.threads} if self.engine == "here" else {}
        for name, value in (own | ({} if self.engine == "ray" else {"--address": self.address})).items():
            if value is not None:
                raise Refusal(
                    f"{name} with --engine {self.engine}", why="it is of another engine", instead="name that: --engine ray"
                )
        if self.engine == "ray":
            from microtome.engine import Cluster

            return Cluster(self.address or "auto", self.workers, self.threads or 1)
        from microtome.engine import HERE, Processes

        return HERE if self.engine == "here" else Processes(self.workers or 2, self.threads)

    def launcher(self, processes: int, named: Literal["here", "torchrun"] | None) -> "Launcher":
        """Who starts the processes of a training.

        Errors: `Refusal` for one that is named where another does, or nobody has to.
        """
        from microtome.factors.launch_cluster import OnCluster
        from microtome.factors.launch_here import ThisMachine
        from microtome.factors.launch_torchrun import Torchrun

        if named is not None and (processes == 1 or self.engine == "ray"):
            why = "one process is this one" if processes == 1 else "processes that train are on that cluster"
            beside = "--processes 1" if processes == 1 else "--engine ray"
            raise Refusal(f"--launcher {named} with {beside}", why=why, instead="leave it out")
        if processes > 1 and self.engine == "ray":
            from microtome.engine import Cluster

            return OnCluster(Cluster(self.address or "auto", threads=self.threads or 1))
        return Torchrun() if named == "torchrun" else ThisMachine()


@dataclass(frozen=True)
class ModelOptions:
    """A model as it was named, how to open it, and where its passes over the text run."""

    name: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str
    remote_code: Literal["refuse", "allow"]
    engines: "EngineOptions" = EngineOptions()

    def load(self) -> "BuiltModel":
        """Opened and built. GPUs that are named for workers of a cluster need not be here: this process then holds the model on its CPU."""
        import torch

        from microtome.model import load

        away = self.engines.engine == "ray" and self.device.startswith("cuda") and not torch.cuda.is_available()
        model = load(self.name, dtype=self.dtype, device="cpu" if away else self.device, remote_code=self.remote_code)
        if not away or model.opening is None:
            return model
        return replace(model, opening=replace(model.opening, device=self.device))


def reading_of(encoding: str, text_column: str | None, label_column: str | None) -> "Reading":
    """How a text is read, by the options of that."""
    from microtome.corpus import Reading

    return Reading(encoding=encoding, text_column=text_column, label_column=label_column)


def build_atlas(
    model: ModelOptions, text: str | None, output: str, settings: "Settings", reading: "Reading", *, dry_run: bool
) -> None:
    """Build, or say what it would take."""
    from microtome.atlas import build, estimate
    from microtome.atlas.folder import require_usable
    from microtome.cli.progress import watching
    from microtome.model import open_checkpoint

    require_usable(output)
    engine = model.engines.chosen()
    if dry_run:
        if text is None:
            raise Refusal(
                "--dry-run", why="without a text there is only the reading of weights", instead="name a text, or leave it out"
            )
        typer.echo(estimate(model.load(), text, output=output, settings=settings, reading=reading).describe())
        return
    with watching() as progress:
        progress.step(f"opening {Path(model.name).name}")
        subject = open_checkpoint(model.name, remote_code=model.remote_code) if text is None else model.load()
        atlas = build(subject, text, output=output, settings=settings, reading=reading, progress=progress, engine=engine)
    typer.echo(f"{atlas.address} is ready: microtome open {shlex.quote(atlas.address)}")
