"""How records look on a terminal: refusals, site tables, certificates, query results, caches."""

import getpass
import os
import socket
import sys
from typing import Final
from urllib.parse import urlsplit

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from microtome.core import Refusal
from microtome.model import Certificate, SiteRow, caches

__all__ = ["show_address", "show_caches", "show_certificate", "show_refusal", "show_rows", "show_sites"]

_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def show_address(address: str) -> None:
    """Where the pages are, and on a machine that one is logged in to from another, how to reach them from there."""
    lines = [f"The atlas is at {address}  (Ctrl-C ends)"]
    if os.environ.get("SSH_CONNECTION"):
        port = urlsplit(address).port
        lines.append(f"From your own machine: ssh -N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}")
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def show_caches() -> None:
    """What microtome keeps outside of atlases, and how large it is."""
    kept = [f"{cache.bytes / 1e6:10,.1f} MB  {cache.path}  {cache.what}" for cache in caches()]
    sys.stdout.write("\n".join(kept or ["No caches."]) + "\n")


def show_refusal(refusal: Refusal) -> None:
    """What, why, instead: one line each, on standard error."""
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]Refused[/]: {escape(refusal.what)}", soft_wrap=True)
    console.print(f"  because {escape(refusal.why)}", soft_wrap=True)
    console.print(f"  instead {escape(refusal.instead)}", soft_wrap=True)


def show_sites(model: str, rows: list[SiteRow]) -> None:
    """The site table of a model."""
    table = Table(
        "site", "shape", "meaning, or why it is absent", box=box.SIMPLE, title=f"Sites of {model}", title_justify="left"
    )
    for row in rows:
        shape = " ".join(row.axes) if row.absent is None else "-"
        table.add_row(row.name, shape, escape(row.meaning if row.absent is None else f"absent: {row.absent}"))
    Console().print(table)


def show_certificate(certificate: Certificate) -> None:
    """The identities, how far off they are, and what they are held to."""
    title = f"Certificate of {certificate.model} in {certificate.dtype}"
    table = Table("identity", "worst error", "in layer", "tolerance", "", box=box.SIMPLE, title=title, title_justify="left")
    for row in certificate.identities:
        layer = "" if row.worst_layer is None else str(row.worst_layer)
        table.add_row(
            escape(row.identity), f"{row.worst_error:.1e}", layer, f"{row.tolerance:.0e}", "passed" if row.passed else "FAILED"
        )
    console = Console()
    console.print(table)
    if certificate.dtypes:
        table = Table(
            "layer", "relative error", "worst token's cosine", box=box.SIMPLE, title="Against float32", title_justify="left"
        )
        for row in certificate.dtypes:
            table.add_row(str(row.layer), f"{row.relative_error:.1e}", f"{row.worst_cosine:.4f}")
        console.print(table)


def show_rows(rows: pa.Table, limit: int = 100) -> None:
    """A query result: a table on a terminal; elsewhere tab-separated text, a row a line, with control characters escaped."""
    console = Console()
    if not console.is_terminal:
        console.file.write("\t".join(name.translate(_ESCAPES) for name in rows.column_names) + "\n")
        for row in rows.to_pylist():
            console.file.write("\t".join("" if v is None else str(v).translate(_ESCAPES) for v in row.values()) + "\n")
        return
    table = Table(*rows.column_names, box=box.SIMPLE)
    for row in rows.slice(0, limit).to_pylist():
        table.add_row(*("" if value is None else escape(str(value)) for value in row.values()))
    console.print(table)
    if rows.num_rows > limit:
        console.print(f"{rows.num_rows - limit} more rows; pipe the output to get them all")
