"""Documentation cannot rot: fences parse, runnable ones run, links lead somewhere, generated pages are current.

A fence runs when the line before it is `<!-- runnable -->`. The runnable fences of a page run in order in one namespace, in a
folder where the hub id and the texts that the page names are a toy model and toy texts.
"""

import ast
import contextlib
import io
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docs import generate

import microtome
from tests.pretend import apart, pretending
from tests.toys import save_checkpoint, toy_texts
from tests.tree import ROOT, files

PAGES = [path for path in files() if path.suffix == ".md" and "tests" not in path.relative_to(ROOT).parts]
RUNNABLE = "<!-- runnable -->"
_FENCE = re.compile(r"^(?P<mark><!-- runnable -->\n+)?```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str
    runnable: bool

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def fences() -> Iterator[Fence]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start("code"))
            yield Fence(page, line, match["language"], match["code"], match["mark"] is not None)


FENCES = list(fences())


@pytest.mark.parametrize("fence", [f for f in FENCES if f.language == "python"], ids=str)
def test_python_fences_parse_and_use_public_names(fence: Fence) -> None:
    tree = ast.parse(fence.code)
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mt"
    }
    assert used <= set(microtome.__all__)


@pytest.mark.parametrize("fence", [f for f in FENCES if f.language in ("sh", "bash", "shell", "console")], ids=str)
def test_shell_fences_parse(fence: Fence) -> None:
    assert fence.language == "sh", "use sh"
    result = subprocess.run(["bash", "-n"], input=fence.code, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def run_fences(page: Path, folder: Path, *, but: str | None = None) -> None:
    """Run the runnable fences of a page in a folder that is made for them; not those that say `but`."""
    os.chdir(folder)
    save_checkpoint(Path("HuggingFaceTB/SmolLM2-135M"))
    os.mkdir("speeches")
    for number, text in enumerate(toy_texts()):
        Path(f"speeches/{number}.txt").write_text(text, encoding="utf-8")
    names: dict[str, object] = {}
    for fence in FENCES:
        if fence.page == page and fence.runnable and (but is None or but not in fence.code):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(fence.code, str(fence), "exec"), names)


@pytest.mark.parametrize("page", sorted({f.page for f in FENCES if f.runnable}), ids=lambda page: page.name)
def test_runnable_fences_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_fences(page, tmp_path)


def pretend_to_run_the_examples(folder: str) -> None:
    """Those of api.md with the model on a device; of worker processes none has it."""
    with pretending(auto="pretend:0"):
        run_fences(ROOT / "docs" / "api.md", Path(folder), but="mt.Processes(")


@pytest.mark.slow
def test_examples_run_where_the_model_is_on_a_device(tmp_path: Path) -> None:
    apart(pretend_to_run_the_examples, tmp_path)


def test_every_mark_is_before_a_fence() -> None:
    marked = {page: page.read_text(encoding="utf-8").count(f"\n{RUNNABLE}\n") for page in PAGES}
    assert {page: count for page, count in marked.items() if count} == {
        page: sum(f.runnable for f in FENCES if f.page == page) for page in {f.page for f in FENCES if f.runnable}
    }


def test_every_public_name_has_a_runnable_example() -> None:
    shown = " ".join(f.code for f in FENCES if f.page.name == "api.md" and f.runnable)
    assert [name for name in microtome.__all__ if not re.search(rf"\bmt\.{name}\b", shown)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("path", generate.PAGES, ids=lambda path: path.name)
def test_generated_pages_are_current(path: Path) -> None:
    assert path.exists(), "run `make gen`"
    assert path.read_text(encoding="utf-8") == generate.PAGES[path](), "run `make gen`"


def cited(line: str) -> list[tuple[str, str, str | None]]:
    return [(work["who"], work["where"], work["what"]) for work in generate.works(line, "here")]


def test_citations_are_read() -> None:
    assert cited("Geva et al. 2021, arXiv:2012.14913, section 3.2. More.") == [
        ("Geva et al. 2021", "arXiv:2012.14913", "section 3.2")
    ]
    assert cited("Ba et al. 2016, arXiv:1607.06450, eq. 4; Knuth 1997, doi:10.1/x.") == [
        ("Ba et al. 2016", "arXiv:1607.06450", "eq. 4"),
        ("Knuth 1997", "doi:10.1/x", None),
    ]


def test_a_wrong_citation_is_noticed() -> None:
    for line in ("Geva et al., the key-value paper.", "Geva et al. 2021.", "Geva et al. 2021, arXiv:2012.14913"):
        with pytest.raises(ValueError, match="here: not of the form"):
            cited(line)


@pytest.mark.parametrize("verb", ["demo", "test", "test-real", "lint", "docs", "bench", "gen", "clean", "help"])
def test_the_makefile_has_the_verb_and_help_names_it(verb: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{verb}:.* ## \w", makefile, flags=re.MULTILINE)
