import gc
import json
import math
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from microtome.core import Refusal
from microtome.store import table_path
from microtome.web import create_app, serve
from microtome.web.assets import assets
from microtome.web.browse import Query, units
from microtome.web.reader import Reader, remove_stale
from tests.unit.web.planted import HOSTILE, PLANTED, corrupt, plant

PATHS = (
    "/api/summary",
    "/api/findings",
    "/api/layers",
    "/api/units",
    "/api/unit?address=neurons.1/7",
    "/api/tokens?word=the",
    "/api/progress",
)


def _client(atlas: Path, token: str | None = None) -> TestClient:
    return TestClient(create_app(atlas, token=token), base_url="http://127.0.0.1")


def test_summary_says_what_the_atlas_is(client: TestClient) -> None:
    summary = client.get("/api/summary").json()
    assert summary["name"] == "planted/toy-4L"
    assert summary["complete"] is True
    assert summary["bases"][0]["units"] == 4 * 64
    assert summary["bases"][0]["layers"] == [0, 1, 2, 3]
    assert {column["name"] for column in summary["bases"][0]["columns"]} >= {"density", "kurtosis", "write_norm"}
    assert summary["skipped"] == [
        {"name": "speech-1802.txt", "value": "not text: 43 % of its bytes are not UTF-8", "mono": False}
    ]
    assert summary["absent"] == [{"what": "factors", "why": "no dictionary was trained; run `microtome factors train`"}]
    assert [check["passed"] for check in summary["certificate"]["checks"]] == [True, True, True]
    assert (summary["run"], summary["runs"]) == ("main", [{"name": "main", "text": "speeches", "complete": True}])
    corpus = next(section for section in summary["sections"] if section["title"] == "Corpus of run main")
    assert {"name": "documents", "value": "13, of which 12 used", "mono": False} in corpus["facts"]


def test_findings_come_by_lens_and_rank_and_lead_to_their_unit(client: TestClient) -> None:
    findings = client.get("/api/findings").json()
    assert [each["lens"] for each in findings] == sorted(each["lens"] for each in findings)
    neurons = [each for each in findings if each["lens"] == "neurons"]
    assert [each["rank"] for each in neurons] == list(range(len(neurons)))
    assert neurons[0]["subject"] == "neurons.1/7+"
    assert neurons[0]["unit"] == "neurons.1/7"
    assert next(each for each in findings if each["subject"] == "resid_post.3")["unit"] is None


def test_units_sort_by_a_statistic_and_put_what_has_none_last(client: TestClient) -> None:
    values = []
    for offset in (0, 200):
        page = client.get("/api/units", params={"sort": "kurtosis", "limit": 200, "offset": offset}).json()
        place = [column["name"] for column in page["columns"]].index("kurtosis")
        values += [row["values"][place] for row in page["rows"]]
    assert page["total"] == len(values) == 256
    assert values[-1] is None  # the planted NaN
    assert values[:-1] == sorted(values[:-1], reverse=True)


def test_units_filter_by_layer_and_go_the_other_way(client: TestClient) -> None:
    page = client.get(
        "/api/units", params={"basis": "neurons", "layer": 2, "sort": "density", "order": "up", "limit": 3}
    ).json()
    assert page["total"] == 64
    assert all(row["unit"].startswith("neurons.2/") for row in page["rows"])
    densities = [row["values"][0] for row in page["rows"]]
    assert densities == sorted(densities)


def test_search_finds_the_unit_that_fires_on_a_word_and_the_one_that_promotes_it(client: TestClient) -> None:
    fires = client.get("/api/units", params={"token": "LIBERTY", "match": "fires", "sort": "match"}).json()
    assert fires["search"]["tokens"] == [{"token": fires["search"]["tokens"][0]["token"], "text": PLANTED}]
    assert fires["rows"][0]["unit"] == "neurons.1/7"
    assert fires["rows"][0]["match"] == dict.fromkeys(("promotes", "suppresses", "phrase", "reads", "writes")) | {
        "fires": 6,
        "of": 6,
    }
    assert fires["rows"][0]["fires"] == [PLANTED]
    promotes = client.get("/api/units", params={"token": "liberty", "match": "promotes", "sort": "match"}).json()
    first = next(row for row in promotes["rows"] if row["unit"] == "neurons.0/3")
    assert first["match"]["promotes"] == 0
    assert first["promotes"][0] == PLANTED


