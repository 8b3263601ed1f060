"""An atlas of several runs: every answer is of one, and holds no number, word or sentence of another."""

import base64
import gzip
import json
import math
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from microtome.store import read_manifest, write_manifest
from microtome.web import create_app, export
from tests.unit.web.built import WEIGHTS, WORDS, ask

TEXTS = sorted(WORDS)
RUNS = [WEIGHTS, *TEXTS]
MEASURED = ("mean", "std", "max", "min", "kurtosis")
"""Statistics that only a text can give."""


@pytest.fixture(scope="module")
def client(runs: Path) -> TestClient:
    return TestClient(create_app(runs), base_url="http://127.0.0.1")


def _get(client: TestClient, path: str, run: str | None = None, **parameters: Any) -> Any:
    answer = client.get(f"/api/{path}", params=parameters | ({"run": run} if run else {}))
    assert answer.status_code == 200, answer.text
    return answer.json()


def _units(runs: Path, basis: str = "neurons") -> list[str]:
    return [unit for (unit,) in ask(runs, 'SELECT unit FROM {units} WHERE basis = ? ORDER BY layer, "index"', basis)]


def _pages(client: TestClient, runs: Path, run: str) -> list[Any]:
    """Every endpoint's answer for a run, with a few units of each basis."""
    units = [*_units(runs)[::29], *_units(runs, "heads")[::5]]
    return [
        *(
            _get(client, path, run)
            for path in ("summary", "findings", "layers", "overview", "geometry", "geometry_heads", "maps", "heads")
        ),
        *(_get(client, "geometry_site", run, site=each["site"]) for each in _get(client, "geometry", run)["sites"]),
        *(_get(client, "related", run, unit=unit) for unit in units),
        *(_get(client, "units", run, basis=basis, limit=200) for basis in ("neurons", "heads")),
        *(_get(client, "unit", run, address=unit) for unit in units),
    ]


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _floats(each)
    elif isinstance(value, float):
        yield value


def _columns(runs: Path, table: str) -> list[str]:
    kinds = ask(runs, f"DESCRIBE SELECT * FROM {{{table}}}")
    return [name for name, kind, *_ in kinds if kind in ("FLOAT", "DOUBLE")]


def _written(runs: Path, run: str | None) -> set[float]:
    """Every telling number in the tables: of one run, or (None) of the tables that hold for any."""
    found = set()
    for table in sorted(path.name for path in (runs / "tables").iterdir()):
        per_run = "run" in {name for name, *_ in ask(runs, f"DESCRIBE SELECT * FROM {{{table}}}")}
        if per_run != (run is not None):
            continue
        for column in _columns(runs, table):
            condition, parameters = ("WHERE run = ?", [run]) if per_run else ("", [])
            rows = ask(runs, f"SELECT DISTINCT {column} FROM {{{table}}} {condition}", *parameters)
            found |= {value for (value,) in rows if value is not None and _telling(value)}
    return found


def _telling(value: float) -> bool:
    """Whether a number is no simple fraction: shares and counts, and what lies between two of them, come up by chance."""
    return math.isfinite(value) and abs(value - Fraction(value).limit_denominator(1000)) > 1e-12


def test_the_first_complete_run_over_a_text_is_shown_where_none_is_named(client: TestClient) -> None:
    summary = _get(client, "summary")
    assert summary["run"] == TEXTS[0]
    assert summary == _get(client, "summary", TEXTS[0])
    assert summary["runs"] == [{"name": name, "text": None if name == WEIGHTS else "texts", "complete": True} for name in RUNS]
    for path, parameters in (("findings", {}), ("layers", {}), ("units", {}), ("unit", {"address": "neurons.1/7"})):
        assert _get(client, path, **parameters) == _get(client, path, TEXTS[0], **parameters)


