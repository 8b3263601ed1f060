"""Arguments and options that several verbs have: what each is called, which values it takes, and what is said of it."""

from typing import Annotated, Literal

import typer

__all__ = [
    "Address",
    "AtlasPath",
    "Beside",
    "Depth",
    "Device",
    "Dtype",
    "DryRun",
    "Encoding",
    "Engine",
    "Facts",
    "Host",
    "LabelColumn",
    "Labels",
    "Launcher",
    "Model",
    "OwnModel",
    "Others",
    "Output",
    "Port",
    "Processes",
    "Protocol",
    "RemoteCode",
    "RunName",
    "Seed",
    "Sites",
    "Text",
    "TextColumn",
    "Window",
    "WorkerThreads",
    "Workers",
]

Model = Annotated[str, typer.Argument(help="Hub id, local folder, or .gguf file.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        help="Precision of the forward pass; auto: bfloat16 where this machine is fast at it and the checkpoint is no better."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps; cuda:0,cuda:1 for a model larger than one GPU.")]
RemoteCode = Annotated[
    Literal["refuse", "allow"], typer.Option(help="Whether to run Python code that a checkpoint brings along.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]
Host = Annotated[str, typer.Option(help="Address to listen on; any but a loopback address needs the token that is printed.")]
OwnModel = Annotated[
    str | None,
    typer.Option("--model", help="The model of the atlas, to read texts that are typed: local folder, or .gguf file."),
]
AtlasPath = Annotated[str, typer.Argument(help="Folder, or address, that `microtome build` has written to.", metavar="ATLAS")]
Others = Annotated[list[str] | None, typer.Argument(help="Atlases that it can be compared with.", metavar="OTHER")]
Beside = Annotated[list[str] | None, typer.Option("--beside", help="An atlas to compare it with; may be given several times.")]


Text = Annotated[
    str | None,
    typer.Argument(
        help="File, folder, JSONL, CSV, Parquet, image folder, hf:DATASET, - for standard input, or `sample`. "
        "Without it: only what the weights tell."
    ),
]
Output = Annotated[
    str,
    typer.Option(
        "--output", "-o", help="Folder, or address (s3://bucket/atlas), of the atlas: new, or an atlas of this model."
    ),
]
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
Facts = Annotated[
    str | None,
    typer.Option(
        help="Look for the units that know the facts of a file, a line each: "
        '{"relation": …, "subject": …, "answer": …, "prompts": ["The capital of {subject} is", …]}; `shipped`: 60 that come along.'
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Look for the units that tell the labels of words, in a file or a folder: a word and its label on each line (CoNLL), or word/TAG."
    ),
]
Engine = Annotated[
    Literal["here", "processes", "ray"],
    typer.Option(help="Where passes over the text run: in this process, in several of this machine, on a Ray cluster."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="How many processes, or Ray workers at most; if not told 2, or as many as have room.")
]
WorkerThreads = Annotated[
    int | None, typer.Option(min=1, help="Cores of a worker; if not told the machine's are divided, on Ray 1.")
]
Processes = Annotated[
    int,
    typer.Option(
        min=1,
        help="Processes that train an autoencoder, on all machines together: on this one, or with --engine ray where that cluster has room; "
        "one that dies costs what was learnt since a checkpoint.",
    ),
]
Launcher = Annotated[
    Literal["here", "torchrun"] | None,
    typer.Option(
        help="Who starts --processes, if not --engine ray: this command, on this machine; or you, on as many as you like, by torchrun: it "
        "then says how, and waits for them.",
        show_default="here",
    ),
]
Address = Annotated[
    str | None, typer.Option(help="Of the Ray cluster, host:port; if not told the one that this machine is part of.")
]
