"""Two runs side by side: units that agree and differ, tokens and labels that stayed, and who may be compared with whom."""

import base64
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from microtome.atlas import Atlas
from microtome.atlas.differences import compare_atlases
from microtome.core import Refusal
from microtome.store import TABLES, read_manifest, table_path, write_manifest, write_table
from microtome.web import compare_pages, create_app, export, serve
from microtome.web.compare_units import agreement
from microtome.web.compare_words import jaccard
from tests.unit.web.planted import RUN, corrupt, plant
from tests.unit.web.planted_lenses import plant_lenses
from tests.unit.web.planted_pairs import asking, copied, rates, remodelled, rewritten

LAYERS, WIDTH = 3, 32
UNITS = LAYERS * WIDTH


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    return plant(tmp_path / "atlas", layers=LAYERS, width=WIDTH, documents=4)


def _stats(asked: Any, **wanted: str) -> dict[str, dict[str, Any]]:
    rows = [row for row in asked("compared_units", side="copy:main")["stats"] if all(row[k] == v for k, v in wanted.items())]
    return {row["column"]["name"]: row for row in rows}


def _numbers(text: str, kind: str = "<f4") -> list[float]:
    return np.frombuffer(base64.b64decode(text), kind).tolist()


# ---------------------------------------------------------------------------------------------------------- statistics


def test_two_equal_runs_differ_in_nothing(atlas: Path) -> None:
    rates(atlas, [float(n) for n in range(UNITS)], width=WIDTH)
    ask = asking(atlas, copied(atlas, "copy"))
    found = _stats(ask)
    assert set(found) == {
        "density",
        "kurtosis",
        "max",
        "mean",
        "min",
        "rate",
        "skewness",
        "std",
        "token_share_top",
        "write_norm",
    }
    for name, row in found.items():
        assert row["units"] == UNITS - (name == "kurtosis"), name  # one is not a number
        assert (row["difference"], row["effect"], row["differing"], row["only_one"], row["only_other"]) == (0, 0, 0, 0, 0)
        assert (row["equal"], row["rank"]["value"]) == (row["units"], pytest.approx(1.0))
    assert found["rate"]["tested"] == UNITS
    page = ask("differences", side="copy:main", basis="neurons", stat="rate")
    assert page["total"] == UNITS
    assert {row["difference"] for row in page["rows"]} == {0.0}
    assert all(fact["equal"] for fact in ask("compared", side="copy:main")["facts"])


def test_a_planted_difference_is_found_and_tested_as_a_diff_of_the_atlases_does(atlas: Path) -> None:
    rates(atlas, [float(n % 7) for n in range(UNITS)], width=WIDTH)
    other = rates(copied(atlas, "copy"), [n % 7 + 5.0 * (n == 37) - 0.5 * (n == 3) for n in range(UNITS)], width=WIDTH)
    ask = asking(atlas, other)
    row = _stats(ask)["rate"]
    assert (row["tested"], row["differing"], row["equal"]) == (UNITS, 1, UNITS - 2)
    assert row["difference"] == pytest.approx(4.5 / UNITS)
    assert row["effect"] == pytest.approx(4.5 / UNITS / np.std([n % 7 for n in range(UNITS)], ddof=1))
    page = ask("differences", side="copy:main", basis="neurons", stat="rate")["rows"]
    assert [each["unit"] for each in page[:2]] == ["neurons.1/5", "neurons.0/3"]
    assert (page[0]["one"], page[0]["other"], page[0]["difference"]) == (2.0, 7.0, 5.0)
    assert [page[0][end] for end in ("one_lo", "one_hi", "other_lo", "other_hi")] == pytest.approx([1.02, 2.98, 6.02, 7.98])
    report = {
        each["unit"]: each
        for each in compare_atlases(Atlas(atlas), Atlas(other), None).rows.to_pylist()
        if each["stat"] == "rate"
    }
    for each in page:
        assert each["q"] == pytest.approx(report[each["unit"]]["q"], rel=1e-6)
        assert each["effect"] == pytest.approx(report[each["unit"]]["effect"], rel=1e-6)
    orders = {order: [each["unit"] for each in ask("differences", side="copy:main", basis="neurons", stat="rate", order=order, limit=3)["rows"]] for order in ("effect", "down", "up", "unit")}  # fmt: skip
    assert orders["effect"][:2] == orders["down"][:1] + orders["up"][:1] == ["neurons.1/5", "neurons.0/3"]
    assert orders["unit"] == ["neurons.0/0", "neurons.0/1", "neurons.0/2"]
    alone = ask("differences", side="copy:main", basis="neurons", stat="rate", layer=1, offset=1, limit=2)
    assert (alone["total"], [each["unit"] for each in alone["rows"]]) == (WIDTH, ["neurons.1/0", "neurons.1/1"])


