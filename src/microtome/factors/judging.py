"""What is to be judged: dictionaries of one model as they are named, what each has learnt from, and what an atlas has of them already.

How they are judged belongs in `evaluation_lens`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from microtome.core import Refusal, Site
from microtome.factors.anew import Twin
from microtome.factors.dictionary import Dictionary
from microtome.factors.formats import read_dictionary
from microtome.factors.held_out import JUDGE, LearntFrom, learnt_from
from microtome.factors.stored import find_dictionary, is_ours, open_dictionary
from microtome.store import folder_of, is_address

__all__ = ["Judging", "judging_of", "opened"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Judging:
    """What is to be judged: dictionaries of one model, by a text.

    Beside them stand dictionaries that are learnt anew, and, unless there is no `twin`, such of a random twin; with `labels`, a file or folder of
    labelled words, there are probes of few factors, too, and of `words` (none named: some) the factor that tells their labels apart.
    `learnt` says what texts they were learnt from, by name, of those of which it is known (`held_out.learnt_from`). `there` names dictionaries that
    the atlas has already, with their files: these are not written again (`beside`).
    Errors: `Refusal` for no dictionary, for two of the same name, and for a name that could not be part of an address.
    """

    dictionaries: tuple[Dictionary, ...]
    twin: Twin = "drawn"
    labels: Path | None = None
    words: tuple[str, ...] = ()
    learnt: tuple[tuple[str, LearntFrom], ...] = ()
    there: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        names = [each.name for each in self.dictionaries]
        if not names:
            raise Refusal("an evaluation", why="there is no dictionary to judge", instead="name one: --dictionary PATH")
        for name in names:
            if not _NAME.fullmatch(name):
                why = "names of dictionaries become parts of addresses and of files"
                raise Refusal(f"dictionary {name!r}", why=why, instead="call it otherwise: --dictionary NAME=PATH")
        if self.words and self.labels is None:
            why = "its labels are in a labelled text, and none is given"
            raise Refusal(f"senses of {self.words[0]!r}", why=why, instead="give --labels FILE, too")
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            why = f"{names.count(twice[0])} of them have this name"
            raise Refusal(f"dictionary {twice[0]}", why=why, instead="call one of them otherwise: --dictionary NAME=PATH")

    def beside(self, atlas: Path, run: str) -> "Judging":
        """The same, with what the atlas in a folder has of it already, where there is one.

        Errors: `Refusal` where it has another dictionary of a name, or numbers of one in this run from when it was made.
        Cost: a read of each dictionary of these names.
        """
        kept = {each.name: file for each in self.dictionaries if (file := _kept(each, atlas, run)) is not None}
        return replace(self, there=tuple(kept.items()))


def judging_of(
    told: Sequence[str], atlas: Path, run: str, *, name: str | None = None, site: str | None = None, twin: Twin = "drawn",
    labels: Path | None = None, words: Sequence[str] = (),
) -> Judging:  # fmt: skip
    """Dictionaries as they are named: PATH, or NAME=PATH to call one so; of an atlas with several it is the one of that name, or of `name`.

    `site` is where the states are that a file of another tool is for. What they were learnt from is looked up in the atlas that has them.
    Errors: `Refusal` where a name, or a path, is of none; as of `Judging`, and of `Judging.beside` for the `atlas` that the numbers are for.
    """
    found = [_found(each, name, site) for each in told]
    learnt = tuple((dictionary.name, each) for dictionary, each in found if each is not None)
    return Judging(tuple(dictionary for dictionary, _ in found), twin, labels, tuple(words), learnt).beside(atlas, run)


def opened(path: Path, name: str | None, site: str | None) -> Dictionary:
    """A dictionary of ours, or one that another tool has written.

    Errors: `Refusal` as of `find_dictionary` and `read_dictionary`, and for a site where the dictionary says it itself.
    """
    if not is_ours(path):
        return read_dictionary(path, site=None if site is None else Site.parse(site), name=name or _name_of(path))
    if site is not None:
        raise Refusal(f"--site {site}", why="the dictionary says itself where its states are", instead="leave it out")
    return find_dictionary(path, name)


def _found(told: str, name: str | None, site: str | None) -> tuple[Dictionary, LearntFrom | None]:
    """A dictionary by PATH or NAME=PATH, and what it has learnt from, where that is known."""
    calling, _, rest = told.partition("=")
    called = "" if not rest or is_address(told) or Path(told).exists() else calling
    path = folder_of(rest if called else told)
    if called and name is not None:
        raise Refusal(f"--name {name}", why=f"the dictionary is called {called} already", instead="leave one of them out")
    dictionary = opened(path, _named_of(path, called or name), site)
    learnt = learnt_from(path, dictionary)
    return (replace(dictionary, name=called) if called else dictionary), learnt


def _named_of(path: Path, name: str | None) -> str | None:
    """Which of an atlas's dictionaries: the one of that name where there are several; otherwise the name is what it is to be called."""
    if name is None or not is_ours(path) or not path.is_dir():
        return name
    names = {open_dictionary(file).name for file in (path / "dictionaries").glob("*.safetensors")}
    return name if name in names or len(names) > 1 else None


def _kept(dictionary: Dictionary, atlas: Path, run: str) -> str | None:
    """The file in which the atlas has this dictionary already; None where it has not."""
    kept = None
    for table in sorted((atlas / "tables" / "dictionaries").glob("*.parquet")):
        ours = table.name.split(".")[0] == JUDGE
        for row in pq.read_table(table, columns=["run", "name", "file"]).to_pylist():
            if row["name"] != dictionary.name:
                continue
            if open_dictionary(atlas / row["file"]).fingerprint != dictionary.fingerprint:
                why = f"the atlas has another one of this name, of run {row['run']}"
                raise Refusal(f"dictionary {dictionary.name}", why=why, instead="call it otherwise: --dictionary NAME=PATH")
            if row["run"] == run and not ours:
                why = f"run {run} has numbers of it already, from when it was made"
                raise Refusal(f"an evaluation of {dictionary.name} in run {run}", why=why, instead="use another --run NAME")
            if not ours:
                kept = row["file"]
    return kept


def _name_of(path: Path) -> str:
    """A name for what another tool has written, by its folder or file: what could not be part of an address becomes -."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", path.name if path.is_dir() else path.stem).strip("-")[:64]
