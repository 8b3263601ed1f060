"""What the page is told of a text that is typed: what `live` finds in it, beside what the atlas knows of the units.

What may be asked, and how much of it, is said in `text_asked`; who may ask, in `security`; whose turn it is, in `turns`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from microtome.core import Refusal, Role, UnitAddress
from microtome.factors.dictionary import Dictionary
from microtome.factors.stored import open_dictionary
from microtome.intervene import Sampling, Written
from microtome.live import (
    Active,
    Clock,
    Largest,
    Loaded,
    LogitLens,
    UnitEdit,
    attention,
    compare,
    decompose,
    largest_of,
    look,
    predicts,
    read_text,
    spelt,
    write,
)
from microtome.live.edited import DRAWS
from microtome.web.reader import View, problem_of
from microtome.web.records import (
    ActiveUnit,
    ActiveUnits,
    Edited,
    Problem,
    TextAttention,
    TextLens,
    TextPage,
    TextParts,
    WrittenText,
    packed,
)
from microtome.web.text_asked import AttentionAsked, EditedAsked, PartsAsked, TextAsked

__all__ = ["dictionaries", "text_attention", "text_edited", "text_page", "text_parts"]

LABELS: Final = 3
_NAMED: Final = 2000
"""Units whose labels and tokens are asked for at once."""


def dictionaries(view: View, atlas: Path, loaded: Loaded) -> tuple[list[Dictionary], list[Problem]]:
    """The dictionaries of a run that are of this model, and what is wrong with the others."""
    return view.once("dictionaries of the run", lambda view: _dictionaries(view, atlas, loaded))


def _dictionaries(view: View, atlas: Path, loaded: Loaded) -> tuple[list[Dictionary], list[Problem]]:
    found, problems = [], []
    try:
        files = [file for (file,) in view.sql("SELECT DISTINCT file FROM dictionaries ORDER BY 1")]
    except Refusal as refusal:
        return [], [problem_of(refusal)]
    for file in files:
        name = Path(file).name
        try:
            own = open_dictionary(atlas / "dictionaries" / name)
            own.require_for(loaded.model.fingerprint, loaded.model.name)
        except Refusal as refusal:
            problems.append(problem_of(refusal).model_copy(update={"what": f"dictionaries/{name}"}))
        else:
            found.append(own)
    return found, problems


def text_page(view: View, atlas: Path, loaded: Loaded, asked: TextAsked, clock: Clock) -> TextPage:
    """A text read by the model: lens and active units."""
    model = loaded.model
    batch = read_text(model, asked.text)
    known, problems = dictionaries(view, atlas, loaded)
    largest, missing = view.once("largest activations", _largest_or_none)
    problems = [*problems, *missing]
    found = look(loaded, batch, known, largest=largest, clock=clock)
    words = Words(loaded.texts)
    lens = None if found.lens is None else _lens(found.lens, words)
    kinds = [_active(view, each, problems) for each in (found.neurons, found.near, found.heads, found.factors)]
    ids = batch.ids[0].tolist()
    offsets = model.tokenizer.backend_tokenizer.encode(asked.text, add_special_tokens=True).offsets
    return TextPage(
        run=view.run, model=model.name, dtype=str(model.dtype).removeprefix("torch."), layers=model.shape.layers,
        heads=model.shape.heads, predicts=predicts(model), ids=ids, pieces=spelt(loaded.texts, ids, asked.text, offsets),
        special=(batch.roles[0] == Role.SPECIAL).tolist(), words=words.texts, word_ids=words.ids, lens=lens,
        neurons=kinds[0], near=kinds[1], heads_active=kinds[2], factors=kinds[3], problems=problems,
    )  # fmt: skip


def text_attention(loaded: Loaded, asked: AttentionAsked, clock: Clock) -> TextAttention:
    """Where the heads of a layer look."""
    found = attention(loaded, read_text(loaded.model, asked.text), asked.layer, clock).numpy()
    heads, tokens, _ = found.shape
    return TextAttention(layer=asked.layer, heads=heads, tokens=tokens, shares=packed(np.rint(found * 65535), "<u2"))


def text_parts(loaded: Loaded, asked: PartsAsked, clock: Clock) -> TextParts:
    """The parts of a token's state."""
    batch = read_text(loaded.model, asked.text)
    found = decompose(loaded, batch, asked.place, layer=asked.layer, inside=asked.inside, token=asked.token, clock=clock)
    word = None if found.token is None else loaded.texts[found.token]
    return TextParts.model_validate(asdict(found) | {"word": word})