def test_an_unfinished_run_gives_way_to_one_that_is_complete(runs: Path, tmp_path: Path) -> None:
    atlas = shutil.copytree(runs, tmp_path / "atlas")
    _unfinish(atlas, TEXTS[0])
    client = TestClient(create_app(atlas), base_url="http://127.0.0.1")
    assert _get(client, "summary")["run"] == TEXTS[1]
    assert _get(client, "summary", TEXTS[0])["complete"] is False
    _unfinish(atlas, TEXTS[1])
    assert _get(client, "summary")["run"] == WEIGHTS


def _unfinish(atlas: Path, run: str) -> None:
    manifest = read_manifest(atlas)
    manifest.runs[run] = manifest.runs[run].model_copy(update={"status": "building", "files": {}})
    write_manifest(atlas, manifest)


@pytest.mark.parametrize(
    "path", ["summary?", "findings?", "layers?", "units?", "unit?address=neurons.1/7&", "document?document=0&"]
)
def test_a_run_that_is_not_there_is_refused(client: TestClient, path: str) -> None:
    answer = client.get(f"/api/{path}run=oceans")
    assert answer.status_code == 404
    assert answer.json() == {
        "what": "run oceans",
        "why": "this atlas has no run of that name",
        "instead": f"choose one of {', '.join(RUNS)}",
    }


def test_no_number_of_one_run_is_in_the_answers_of_another(client: TestClient, runs: Path) -> None:
    written = {run: _written(runs, run) for run in RUNS}
    free = _written(runs, None)
    for run in RUNS:
        shown = {value for page in _pages(client, runs, run) for value in _floats(page)}
        assert len(shown & written[run]) > 100, "the answers hold the run's own numbers"
        for other in RUNS:
            foreign = written[other] - written[run] - free
            assert not shown & foreign, (run, other)
    assert all(len(written[run] - written[other] - free) > 5000 for run, other in (TEXTS, TEXTS[::-1]))


@pytest.mark.parametrize("run", TEXTS)
def test_no_word_of_one_text_is_in_the_answers_of_another(client: TestClient, runs: Path, run: str) -> None:
    other = next(name for name in TEXTS if name != run)
    pages = [_get(client, "unit", run, address=unit) for unit in _units(runs)[::7]]
    said = " ".join("".join(context["pieces"]) for page in pages for context in page["contexts"])
    for words, there in ((WORDS[run], True), (WORDS[other], False)):
        for word in (*words[0], *words[1]):
            assert (re.search(rf"\b{word}\b", said) is not None) == there, (run, word)
    rows = _get(client, "units", run, basis="neurons", limit=200)["rows"]
    fires = {text.strip() for row in rows for text in row["fires"]}
    assert fires & {*WORDS[run][0], *WORDS[run][1]}
    assert not fires & {*WORDS[other][0], *WORDS[other][1]}
    for word in WORDS[other][0]:
        assert _get(client, "units", run, token=word, match="fires")["total"] == 0
        assert _get(client, "units", other, token=word, match="fires")["total"] > 0


@pytest.mark.parametrize("run", RUNS)
def test_values_of_units_are_those_of_the_run(client: TestClient, runs: Path, run: str) -> None:
    page = _get(client, "units", run, basis="neurons", limit=200)
    names = [column["name"] for column in page["columns"]]
    stats = {
        stat for (stat,) in ask(runs, "SELECT DISTINCT stat FROM {unit_stats} WHERE run = ? AND unit LIKE 'neurons%'", run)
    }
    assert set(names) == stats
    assert (set(MEASURED) <= stats) == (run != WEIGHTS)
    expected = {
        (unit, stat): value for unit, stat, value in ask(runs, "SELECT unit, stat, value FROM {unit_stats} WHERE run = ?", run)
    }
    assert len(page["rows"]) == len(_units(runs))
    for row in page["rows"]:
        assert row["values"] == [expected[row["unit"], name] for name in names]
    rows = ask(
        runs,
        "SELECT stat, site, value, control, lo, hi, q FROM {unit_stats} WHERE run = ? AND unit = 'neurons.1/7' ORDER BY 1, 2",
        run,
    )
    stats = _get(client, "unit", run, address="neurons.1/7")["stats"]
    keys = ("stat", "site", "value", "control", "lo", "hi", "q")
    assert [tuple(each[key] for key in keys) for each in stats] == [(a, b or "", *rest) for a, b, *rest in rows]