def test_units_are_matched_by_address_whatever_their_place(atlas: Path) -> None:
    rates(atlas, [float(n) for n in range(UNITS)], width=WIDTH)
    other = copied(atlas, "copy")
    rewritten(other, "units", "neurons", lambda row: row if row["layer"] > 0 else None)
    rewritten(other, "unit_stats", f"rates.{RUN}", lambda row: row | {"value": row["value"] + 1} if not row["unit"].startswith("neurons.1/") else None)  # fmt: skip
    ask = asking(atlas, other)
    basis = ask("compared_units", side="copy:main")["bases"][0]
    assert (basis["both"], basis["only_one"], basis["only_other"]) == (UNITS - WIDTH, WIDTH, 0)
    row = _stats(ask)["rate"]
    assert (row["units"], row["only_one"], row["only_other"], row["difference"]) == (WIDTH, 2 * WIDTH, 0, 1.0)
    rows = ask("differences", side="copy:main", basis="neurons", stat="rate", order="unit", limit=200)["rows"]
    assert [(each["unit"], each["one"], each["other"]) for each in rows] == [
        (f"neurons.2/{n}", 64.0 + n, 65.0 + n) for n in range(WIDTH)
    ]


def test_the_control_of_a_rank_correlation_is_that_of_units_dealt_out_anew() -> None:
    rng = np.random.default_rng(0)
    layer = np.repeat(np.arange(4), [50, 100, 30, 20])
    one, other = layer * 0.7 + rng.standard_normal(200), layer * 0.5 + rng.standard_normal(200)
    found = agreement(one, other, layer)
    drawn = []
    for _ in range(2000):
        order = np.lexsort((rng.random(200), layer))
        drawn.append(agreement(one, other[order], layer).value)
    assert found.control == pytest.approx(np.mean(drawn), abs=0.005)
    assert found.control_lo == pytest.approx(np.quantile(drawn, 0.025), abs=0.01)
    assert found.control_hi == pytest.approx(np.quantile(drawn, 0.975), abs=0.01)
    assert (found.control or 0) > 0.15  # layers alone
    flat = agreement(one, other, np.zeros(200, int))
    assert flat.control == pytest.approx(0, abs=1e-12)
    by_hand = agreement(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0]), np.array([0, 0, 1, 1]))
    assert (by_hand.value, by_hand.control) == (pytest.approx(0.8), pytest.approx(0.4))


def test_a_rank_correlation_of_nothing_is_none() -> None:
    for one in (np.ones(9), np.array([1.0, 2.0])):
        assert agreement(one, one, np.zeros(len(one), int)).value is None


