"""The verbs of `microtome factors` that say how good dictionaries are: `evaluate` one, `compare` several, each with all controls."""

from dataclasses import dataclass
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
from microtome.cli.building import ModelOptions, build_atlas, reading_of
from microtome.cli.dictionaries import Text
from microtome.core import Refusal

if TYPE_CHECKING:
    from microtome.factors.judging import Judging

__all__ = ["compare", "evaluate"]

Labels = Annotated[
    Path | None,
    typer.Option(help="File or folder of labelled words, as of `microtome neurons`: whether few factors tell a label."),
]
Words = Annotated[
    list[str] | None,
    typer.Option(
        help="A word with several labels in the labelled text, may be repeated: which factor tells them apart, site by site."
    ),
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

    output: str
    run: str
    seed: int
    window: int
    dry_run: bool


def evaluate(
    model: Model,
    text: Text,
    dictionary: Annotated[
        str,
        typer.Option(help="Atlas or file of the dictionary, or one of another tool, as of `encode`; NAME=PATH to call it so."),
    ],
    output: Output = "atlas",
    name: Annotated[str | None, typer.Option(help="Of an atlas that has several dictionaries: which.")] = None,
    site: Site = None,
    twin: TwinOption = "drawn",
    labels: Labels = None,
    word: Words = None,
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
    from microtome.atlas.homes import seen
    from microtome.factors.judging import judging_of

    judging = judging_of([dictionary], seen(output), run, name=name, site=site, twin=twin, labels=labels, words=word or ())
    asked = _Asked(output, run, seed, window, dry_run)
    _judge(ModelOptions(model, dtype, device, remote_code), text, asked, judging, (encoding, text_column, label_column))


def compare(
    model: Model,
    text: Text,
    dictionary: Annotated[
        list[str],
        typer.Option(
            help="Atlas or file of a dictionary, twice or more. NAME=PATH calls it so; of an atlas with several it is the one of that name."
        ),
    ],
    output: Output = "atlas",
    site: Site = None,
    twin: TwinOption = "none",
    labels: Labels = None,
    word: Words = None,
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
    from microtome.atlas.homes import seen
    from microtome.factors.judging import judging_of

    judging = judging_of(dictionary, seen(output), run, site=site, twin=twin, labels=labels, words=word or ())
    asked = _Asked(output, run, seed, window, dry_run)
    _judge(ModelOptions(model, dtype, device, remote_code), text, asked, judging, (encoding, text_column, label_column))


def _judge(
    model: ModelOptions, text: str, asked: _Asked, judging: "Judging", reading: tuple[str, str | None, str | None]
) -> None:
    from microtome.atlas import Atlas, Settings
    from microtome.cli.judged import show_judged

    settings = Settings(asked.run, "standard", asked.seed, asked.window, lenses=("factors",), dictionary=judging)
    build_atlas(model, text, asked.output, settings, reading_of(*reading), dry_run=asked.dry_run)
    if not asked.dry_run:
        show_judged(Atlas(asked.output), asked.run, [each.name for each in judging.dictionaries])