def test_measured_values_of_a_unit_differ_from_run_to_run(client: TestClient) -> None:
    stats = [_get(client, "unit", run, address="neurons.1/7")["stats"] for run in TEXTS]
    mine, theirs = ({each["stat"]: each["value"] for each in found} for found in stats)
    assert all(mine[stat] != theirs[stat] for stat in MEASURED)
    assert mine["write_norm"] == theirs["write_norm"]


@pytest.mark.parametrize("run", TEXTS)
def test_contexts_are_those_of_the_run(client: TestClient, runs: Path, run: str) -> None:
    rows = ask(
        runs,
        'SELECT c."end", c.rank, c.half, c.value, c."window", c.position, w.document FROM {contexts} c JOIN {windows} w '
        'ON w.run = c.run AND w."window" = c."window" WHERE c.run = ? AND c.unit = ? ORDER BY 1, 2, 3',
        run,
        "neurons.2/11",
    )
    contexts = _get(client, "unit", run, address="neurons.2/11")["contexts"]
    keys = ("end", "rank", "half", "value", "window", "position", "document")
    assert len(rows) == 60
    assert [tuple(each[key] for key in keys) for each in contexts] == rows


def test_the_run_of_the_weights_has_no_contexts(client: TestClient, runs: Path) -> None:
    unit = _get(client, "unit", WEIGHTS, address="neurons.1/7")
    assert unit["contexts"] == []
    assert unit["promotes"] == _get(client, "unit", TEXTS[0], address="neurons.1/7")["promotes"]
    page = _get(client, "units", WEIGHTS, basis="neurons", limit=200)
    assert all(row["fires"] == [] for row in page["rows"])
    summary = _get(client, "summary", WEIGHTS)
    assert not {"contexts", "windows", "documents", "layer_loss"} & set(summary["tables"])
    assert "contexts" in {each["what"] for each in summary["absent"]}
    layers = _get(client, "layers", WEIGHTS)
    assert (layers["shares"], layers["losses"]) == ([], [])
    assert client.get("/api/document", params={"run": WEIGHTS, "document": 0}).status_code == 404


@pytest.mark.parametrize("run", RUNS)
def test_findings_and_layers_are_those_of_the_run(client: TestClient, runs: Path, run: str) -> None:
    found = _get(client, "findings", run)
    assert [(each["lens"], each["rank"], each["sentence"]) for each in found] == ask(
        runs, "SELECT lens, rank, sentence FROM {findings} WHERE run = ? ORDER BY lens, rank, subject", run
    )
    about = [each for each in found if each["unit"] == "neurons.1/7"]
    assert _get(client, "unit", run, address="neurons.1/7")["findings"] == about
    layers = _get(client, "layers", run)
    shares = ask(runs, "SELECT site, part, share, norm FROM {geometry_shares} WHERE run = ? ORDER BY layer, site, part", run)
    assert [(each["site"], each["part"], each["share"], each["norm"]) for each in layers["shares"]] == shares
    losses = ask(runs, "SELECT objective, site, loss FROM {layer_loss} WHERE run = ? ORDER BY objective, layer, site", run)
    assert sorted((a["objective"], a["site"] or "", a["loss"]) for a in layers["losses"]) == sorted(
        (a, b or "", c) for a, b, c in losses
    )


