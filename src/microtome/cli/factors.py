"""The verbs of `microtome factors`: train a dictionary, code a text with one, write one as another tool has it. How good they are is asked in `judging`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from microtome.cli.arguments import (
    Address,
    Device,
    DryRun,
    Dtype,
    Encoding,
    Engine,
    LabelColumn,
    Launcher,
    Model,
    Output,
    Processes,
    RemoteCode,
    RunName,
    Seed,
    TextColumn,
    Window,
    Workers,
    WorkerThreads,
)
from microtome.cli.building import EngineOptions, ModelOptions, build_atlas, reading_of
from microtome.cli.dictionaries import DictionaryPath, Text, opened
from microtome.cli.judging import compare, evaluate
from microtome.cli.options import Verb, Way, require_used

if TYPE_CHECKING:
    from microtome.factors.learning import Learning
    from microtome.factors.variant import Variant

__all__ = ["factors"]

factors = typer.Typer(
    help="Sparse dictionaries of hidden states: train them, code a text with one, say how good they are.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Method = Literal["batch-topk", "topk", "matryoshka", "relu", "gated", "jumprelu", "matching", "sparse-coding"]
_PENALISED = ("relu", "gated")
_PAPER_HAS = frozenset(
    {
        "units",
        "method",
        "active",
        "penalty",
        "arrangement",
        "normalisation",
        "passes",
        "processes",
        "launcher",
        "shards",
        "streams",
    }
)
"""Choices that the preset of the source work has made."""
for _verb in (evaluate, compare):
    factors.command()(_verb)


@factors.command(cls=Verb)
def train(
    context: typer.Context,
    model: Model,
    text: Text,
    output: Output = "atlas",
    name: Annotated[str, typer.Option(help="Name of the dictionary: factors@NAME/30. The run's, if none.")] = "",
    sites: Annotated[
        list[str] | None,
        typer.Option(
            "--sites",
            help="Hidden states that share it, may be repeated: resid_pre.4, mlp_out.0:6. Usually six places of the stream.",
        ),
    ] = None,
    units: Annotated[
        int | None, typer.Option(min=1, help="How many factors; as many as the text is enough for, up to 2,048, if not told.")
    ] = None,
    method: Annotated[
        Method, typer.Option(help="How codes are made sparse: a kind of autoencoder, or sparse coding with exact codes.")
    ] = "batch-topk",
    active: Annotated[int, typer.Option(min=1, help="Factors of a code, on average; not of relu and gated.")] = 32,
    penalty: Annotated[float, typer.Option(help="What activity costs, of relu and gated.")] = 5.0,
    arrangement: Annotated[
        Literal["shared", "crosscoder", "transcoder"],
        typer.Option(
            help="shared: every site's state has a code of its own; crosscoder: one code for all sites, which have directions of their own; "
            "transcoder: the first site is coded, the second made."
        ),
    ] = "shared",
    normalisation: Annotated[
        Literal["none", "mean", "mean+rms"],
        typer.Option(help="What states are scaled by, site by site, before they are coded."),
    ] = "mean+rms",
    passes: Annotated[int, typer.Option(min=1, help="How often the text's states are learnt from.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens whose states are looked at, at most.")] = 1 << 18,
    keep: Annotated[
        Literal["bfloat16", "int8", "nothing"],
        typer.Option(
            help="How states are kept on disk while it is trained; nothing: each pass is a forward pass of the model."
        ),
    ] = "bfloat16",
    processes: Processes = 1,
    launcher: Launcher = None,
    shards: Annotated[
        int,
        typer.Option(min=1, help="Processes that share the factors, each with as many; groups of so many share the states."),
    ] = 1,
    streams: Annotated[
        int,
        typer.Option(
            min=1,
            help="Streams of states that batches are made of: each process reads its own. The result depends on it, slightly.",
        ),
    ] = 1,
    preset: Annotated[
        Literal["microtome", "paper"],
        typer.Option(
            help="paper: sparse coding as Yun et al. 2021 did it, to the letter; then of the choices only --name, --sites, --tokens and --keep count."
        ),
    ] = "microtome",
    run: RunName = "main",
    seed: Seed = 0,
    window: Window = 256,
    encoding: Encoding = "utf-8",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    remote_code: RemoteCode = "refuse",
    engine: Engine = "here",
    workers: Workers = None,
    worker_threads: WorkerThreads = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Learn of which sparse directions a model's hidden states are sums, and on what text each of them is active."""
    from dataclasses import replace

    from microtome.atlas import Settings
    from microtome.factors.plan import SOURCE_WORK, Plan
    from microtome.factors.spread import Spread

    _require_used(context, preset, method)
    where = EngineOptions(engine, workers, worker_threads, address)
    plan = Plan(
        name,
        tuple(sites or ()),
        units,
        _method(method, active, penalty),
        arrangement,
        normalisation,
        tokens,
        keep,
        passes=passes,
        streams=streams,
        spread=Spread(processes, shards, launcher=where.launcher(processes, launcher)),
    )
    if preset == "paper":
        plan = replace(SOURCE_WORK, name=name, sites=tuple(sites or SOURCE_WORK.sites), tokens=tokens, keep=keep)
    settings = Settings(run, "standard", seed, window, lenses=("factors",), dictionary=plan)
    reading = reading_of(encoding, text_column, label_column)
    build_atlas(ModelOptions(model, dtype, device, remote_code, where), text, output, settings, reading, dry_run=dry_run)