def text_edited(view: View, atlas: Path, loaded: Loaded, asked: EditedAsked, clock: Clock) -> Edited:
    """Predictions, and what the model writes, clean beside edited."""
    batch = read_text(loaded.model, asked.text)
    known, _ = dictionaries(view, atlas, loaded)
    edits = [UnitEdit(each.unit, each.change, each.value, each.place) for each in asked.edits]
    written = (None, None)
    found = compare(loaded, batch, edits, known, clock=clock)
    if asked.write is not None:
        how = Sampling(asked.write.temperature, asked.write.top_p, asked.write.seed)
        texts = write(loaded, batch, edits, known, most=asked.write.tokens, sampling=how, clock=clock)
        written = tuple(_written(loaded, each) for each in texts)
    words = Words(loaded.texts)
    clean, edited = (words.rows(each.numpy()) for each in (found.clean, found.edited))
    by_clean, by_edited = found.clean_probability.numpy(), found.edited_probability.numpy()
    return Edited(
        tokens=batch.ids.shape[1], per=found.clean.shape[1], words=words.texts, word_ids=words.ids,
        clean=packed(clean, "<i4"), clean_by_clean=packed(by_clean[0]), clean_by_edited=packed(by_clean[1]),
        edited=packed(edited, "<i4"), edited_by_clean=packed(by_edited[0]), edited_by_edited=packed(by_edited[1]),
        draws=DRAWS, kl=packed(found.kl.numpy()), control=packed(found.control.numpy()), loss_clean=packed(found.loss[0].numpy()),
        loss_edited=packed(found.loss[1].numpy()), written_clean=written[0], written_edited=written[1],
    )  # fmt: skip