def test_search_for_what_is_no_token_suggests_tokens_that_contain_it(client: TestClient) -> None:
    page = client.get("/api/units", params={"token": "libert"}).json()
    assert page["total"] == 0
    assert page["search"]["tokens"] == []
    assert PLANTED in [near["text"] for near in page["search"]["near"]]


def test_unit_page_holds_contexts_with_words_and_activations(client: TestClient) -> None:
    unit = client.get("/api/unit", params={"address": "neurons.1/7"}).json()
    assert (unit["layer"], unit["index"], unit["place"], unit["of"]) == (1, 7, 71, 256)
    assert (unit["previous"], unit["next"]) == ("neurons.1/6", "neurons.1/8")
    tops = [context for context in unit["contexts"] if context["end"] == "top"]
    assert len(tops) == 6
    for context in tops:
        assert context["pieces"][context["centre"]] == PLANTED
        assert context["codes"][context["centre"]] * context["scale"] == pytest.approx(context["value"], rel=1e-5)
        assert len(context["codes"]) == len(context["pieces"])
        assert -128 not in context["codes"]
    assert len(unit["promotes"]) == len(unit["suppresses"]) == 8
    assert [token["score"] for token in unit["promotes"]] == sorted(
        (token["score"] for token in unit["promotes"]), reverse=True
    )
    assert unit["findings"][0]["subject"] == "neurons.1/7+"


def test_first_and_last_unit_have_one_neighbour(client: TestClient) -> None:
    first = client.get("/api/unit", params={"address": "neurons.0/0"}).json()
    last = client.get("/api/unit", params={"address": "neurons.3/63"}).json()
    assert (first["previous"], first["next"]) == (None, "neurons.0/1")
    assert (last["previous"], last["next"]) == ("neurons.3/62", None)


def test_context_text_is_the_documents_text_even_where_characters_are_split(client: TestClient) -> None:
    seen_split = False
    for index in range(0, 64, 5):
        for context in client.get("/api/unit", params={"address": f"neurons.0/{index}"}).json()["contexts"]:
            if context["begin"] is None:
                continue
            parameters = {
                "run": "main",
                "document": context["document"],
                "begin": context["begin"],
                "finish": context["finish"],
            }
            document = client.get("/api/document", params=parameters).json()
            hit = "".join(piece["text"] for piece in document["text"] if piece["hit"])
            spelt = "".join(piece for piece in context["pieces"] if piece != "<|begin|>")
            assert spelt == hit
            seen_split = seen_split or "日" in spelt
    assert seen_split


def test_document_is_a_stretch_around_the_place(tmp_path: Path, client: TestClient) -> None:
    document = client.get("/api/document", params={"run": "main", "document": 1, "begin": 100, "finish": 110}).json()
    assert document["begin"] == 0
    assert document["name"] == "speech-1791.txt"
    texts = [piece["text"] for piece in document["text"]]
    assert [len(text) for text in texts[:2]] == [100, 10]
    assert [piece["hit"] for piece in document["text"]] == [False, True, False]