def test_values_dealt_out_within_layers_are_no_more_alike_than_their_control(atlas: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((LAYERS, WIDTH)) + np.arange(LAYERS)[:, None]
    rates(atlas, values.ravel().tolist(), width=WIDTH)
    ask = asking(atlas, rates(copied(atlas, "copy"), rng.permuted(values, axis=1).ravel().tolist(), width=WIDTH))
    rank = _stats(ask)["rate"]["rank"]
    assert rank["control_lo"] <= rank["value"] <= rank["control_hi"]
    assert rank["control"] > 0.3


def test_a_statistic_at_several_sites_is_compared_site_by_site_where_the_dictionary_is_the_same(atlas: Path) -> None:
    plant_lenses(atlas)
    row = {
        "run": RUN,
        "name": "toy",
        "file": "dictionaries/toy.safetensors",
        "arrangement": "shared",
        "reads": ["resid_post.0"],
        "units": 6,
        "width": 4,
    }
    write_table(atlas, "dictionaries", "toy", pa.Table.from_pylist([row], TABLES["dictionaries"].schema))
    for path in (atlas, copied(atlas, "copy")):
        manifest = read_manifest(path)
        manifest.runs[RUN].files["dictionaries/toy.safetensors"] = "ab" * 32
        write_manifest(path, manifest)
    other = atlas.parent / "copy"
    rewritten(other, "unit_stats", "factors", lambda row: row | {"value": row["value"] + (row["site"] == "resid_post.1")})
    found = asking(atlas, other)("compared_units", side="copy:main")
    rows = [row for row in found["stats"] if row["basis"] == "factors"]
    assert [(row["site"], row["units"], row["difference"]) for row in rows] == [
        ("resid_post.0", 5, 0.0),
        ("resid_post.1", 5, 1.0),
    ]
    manifest = read_manifest(other)
    manifest.runs[RUN].files["dictionaries/toy.safetensors"] = "cd" * 32
    write_manifest(other, manifest)
    found = asking(atlas, other)("compared_units", side="copy:main")
    assert not [row for row in found["stats"] if row["basis"] == "factors"]
    basis = next(each for each in found["bases"] if each["basis"] == "factors")
    assert (basis["both"], basis["only_one"], basis["only_other"]) == (0, 6, 6)
    assert "learnt apart" in basis["why"]


# ------------------------------------------------------------------------------------------------------------- scatter


def test_the_scatter_has_a_point_for_each_unit_with_its_address(atlas: Path) -> None:
    rates(atlas, [float(n) for n in range(UNITS)], width=WIDTH)
    ask = asking(atlas, rates(copied(atlas, "copy"), [n + 9.0 * (n == 40) for n in range(UNITS)], width=WIDTH))
    found = ask("scatter", side="copy:main", basis="neurons", stat="rate")
    assert (found["of"], found["count"], found["largest"]) == (UNITS, UNITS, 0)
    assert [(each["prefix"], each["layer"], each["count"]) for each in found["groups"]] == [
        (f"neurons.{n}/", n, WIDTH) for n in range(LAYERS)
    ]
    assert _numbers(found["number"], "<i4") == [*range(WIDTH)] * LAYERS
    assert _numbers(found["x"]) == [float(n) for n in range(UNITS)]
    assert _numbers(found["y"])[40] == 49.0
    assert _numbers(found["clear"], "i1") == [int(n == 40) for n in range(UNITS)]


def test_of_many_points_those_of_the_largest_effect_are_shown_and_others_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_pages, "POINTS", 10)
    monkeypatch.setattr(compare_pages, "LARGEST", 4)
    effect = np.zeros(100, np.float32)
    effect[[7, 50, 51, 99]] = (3, -4, 5, -6)
    shown = compare_pages._shown(effect).tolist()
    assert {7, 50, 51, 99} <= set(shown)
    assert (len(shown), shown) == (10, sorted(set(shown)))
    rest = [n for n in shown if n not in (7, 50, 51, 99)]
    assert (rest[0], rest[-1]) == (0, 98)
    assert max(np.diff(rest)) <= 21


# --------------------------------------------------------------------------------------------------- words and labels


def test_the_overlap_of_two_sets_of_tokens() -> None:
    one = np.array([0, 0, 0, 1, 2]), np.array([5, 6, 6, 5, 1])
    other = np.array([0, 0, 1, 3]), np.array([6, 7, 5, 1])
    value = jaccard(one, other, 8, 4)
    assert value[:2].tolist() == [pytest.approx(1 / 3), 1.0]
    assert np.isnan(value[2:]).all()