class Words:
    """Tokens that an answer names, each spelt once."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._rows: dict[int, int] = {}

    @property
    def ids(self) -> list[int]:
        """Their ids, row by row."""
        return list(self._rows)

    @property
    def texts(self) -> list[str]:
        """How they are spelt."""
        return [self._texts[token] if token < len(self._texts) and self._texts[token] else f"[{token}]" for token in self._rows]

    def rows(self, ids: NDArray[Any]) -> NDArray[Any]:
        """The row of each id."""
        known, back = np.unique(ids, return_inverse=True)
        rows = np.array([self._rows.setdefault(token, len(self._rows)) for token in known.tolist()], np.int32)
        return rows[back].reshape(ids.shape)


def _lens(lens: LogitLens, words: Words) -> TextLens:
    return TextLens(
        sites=[str(site) for site in lens.sites], per=lens.top.shape[2], top=packed(words.rows(lens.top.numpy()), "<i4"),
        probability=packed(lens.probability.numpy()), entropy=packed(lens.entropy.numpy()), target=packed(lens.target.numpy()),
        rank=packed(lens.rank.numpy(), "<i4"),
    )  # fmt: skip


def _written(loaded: Loaded, found: Written) -> WrittenText:
    pieces = [loaded.texts[token] for token in found.ids[0].tolist()]
    return WrittenText(text=found.texts[0], pieces=pieces, log_probability=found.log_probability[0].tolist())


def _told_or(view: View, read: Callable[[View], Any], otherwise: Any, problems: list[Problem]) -> Any:
    """What the atlas tells, or nothing and a problem."""
    try:
        return read(view)
    except Refusal as refusal:
        problems.append(problem_of(refusal))
        return otherwise


def _largest_or_none(view: View) -> tuple[Largest, list[Problem]]:
    problems: list[Problem] = []
    return _told_or(view, _largest, {}, problems), problems


def _largest(view: View) -> Largest:
    found = view.arrow(
        "SELECT u.layer, coalesce(u.expert, -1) AS expert, u.\"index\", max(s.value) FILTER (stat = 'max') AS most, "
        "min(s.value) FILTER (stat = 'min') AS least FROM unit_stats s JOIN (SELECT DISTINCT unit, layer, expert, \"index\" FROM units "
        "WHERE basis = 'neurons') u ON u.unit = s.unit WHERE stat IN ('max', 'min') AND isfinite(s.value) GROUP BY 1, 2, 3"
    )
    columns = (found[name].to_numpy() for name in ("layer", "expert", "index", "most", "least"))
    layer, expert, index, most, least = (np.nan_to_num(each) for each in columns)
    return largest_of(layer, expert, index, most, least) if len(layer) else {}


def _active(view: View, found: Active, problems: list[Problem]) -> ActiveUnits:
    plain = [str(UnitAddress.parse(each).unit) for each in found.units]
    sites = [str(site) if (site := UnitAddress.parse(each).site) is not None else None for each in found.units]
    wanted = list(dict.fromkeys(plain))
    parts = [wanted[begin : begin + _NAMED] for begin in range(0, len(wanted), _NAMED)]
    ends = _told_or(view, lambda view: _ends(view, parts), {}, problems)
    labels = _told_or(view, lambda view: _labels(view, parts), {}, problems)
    tokens = _told_or(view, lambda view: _tokens(view, parts), {}, problems)
    units = [
        ActiveUnit(
            unit=unit, site=site, largest=ends.get((unit, site, "max")), smallest=ends.get((unit, site, "min")),
            label=labels.get((unit, "top")), label_below=labels.get((unit, "bottom")), promotes=tokens.get((unit, "+"), []), suppresses=tokens.get((unit, "-"), []),
        )
        for unit, site in zip(plain, sites, strict=True)
    ]  # fmt: skip
    return ActiveUnits(
        per=found.index.shape[1], units=units, index=packed(found.index.numpy(), "<i4"), values=packed(found.value.numpy()),
        sizes=packed(found.size.numpy()),
    )  # fmt: skip


_AMONG: Final = "unit IN (SELECT unnest(?::VARCHAR[]))"


def _ends(view: View, parts: Sequence[list[str]]) -> dict[tuple[str, str | None, str], float]:
    """Largest and smallest activations, by unit and site; of a neuron, which has one site, by no site."""
    found: dict[tuple[str, str | None, str], float] = {}
    query = (
        f"SELECT unit::VARCHAR, site::VARCHAR, stat::VARCHAR, value FROM unit_stats WHERE stat IN ('max', 'min') AND {_AMONG}"
    )
    for part in parts:
        for unit, site, stat, value in view.sql(query, part):
            found[unit, site if unit.startswith("factors") else None, stat] = value
    return found


def _labels(view: View, parts: Sequence[list[str]]) -> dict[tuple[str, str], str]:
    """What units are called by the label that is surest, by unit and end: `bottom` is that of activations below 0. At which depth one is active is no name."""
    query = (
        "SELECT unit::VARCHAR, CASE WHEN \"end\" = 'bottom' THEN 'bottom' ELSE 'top' END AS side, "
        "min_by(text, (coalesce(q, 1), -coalesce(value, 0), text)) "
        f"FROM unit_labels WHERE kind <> 'level' AND {_AMONG} GROUP BY 1, 2"
    )
    return {(unit, side): text for part in parts for unit, side, text in view.sql(query, part)}


def _tokens(view: View, parts: Sequence[list[str]]) -> dict[tuple[str, str], list[str]]:
    """The first tokens at each end of units."""
    query = (
        'SELECT t.unit::VARCHAR, t."end"::VARCHAR, list(coalesce(v.text, t.token::VARCHAR) ORDER BY t.rank) FROM tokens t '
        f"LEFT JOIN vocabulary v ON v.token = t.token WHERE t.rank < {LABELS} AND t.{_AMONG} GROUP BY 1, 2"
    )
    return {(unit, end): texts for part in parts for unit, end, texts in view.sql(query, part)}