@factors.command()
def encode(
    model: Model,
    text: Text,
    dictionary: DictionaryPath,
    output: Output = "atlas",
    name: Annotated[str | None, typer.Option(help="Of an atlas that has several dictionaries: which.")] = None,
    site: Annotated[
        str | None, typer.Option(help="Where the states are that a file of another tool is for, if it does not say.")
    ] = None,
    run: RunName = "main",
    seed: Seed = 0,
    window: Window = 256,
    encoding: Encoding = "utf-8",
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    remote_code: RemoteCode = "refuse",
    engine: Engine = "here",
    workers: Workers = None,
    worker_threads: WorkerThreads = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Say on what text each factor of a dictionary is active that is there already, here or as another tool has left it."""
    from microtome.atlas import Settings

    settings = Settings(run, "standard", seed, window, lenses=("factors",), dictionary=opened(dictionary, name, site))
    reading = reading_of(encoding, text_column, label_column)
    where = EngineOptions(engine, workers, worker_threads, address)
    build_atlas(ModelOptions(model, dtype, device, remote_code, where), text, output, settings, reading, dry_run=dry_run)


@factors.command()
def write(
    dictionary: Annotated[str, typer.Argument(help="The atlas that has the dictionary, or its file.")],
    form: Annotated[
        Literal["saelens", "dictionary_learning", "sparsify", "gemma_scope"],
        typer.Option("--format", help="Whose files to write."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write into: one in it for each site.")] = Path(
        "dictionary"
    ),
    name: Annotated[str | None, typer.Option(help="Of an atlas that has several dictionaries: which.")] = None,
) -> None:
    """Write a dictionary as another tool reads it."""
    from microtome.factors.formats import write_dictionary_as
    from microtome.factors.stored import find_dictionary
    from microtome.store import folder_of

    for folder in write_dictionary_as(find_dictionary(folder_of(dictionary), name), output, form):
        typer.echo(folder)


def _require_used(context: typer.Context, preset: str, method: Method) -> None:
    """Refuse choices that the preset has made already, and numbers that the method does not have."""
    every = frozenset(parameter.name or "" for parameter in context.command.params)
    ways = [Way("--preset paper", every - _PAPER_HAS), Way("--preset microtome", every)]
    require_used(context, ways[0] if preset == "paper" else ways[1], ways)
    unused = "active" if method in _PENALISED else "penalty"
    require_used(context, Way(f"--method {method}", every - {unused}), [])


def _method(name: Method, active: int, penalty: float) -> "Variant | Learning":
    from microtome.factors.aims import Aimed
    from microtome.factors.learning import Learning
    from microtome.factors.variants import NESTED, BatchTopK, Gated, JumpRelu, Matching, Relu, Target, TopK

    made: dict[Method, Variant | Learning] = {
        "batch-topk": BatchTopK(active),
        "topk": TopK(active),
        "matryoshka": BatchTopK(active, NESTED),
        "relu": Relu(penalty),
        "gated": Gated(penalty),
        "jumprelu": JumpRelu(Target(float(active))),
        "matching": Matching(active),
        "sparse-coding": Learning(1, Aimed(float(active))),
    }
    return made[name]