def test_promoted_tokens_of_a_tuned_model_overlap_but_where_they_were_changed(atlas: Path) -> None:
    other = remodelled(copied(atlas, "copy"), fingerprint="cd" * 20)
    texts = pq.read_table(table_path(atlas, "vocabulary", "corpus"))["text"].to_pylist()
    fresh = range(len(texts), len(texts) + 8)
    for path in (atlas, other):
        rewritten(path, "vocabulary", "corpus", lambda row: row)
        every = [*texts, *(f"new{n}" for n in range(8))]
        write_table(path, "vocabulary", "corpus", pa.table({"token": range(len(every)), "text": every}))
    rewritten(other, "tokens", "neurons", lambda row: row | {"token": fresh[row["rank"]]} if row["unit"].startswith("neurons.1/") and row["end"] == "+" else row)  # fmt: skip
    found = asking(atlas, other)("compared_words", side="copy:main")
    rows = {(each["kind"], each["layer"]): each for each in found["overlaps"]}
    assert {kind for kind, _ in rows} == {"promotes", "suppresses", "fires"}
    assert [rows["promotes", layer]["value"] for layer in range(LAYERS)] == [1.0, 0.0, 1.0]
    assert rows["promotes", None]["value"] == pytest.approx(2 / 3)
    assert rows["suppresses", None]["value"] == rows["fires", None]["value"] == 1.0
    assert rows["promotes", 0]["control"] < 0.15
    assert rows["promotes", None]["units"] == UNITS


def test_of_one_model_only_what_units_fire_on_is_compared(atlas: Path) -> None:
    found = asking(atlas, copied(atlas, "copy"))("compared_words", side="copy:main")
    assert {each["kind"] for each in found["overlaps"]} == {"fires"}


def test_tokens_of_two_vocabularies_are_not_compared(atlas: Path) -> None:
    other = remodelled(copied(atlas, "copy"), fingerprint="cd" * 20)
    rewritten(other, "vocabulary", "corpus", lambda row: row | {"text": f"{row['text']}x"})
    found = asking(atlas, other)("compared_words", side="copy:main")
    assert found["overlaps"] == []
    assert "vocabularies differ" in found["why"]