@pytest.mark.parametrize("run", TEXTS)
def test_quartiles_are_of_the_run(client: TestClient, runs: Path, run: str) -> None:
    found = {(each["stat"], each["layer"]): each for each in _get(client, "layers", run)["stats"] if each["basis"] == "neurons"}
    for layer in range(3):
        rows = ask(
            runs,
            "SELECT value FROM {unit_stats} JOIN {units} USING (unit) WHERE run = ? AND stat = 'std' AND layer = ? AND basis = 'neurons'",
            run,
            layer,
        )
        low, middle, high = np.quantile([value for (value,) in rows], (0.25, 0.5, 0.75))
        each = found["std", layer]
        assert (each["low"], each["middle"], each["high"]) == pytest.approx((low, middle, high))


@pytest.mark.parametrize("run", TEXTS)
def test_the_model_card_counts_the_run(client: TestClient, runs: Path, run: str) -> None:
    summary = _get(client, "summary", run)
    assert [section["title"] for section in summary["sections"]] == ["Model", "Shape", f"Corpus of run {run}", f"Run {run}"]
    documents, tokens = ask(runs, "SELECT count(*), sum(tokens) FROM {documents} WHERE run = ?", run)[0]
    facts = {fact["name"]: fact["value"] for fact in summary["sections"][2]["facts"]}
    assert facts["documents"] == f"{documents}, of which {documents} used"
    assert facts["tokens"] == f"{tokens:,}"
    for table, rows in summary["tables"].items():
        condition = "" if table in ("units", "tokens", "vocabulary", "token_meanings", "links") else f"WHERE run = '{run}'"
        assert rows == ask(runs, f"SELECT count(*) FROM {{{table}}} {condition}")[0][0], table


def test_documents_are_the_runs_own(client: TestClient, runs: Path) -> None:
    for run in TEXTS:
        found = _get(client, "document", run, document=3)
        [(text,)] = ask(runs, "SELECT text FROM {documents} WHERE run = ? AND document = 3", run)
        assert (found["run"], "".join(piece["text"] for piece in found["text"])) == (run, text)


def test_an_export_holds_every_complete_run(client: TestClient, runs: Path, tmp_path: Path) -> None:
    def read(path: str) -> Any:
        return json.loads(gzip.decompress((site / "data" / f"{path}.json.gz").read_bytes()))

    site = export(runs, tmp_path / "site")
    order = read("runs")
    assert order == [TEXTS[0], WEIGHTS, TEXTS[1]]
    units = [unit for basis in ("heads", "neurons") for unit in _units(runs, basis)]
    for number, run in enumerate(order):
        for name in ("summary", "findings", "layers"):
            assert read(f"{number}/{name}") == _get(client, name, run)
        place = units.index("neurons.1/7")
        mine, served = read(f"{number}/units/{place // 16}")[place % 16], _get(client, "unit", run, address="neurons.1/7")
        rows, contexts = mine.pop("contexts"), served.pop("contexts")
        assert mine == served
        assert [row[4] for row in rows] == [context["value"] for context in contexts]
        for row, context in zip(rows, contexts, strict=True):
            _, pieces, _, _ = read(f"{number}/windows/{row[6] // 16}")[str(row[6])]
            codes = np.frombuffer(base64.b64decode(row[9]), np.int8)
            there = [row[8] + j for j in range(len(codes)) if codes[j] != -128]
            assert [pieces[place] for place in there] == context["pieces"]


def test_an_export_leaves_out_what_is_not_complete(runs: Path, tmp_path: Path) -> None:
    atlas = shutil.copytree(runs, tmp_path / "atlas")
    _unfinish(atlas, TEXTS[0])
    data = export(atlas, tmp_path / "site") / "data"
    assert json.loads(gzip.decompress((data / "runs.json.gz").read_bytes())) == [TEXTS[1], WEIGHTS]
    summary = json.loads(gzip.decompress((data / "0" / "summary.json.gz").read_bytes()))
    assert [run["name"] for run in summary["runs"]] == [WEIGHTS, TEXTS[1]]
    assert sorted(path.name for path in data.iterdir() if path.is_dir()) == ["0", "1"]