@pytest.mark.parametrize(
    ("path", "what", "why"),
    [
        ("/api/unit?address=neurons.9/1", "unit neurons.9/1", "this atlas has no unit of that address"),
        ("/api/unit?address=../../etc/passwd", "unit ../../etc/passwd", "this atlas has no unit of that address"),
        ("/api/document?run=main&document=99", "document 99 of run main", "its text is not in this atlas"),
        ("/api/document?run=main&document=12", "document 12 of run main", "its text is not in this atlas"),
    ],
)
def test_what_is_not_there_is_refused_in_words(client: TestClient, path: str, what: str, why: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert (answer.json()["what"], answer.json()["why"]) == (what, why)


@pytest.mark.parametrize(
    "path",
    [
        "/api/units?limit=100000", "/api/units?layer=-1", "/api/units?order=sideways", "/api/units?token=" + "x" * 200,
        "/api/unit", "/api/document?run=main&document=-1",
    ],
)  # fmt: skip
def test_impossible_parameters_are_unprocessable(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 422
    assert set(answer.json()) == {"what", "why", "instead"}


@pytest.mark.parametrize("sort", ["nothing", "s0; DROP TABLE mt_rows", "match", "unit"])
def test_an_unknown_order_is_address_order(client: TestClient, sort: str) -> None:
    rows = client.get("/api/units", params={"sort": sort, "limit": 2}).json()["rows"]
    assert [row["unit"] for row in rows] == ["neurons.0/0", "neurons.0/1"]


def test_answers_are_json_without_nan(client: TestClient) -> None:
    def refuse(name: str) -> float:
        raise AssertionError(name)

    for path in PATHS:
        json.loads(client.get(path).text, parse_constant=refuse)
    shares = client.get("/api/layers").json()["shares"]
    assert sum(each["share"] for each in shares if each["site"] == "resid_post.1" and each["part"] != "mu") == pytest.approx(1)


def test_quartiles_by_layer_are_those_of_the_units(client: TestClient) -> None:
    stats = client.get("/api/layers").json()["stats"]
    found = next(each for each in stats if each["stat"] == "density" and each["layer"] == 1)
    page = client.get("/api/units", params={"layer": 1, "limit": 64}).json()
    values = sorted(row["values"][0] for row in page["rows"])
    assert found["units"] == 64
    assert found["middle"] == pytest.approx((values[31] + values[32]) / 2)


def test_every_answer_has_the_security_headers_and_is_revalidated(client: TestClient) -> None:
    for path in ("/", "/style.css", "/app.js", "/js/Unit.js", *PATHS):
        answer = client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if path != "/api/progress":
            again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304
            assert not again.content


@pytest.mark.parametrize(
    "path",
    [
        "/../atlas.json",
        "/js/../../app.py",
        "/%2e%2e/app.py",
        "/atlas.json",
        "/js/",
        "/built.json",
        "/static/index.html",
        "/tables/units/neurons.parquet",
    ],
)
def test_nothing_in_an_address_names_a_file(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_only_the_fixed_assets_are_served_and_none_has_inline_code(client: TestClient) -> None:
    for path, asset in assets().items():
        assert client.get(f"/{path}").content == asset.content
    page = assets()["index.html"].content.decode()
    assert "<style" not in page
    assert page.count("<script") == page.count('<script type="module" src=')
    for path, asset in assets().items():
        if path == "licences.txt":  # notices stand there word for word, with their addresses
            assert asset.media_type.startswith("text/plain")
            continue
        text = asset.content.decode()
        assert ".innerHTML" not in text, path
        assert "insertAdjacentHTML" not in text, path
        assert "http://" not in text.replace("http://www.w3.org/", ""), path
        assert "https://" not in text, path


def test_a_foreign_host_name_is_turned_away(atlas: Path) -> None:
    client = _client(atlas)
    assert client.get("/api/summary", headers={"Host": "evil.example"}).status_code == 421
    for host in ("localhost:8421", "127.0.0.1", "[::1]:8421", "LOCALHOST", "localhost."):
        assert client.get("/api/progress", headers={"Host": host}).status_code == 200
    for host in ("[::1]x", "localhost:80@evil", "localhost evil.example", ""):
        assert client.get("/api/progress", headers={"Host": host}).status_code == 421
    assert client.get("/api/progress", headers=[("Host", "localhost"), ("Host", "evil.example")]).status_code == 421


def test_a_token_is_asked_for_and_becomes_a_cookie(atlas: Path) -> None:
    client = TestClient(create_app(atlas, token="sesame"), base_url="http://box.example", follow_redirects=False)
    assert client.get("/api/summary").status_code == 401
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/api/summary", headers={"Authorization": "Bearer sesame"}).status_code == 200
    let_in = client.get("/?token=sesame")
    assert let_in.status_code == 303
    assert let_in.headers["location"] == "/"
    assert "HttpOnly" in let_in.headers["set-cookie"]
    assert client.get("/api/summary").status_code == 200


def test_another_edition_of_the_page_is_told_anew(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = _client(atlas)
    first = client.get("/api/findings")
    known = {"If-None-Match": first.headers["etag"]}
    assert client.get("/api/findings", headers=known).status_code == 304
    monkeypatch.setattr("microtome.web.app.edition", lambda: "another")
    assert client.get("/api/findings", headers=known).status_code == 200


def test_indexes_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    kept = [tmp_path / f"microtome-index-{name}" for name in (f"{os.getpid()}-a", "other")]
    for folder in (*kept, tmp_path / f"microtome-index-{ended.stdout.strip()}-b"):
        folder.mkdir()
        (folder / "index.duckdb").touch()
    remove_stale()
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")
def test_a_server_that_is_told_to_end_leaves_no_index(atlas: Path, tmp_path: Path) -> None:
    script = (
        f"from microtome.web import serve; serve({str(atlas)!r}, port=0, started=lambda address: print(address, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path)}
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().decode().strip()
        urllib.request.urlopen(f"{address}api/units", timeout=60).read()
        assert list(tmp_path.glob("microtome-index-*"))
        server.terminate()
        assert server.wait(60) == 143
    assert not list(tmp_path.glob("microtome-index-*"))


def test_an_index_goes_with_its_view(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    view = Reader(atlas).view()
    units(view, Query(token="liberty"))
    assert len(list(tmp_path.iterdir())) == 1
    del view
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_servers_of_one_machine_do_not_take_each_others_tokens_away(atlas: Path) -> None:
    cookies = []
    for token in ("sesame", "thyme"):
        client = TestClient(create_app(atlas, token=token), base_url="http://box.example", follow_redirects=False)
        client.get(f"/?token={token}")
        cookies.append(dict(client.cookies))
    both = cookies[0] | cookies[1]
    assert len(both) == 2
    for token in ("sesame", "thyme"):
        browser = TestClient(create_app(atlas, token=token), base_url="http://box.example", cookies=both)
        assert browser.get("/api/summary").status_code == 200


def test_all_addresses_of_a_machine_are_told_by_its_name(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    import uvicorn

    told: list[str] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setattr("microtome.web.server._bind", lambda host, port: socket.create_server(("127.0.0.1", 0)))
    monkeypatch.setattr("microtome.web.server.socket.gethostname", lambda: "box")
    serve(atlas, host="0.0.0.0", token="sesame", started=told.append)
    [address] = told
    assert address.startswith("http://box:")
    assert address.endswith("/?token=sesame")


def test_a_manifest_that_breaks_is_said_to_be_broken(atlas: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(atlas, tmp_path / "copy")
    client = _client(copy)
    run = client.get("/api/summary").json()["run"]
    (copy / "atlas.json").write_text("{")
    answer = client.get("/api/units", params={"run": run})
    assert answer.status_code >= 400
    assert "atlas.json" in answer.json()["what"] + answer.json()["why"]
    assert str(tmp_path) not in answer.text


def test_serving_a_folder_without_atlas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"there is no atlas\.json in it; name a folder that `microtome build` has made"):
        serve(tmp_path)


def test_serving_at_a_taken_port_is_refused(atlas: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Refusal, match="name another port, or 0 for any free one"):
            serve(atlas, port=taken.getsockname()[1])


def test_no_atlas_yet_gives_a_page_that_says_so_and_fills_when_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "atlas"
    path.mkdir()
    (path / "progress.json").write_text(
        '{"stage": "main", "done": 3, "total": 10, "tokens_per_second": 812.5, "eta_seconds": 7}'
    )
    client = _client(path)
    assert client.get("/").status_code == 200
    empty = client.get("/api/summary").json()
    assert empty["bases"] == []
    assert empty["problems"][0]["why"] == "there is no atlas.json in it"
    before = client.get("/api/progress").json()
    assert before["progress"] == {"stage": "main", "done": 3, "total": 10, "tokens_per_second": 812.5, "eta_seconds": 7.0}
    (path / "progress.json").unlink()
    path.rmdir()
    plant(path, layers=2, width=16)
    after = client.get("/api/progress").json()
    assert after["signature"] != before["signature"]
    assert after["progress"] is None
    assert client.get("/api/summary").json()["bases"][0]["units"] == 32


def test_half_written_progress_is_no_progress(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"stage": "ma')
    assert _client(tmp_path).get("/api/progress").json()["progress"] is None


def test_a_newer_schema_is_named(tmp_path: Path) -> None:
    path = plant(tmp_path / "atlas", layers=2, width=16)
    manifest = json.loads((path / "atlas.json").read_text()) | {"schema_version": 99}
    (path / "atlas.json").write_text(json.dumps(manifest))
    problems = _client(path).get("/api/summary").json()["problems"]
    assert "schema version 99" in problems[0]["why"]
    assert problems[0]["instead"] == "upgrade microtome"


def test_a_damaged_table_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    path = plant(tmp_path / "atlas", layers=2, width=16)
    corrupt(path, "contexts", "neurons")
    client = _client(path)
    problems = client.get("/api/summary").json()["problems"]
    assert [problem["what"] for problem in problems] == ["tables/contexts/neurons.parquet"]
    assert problems[0]["why"].startswith("it is damaged")
    unit = client.get("/api/unit", params={"address": "neurons.1/7"}).json()
    assert unit["contexts"] == []
    assert unit["promotes"]


def test_a_table_that_is_damaged_inside_is_named_on_the_unit_page(tmp_path: Path) -> None:
    path = plant(tmp_path / "atlas", layers=2, width=16)
    file = table_path(path, "tokens", "neurons")
    raw = bytearray(file.read_bytes())
    raw[4 : len(raw) // 2] = bytes(len(raw) // 2 - 4)
    file.write_bytes(raw)
    client = _client(path)
    unit = client.get("/api/unit", params={"address": "neurons.1/7"}).json()
    assert [problem["what"] for problem in unit["problems"]] == ["table tokens"]
    assert unit["problems"][0]["instead"] == "run the same `microtome build` again: damaged tables are found and rebuilt"
    assert unit["promotes"] == []
    assert unit["contexts"]
    assert [problem["what"] for problem in client.get("/api/summary").json()["problems"]] == ["table tokens"]
    assert client.get("/api/units", params={"token": "liberty", "match": "promotes"}).json()["total"] == 0
    assert client.get("/api/units", params={"token": "liberty", "match": "fires"}).json()["total"] > 0


def test_statistics_that_are_damaged_inside_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    path = plant(tmp_path / "atlas", layers=2, width=16)
    file = table_path(path, "unit_stats", "neurons")
    raw = bytearray(file.read_bytes())
    raw[4 : len(raw) // 2] = bytes(len(raw) // 2 - 4)
    file.write_bytes(raw)
    client = _client(path)
    summary = client.get("/api/summary").json()
    assert [problem["what"] for problem in summary["problems"]] == ["table unit_stats"]
    assert summary["bases"][0]["units"] == 32
    unit = client.get("/api/unit", params={"address": "neurons.1/7"}).json()
    assert unit["stats"] == []
    assert unit["promotes"]
    assert unit["contexts"]


def test_a_table_with_missing_columns_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = plant(tmp_path / "atlas", layers=2, width=16)
    pq.write_table(pa.table({"unit": ["neurons.0/0"]}), table_path(path, "tokens", "neurons"))
    problems = _client(path).get("/api/summary").json()["problems"]
    assert problems[0]["why"] == "it lacks the columns control, end, rank, score, token"


def test_weights_alone_have_units_and_no_contexts(tmp_path: Path) -> None:
    client = _client(plant(tmp_path / "atlas", layers=2, width=16, contexts=False))
    summary = client.get("/api/summary").json()
    corpus = next(section for section in summary["sections"] if section["title"] == "Corpus of run main")
    assert corpus["note"].startswith("Weights only")
    assert {each["what"] for each in summary["absent"]} == {"factors", "contexts"}
    unit = client.get("/api/unit", params={"address": "neurons.1/7"}).json()
    assert unit["contexts"] == []
    assert unit["stats"]
    assert client.get("/api/layers").json()["shares"] == []


def test_hostile_text_stays_text(client: TestClient) -> None:
    answer = client.get("/api/findings")
    assert answer.headers["content-type"] == "application/json"
    assert HOSTILE in answer.json()[1]["sentence"]


def test_numbers_that_are_not_finite_become_null() -> None:
    from microtome.web.records import Token

    assert Token(token=1, text="", score=math.nan, control=-math.inf).model_dump() == {
        "token": 1,
        "text": "",
        "score": None,
        "control": None,
    }