def test_labels_that_stayed_and_those_that_changed_are_counted(atlas: Path) -> None:
    plant_lenses(atlas)
    other = copied(atlas, "copy")

    def change(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["kind"] != "token" or row["unit"] == "neurons.3/0":
            return row if row["kind"] == "token" else None
        number = int(row["unit"].partition("/")[2])
        return None if number < 4 else row | {"text": "‘other’"} if number < 10 else row

    rewritten(other, "unit_labels", "lenses", change)
    ask = asking(atlas, other)
    rows = {row["kind"]: row for row in ask("compared_words", side="copy:main")["labels"]}
    # units beyond the planted ones have no page; of the 32 that have, 4 lost their label and 6 got another
    assert set(rows) == {"token"}
    row = rows["token"]
    assert (row["both"], row["same"], row["only_one"], row["only_other"]) == (28, 22, 4, 0)
    assert row["share"] == pytest.approx(22 / 28)
    assert row["control"] == pytest.approx(22 / 28 / 28)
    rates(atlas, [float(n) for n in range(UNITS)], width=WIDTH)
    rates(other, [float(n) for n in range(UNITS)], width=WIDTH)
    page = asking(atlas, other)("differences", side="copy:main", basis="neurons", stat="rate", layer=2, order="unit")["rows"]
    assert [(each["label_one"], each["label_other"]) for each in (page[0], page[5], page[20])] == [
        ("‘t00’", None), ("‘t05’", "‘other’"), ("‘t20’", "‘t20’"),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- sides


def test_every_run_of_every_atlas_is_a_side_and_folders_of_one_name_are_numbered(atlas: Path, tmp_path: Path) -> None:
    others = [plant(tmp_path / name / "atlas", layers=LAYERS, width=WIDTH, documents=4) for name in ("a", "b")]
    manifest = read_manifest(atlas)
    manifest.runs["again"] = manifest.runs[RUN].model_copy(update={"status": "building", "seed": 7})
    write_manifest(atlas, manifest)
    ask = asking(atlas, *others)
    found = ask("sides")
    assert found["own"]["side"] == RUN
    assert [(each["side"], each["atlas"], each["run"], each["why"]) for each in found["others"]] == [
        ("again", "", "again", "it is still being built"), ("atlas:main", "atlas", RUN, ""), ("atlas-2:main", "atlas-2", RUN, ""),
    ]  # fmt: skip
    assert ask("sides", run="again")["others"][0]["side"] == RUN
    assert ask("compared", side="atlas-2:main")["other"]["atlas"] == "atlas-2"


@pytest.mark.parametrize(
    ("side", "why"),
    [("nothing", "no such run"), (RUN, "the run that is looked at"), ("copy:nothing", "no such run"), ("", "the run that is looked at"), (":main", "no such run")],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(atlas: Path, side: str, why: str) -> None:
    client = TestClient(create_app(atlas, beside=[copied(atlas, "copy")]), base_url="http://127.0.0.1")
    for path, more in (("compared", {}), ("compared_units", {}), ("compared_words", {}), ("differences", {"basis": "neurons", "stat": "max"}), ("scatter", {"basis": "neurons", "stat": "max"})):  # fmt: skip
        answer = client.get(f"/api/{path}", params={"side": side, **more})
        assert answer.status_code == 404
        assert why in answer.json()["why"]
    answer = client.get("/api/differences", params={"side": "copy:main", "basis": "neurons", "stat": "nothing"})
    assert (answer.status_code, answer.json()["what"]) == (404, "statistic nothing")


def test_models_of_two_shapes_are_shown_beside_each_other_and_their_units_are_not_compared(atlas: Path, tmp_path: Path) -> None:
    other = plant(tmp_path / "deep", layers=LAYERS + 1, width=WIDTH, documents=4)
    ask = asking(atlas, other)
    card = ask("sides")["others"][0]
    assert (card["why"], card["units_why"]) == ("", "planted/toy-4L and planted/toy-4L differ in shape (layers 3 and 4)")
    found = ask("compared", side="deep:main")
    assert [len(each) for each in found["losses"]] == [LAYERS + 1, LAYERS + 2]
    units = ask("compared_units", side="deep:main")
    assert (units["stats"], units["bases"][0]["both"], units["bases"][0]["why"]) == ([], 0, card["units_why"])
    assert ask("compared_words", side="deep:main")["why"] == card["units_why"]
    answer = TestClient(create_app(atlas, beside=[other]), base_url="http://127.0.0.1").get(
        "/api/scatter", params={"side": "deep:main", "basis": "neurons", "stat": "max"}
    )
    assert answer.status_code == 404


def test_what_differs_between_the_runs_is_said_and_measures_stand_side_by_side(atlas: Path) -> None:
    plant_lenses(atlas)
    other = copied(atlas, "copy")
    manifest = read_manifest(other)
    manifest.runs[RUN] = manifest.runs[RUN].model_copy(update={"seed": 5})
    write_manifest(other, manifest)
    rewritten(
        other, "geometry_stats", "lenses", lambda row: row | {"value": row["value"] + 1} if row["stat"] == "leak" else None
    )
    found = asking(atlas, other)("compared", side="copy:main")
    assert [(each["name"], each["one"], each["other"]) for each in found["facts"] if not each["equal"]] == [("Seed", "0", "5")]
    assert found["same_model"]
    assert [each["stat"] for each in found["measures"]] == ["leak"]
    leak = found["measures"][0]
    place = found["sites"].index("resid_post.2")
    assert (leak["one"]["value"][place], leak["other"]["value"][place]) == (0.03, 1.03)
    assert leak["one"]["control"][place] == leak["other"]["control"][place] == 0.5
    assert [(each["side"], each["stat"], each["value"]) for each in found["dictionary_numbers"] if each["stat"] == "explained"] == [
        (0, "explained", 0.8), (1, "explained", 0.8),
    ]  # fmt: skip


def test_what_factors_compare_has_said_is_told_of_both(atlas: Path) -> None:
    row = {
        "run": RUN,
        "name": "one",
        "site": "",
        "stat": "match_cosine with other",
        "value": 0.4,
        "control": 0.1,
        "control_kind": "random directions",
    }
    write_table(atlas, "dictionary_stats", "compared", pa.Table.from_pylist([row], TABLES["dictionary_stats"].schema))
    found = asking(atlas, copied(atlas, "copy"))("compared", side="copy:main")
    assert [(each["side"], each["name"], each["beside"], each["stat"], each["value"], each["control"]) for each in found["matches"]] == [
        (side, "one", "other", "match_cosine", 0.4, 0.1) for side in (0, 1)
    ]  # fmt: skip
    assert found["dictionary_numbers"] == []


def test_an_answer_is_asked_for_anew_when_the_other_atlas_changes(atlas: Path) -> None:
    other = copied(atlas, "copy")
    client = TestClient(create_app(atlas, beside=[other]), base_url="http://127.0.0.1")
    asked = {"side": "copy:main", "basis": "neurons", "stat": "max", "order": "unit"}
    first = client.get("/api/differences", params=asked)
    again = client.get("/api/differences", params=asked, headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    rewritten(other, "unit_stats", "neurons", lambda row: row | {"value": row["value"] + 1} if row["stat"] == "max" else row)
    after = client.get("/api/differences", params=asked, headers={"If-None-Match": first.headers["ETag"]})
    assert after.status_code == 200
    assert [row["difference"] for row in after.json()["rows"]] == pytest.approx([1.0] * 50)


@pytest.mark.parametrize(
    ("path", "table", "writer"),
    [
        ("compared", "geometry_stats", "lenses"), ("compared", "dictionary_stats", "factors"), ("compared", "layer_loss", "vocabulary"),
        ("compared_units", "unit_stats", "neurons"), ("compared_words", "unit_labels", "lenses"),
    ],
)  # fmt: skip
def test_a_damaged_table_of_the_other_atlas_is_named_as_its_own_and_the_rest_is_told(
    atlas: Path, path: str, table: str, writer: str
) -> None:
    plant_lenses(atlas)
    other = copied(atlas, "copy")
    corrupt(other, table, writer)
    found = asking(atlas, other)(path, side="copy:main")
    assert [problem["what"] for problem in found["problems"]] == [f"tables/{table}/{writer}.parquet of copy"]


def test_two_runs_that_are_compared_with_each_other_at_once_do_not_wait_for_each_other(atlas: Path) -> None:
    manifest = read_manifest(atlas)
    manifest.runs["again"] = manifest.runs[RUN]
    write_manifest(atlas, manifest)
    client = TestClient(create_app(atlas), base_url="http://127.0.0.1")
    answers: list[int] = []

    def ask(run: str, side: str) -> None:
        paths = ("compared", "compared_units", "compared_words")
        answers.extend(client.get(f"/api/{path}", params={"run": run, "side": side}).status_code for path in paths)

    threads = [threading.Thread(target=ask, args=pair, daemon=True) for pair in ((RUN, "again"), ("again", RUN))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200] * 6


def test_an_atlas_beside_it_that_is_none_is_refused_before_anything_is_served(atlas: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"there is no atlas\.json in it"):
        serve(atlas, port=0, beside=[tmp_path / "nothing"], started=lambda _: pytest.fail("it was served"))
    with pytest.raises(Refusal, match=r"there is no atlas\.json in it"):
        export(atlas, tmp_path / "site", beside=[tmp_path / "nothing"])
    assert not (tmp_path / "site").exists()


def test_an_export_has_every_comparison_but_the_list_of_units(atlas: Path, tmp_path: Path) -> None:
    rates(atlas, [float(n) for n in range(UNITS)], width=WIDTH)
    folder = export(atlas, tmp_path / "site", beside=[copied(atlas, "copy")]) / "data" / "0"
    assert (folder / "sides.json.gz").is_file()
    for path in ("compared", "compared_units", "compared_words"):
        assert [file.name for file in (folder / path).iterdir()] == ["copy-main.json.gz"]
    names = {file.name for file in (folder / "scatter").iterdir()}
    assert "copy-main_neurons_rate_.json.gz" in names
    assert len(names) == 10
    assert not (folder / "differences").exists()
    assert not (folder / "changes").exists()
