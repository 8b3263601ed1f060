"""The verbs of `microtome factors` that say how good dictionaries are: `evaluate` one, `compare` several, each with all controls."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from microtome.cli.arguments import (
    Device,
    DryRun,
    Dtype,
    Encoding,
    LabelColumn,
    Model,
    Output,
    RemoteCode,
    Seed,
    TextColumn,
    Window,
)
from microtome.cli.building import Opening, build_atlas, reading_of
from microtome.cli.dictionaries import Text, opened
from microtome.core import Refusal

if TYPE_CHECKING:
    from microtome.factors.dictionary import Dictionary
    from microtome.factors.evaluation_lens import Judging
    from microtome.factors.held_out import LearntFrom

__all__ = ["compare", "evaluate"]

_Found = tuple["Dictionary", "LearntFrom | None"]

Labels = Annotated[
    Path | None,
    typer.Option(help="File or folder of labelled words, as of `microtome neurons`: whether few factors tell a label."),
]
TwinOption = Annotated[
    Literal["drawn", "kept", "none"],
    typer.Option(
        help="The model with random weights, from whose states a dictionary is learnt as a control: its embeddings drawn, too, or kept; "
        "none: without it."
    ),
]
Site = Annotated[str | None, typer.Option(help="Where the states are that a file of another tool is for, if it does not say.")]
Run = Annotated[str, typer.Option("--run", help="Name of this run; an atlas can hold several.")]


@dataclass(frozen=True)
class _Asked:
    """Where to, and how the text is cut."""

    output: Path
    run: str
    seed: int
    window: int
    way: Literal["build", "dry run"]


def evaluate(
    model: Model,
    text: Text,
    dictionary: Annotated[
        str,
        typer.Option(help="Atlas or file of the dictionary, or one of another tool, as of `encode`; NAME=PATH to call it so."),
    ],
    output: Output = Path("atlas"),
    name: Annotated[str | None, typer.Option(help="Of an atlas that has several dictionaries: which.")] = None,
    site: Site = None,
    twin: TwinOption = "drawn",
    labels: Labels = None,
    run: Run = "evaluation",
    seed: Seed = 0,
    window: Window = 256,
    encoding: Encoding = "utf-8",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    remote_code: RemoteCode = "refuse",
    dry_run: DryRun = False,
) -> None:
    """Say how good a dictionary is on a text that it has not learnt from: what it explains, what the model loses, whether its factors can be told."""
    reading = (encoding, text_column, label_column)
    opening = Opening(model, dtype, device, remote_code)
    asked = _Asked(output, run, seed, window, "dry run" if dry_run else "build")
    _judge(opening, text, asked, _judging([_found(dictionary, name, site)], twin, labels, asked), reading)


def compare(
    model: Model,
    text: Text,
    dictionary: Annotated[
        list[str],
        typer.Option(
            help="Atlas or file of a dictionary; to be given twice or more. NAME=PATH calls it so; of an atlas with several it is the one of that name."
        ),
    ],
    output: Output = Path("atlas"),
    site: Site = None,
    twin: TwinOption = "none",
    labels: Labels = None,
    run: Run = "comparison",
    seed: Seed = 0,
    window: Window = 256,
    encoding: Encoding = "utf-8",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    remote_code: RemoteCode = "refuse",
    dry_run: DryRun = False,
) -> None:
    """Judge dictionaries of a model beside each other on the same text, and say which directions they have in common."""
    if len(dictionary) < 2:
        why = "there is nothing to compare it with"
        raise Refusal("one dictionary", why=why, instead="give --dictionary twice, or use microtome factors evaluate")
    reading = (encoding, text_column, label_column)
    opening = Opening(model, dtype, device, remote_code)
    asked = _Asked(output, run, seed, window, "dry run" if dry_run else "build")
    found = [_found(each, None, site) for each in dictionary]
    _judge(opening, text, asked, _judging(found, twin, labels, asked), reading)


def _found(told: str, name: str | None, site: str | None) -> "_Found":
    """A dictionary by PATH or NAME=PATH, and what it has learnt from, where that is known."""
    from microtome.factors.held_out import learnt_from

    calling, _, rest = told.partition("=")
    path = Path(told) if not rest or Path(told).exists() else Path(rest)
    called = "" if path == Path(told) else calling
    if called and name is not None:
        raise Refusal(f"--name {name}", why=f"the dictionary is called {called} already", instead="leave one of them out")
    there = _named_of(path, called or name)
    dictionary = opened(path, there, site)
    learnt = learnt_from(path, dictionary)
    return (replace(dictionary, name=called) if called else dictionary), learnt


def _named_of(path: Path, name: str | None) -> str | None:
    """Which of an atlas's dictionaries: the one of that name where there are several; otherwise the name is what it is to be called."""
    from microtome.factors.stored import is_ours, open_dictionary

    if name is None or not is_ours(path) or not path.is_dir():
        return name
    names = {open_dictionary(file).name for file in (path / "dictionaries").glob("*.safetensors")}
    return name if name in names or len(names) > 1 else None


def _judging(
    found: "Sequence[_Found]", twin: Literal["drawn", "kept", "none"], labels: Path | None, asked: _Asked
) -> "Judging":
    """What is to be judged, beside what the atlas has already.

    Errors: `Refusal` where it has another dictionary of a name, or numbers of one of this run.
    """
    from microtome.factors.evaluation_lens import Judging

    dictionaries = tuple(dictionary for dictionary, _ in found)
    learnt = tuple(each for _, each in found if each is not None)
    there = {each.name: file for each in dictionaries if (file := _kept(each, asked)) is not None}
    return Judging(dictionaries, twin, labels, learnt, tuple(there.items()))


def _kept(dictionary: "Dictionary", asked: _Asked) -> str | None:
    """The file in which the atlas has this dictionary already; None where it has not."""
    import pyarrow.parquet as pq

    from microtome.factors.held_out import JUDGE
    from microtome.factors.stored import open_dictionary

    kept = None
    for table in sorted((asked.output / "tables" / "dictionaries").glob("*.parquet")):
        ours = table.name.startswith(f"{JUDGE}.")
        for row in pq.read_table(table, columns=["run", "name", "file"]).to_pylist():
            if row["name"] != dictionary.name:
                continue
            if open_dictionary(asked.output / row["file"]).fingerprint != dictionary.fingerprint:
                why = f"the atlas has another one of this name, of run {row['run']}"
                raise Refusal(f"dictionary {dictionary.name}", why=why, instead="call it otherwise: --dictionary NAME=PATH")
            if row["run"] == asked.run and not ours:
                why = f"run {asked.run} has numbers of it already, from when it was made"
                raise Refusal(
                    f"an evaluation of {dictionary.name} in run {asked.run}", why=why, instead="use another --run NAME"
                )
            if not ours:
                kept = row["file"]
    return kept


def _judge(opening: Opening, text: str, asked: _Asked, judging: "Judging", reading: tuple[str, str | None, str | None]) -> None:
    from microtome.atlas import Atlas, Settings
    from microtome.cli.judged import show_judged

    settings = Settings(asked.run, "standard", asked.seed, asked.window, lenses=("factors",), dictionary=judging)
    dry = asked.way == "dry run"
    build_atlas(opening, text, asked.output, settings, reading_of(*reading), dry_run=dry)
    if not dry:
        show_judged(Atlas(asked.output), asked.run, [each.name for each in judging.dictionaries])
