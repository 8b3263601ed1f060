"""`mt.show`: what is shown, what is refused at once, and what a panel says to its front end."""

import gzip
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import microtome as mt
from microtome.notebook.bundle import page, pages
from microtome.notebook.panel import Panel


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("findings", "findings"),
        ("geometry", "geometry"),
        ("neurons.1/7", "unit/neurons.1/7"),
        ("unit/neurons.1/7", "unit/neurons.1/7"),
        ("#/unit/neurons.1/7?end=-", "unit/neurons.1/7?end=-"),
        ("http://127.0.0.1:8765/#/units?basis=heads", "units?basis=heads"),
        ("units?token=the+law&match=fires", "units?token=the+law&match=fires"),
        ("#/unit/neurons.1%2F7", "unit/neurons.1/7"),
        ("neurons.1/7?run=main", "unit/neurons.1/7?run=main"),
    ],
)
def test_an_address_is_that_of_a_page_or_a_unit(atlas: Path, given: str, shown: str) -> None:
    assert mt.show(atlas, given).address == shown


def test_an_atlas_is_a_path_or_an_atlas(atlas: Path) -> None:
    for each in (atlas, str(atlas), mt.Atlas(atlas)):
        panel = mt.show(each)
        assert (panel.address, panel.height) == ("findings", 640)


@pytest.mark.parametrize(
    ("address", "options", "message"),
    [
        ("neurons.99/9", {}, r"unit neurons\.99/9"),
        ("unit/neurons.99/9", {}, r"unit neurons\.99/9"),
        ("unit", {}, "address unit: it is neither a unit nor a page; name a unit, such as neurons"),
        ("unit/", {}, "address unit/: it is neither a unit nor a page"),
        ("nonsense", {}, r"neither a unit nor a page.*findings, overview"),
        ("", {}, "neither a unit nor a page"),
        ("neurons.1/7", {"run": "nowhere"}, r"run nowhere.*choose one of main"),
        ("findings?run=nowhere", {}, "run nowhere"),
        ("findings", {"height": 20}, "height 20"),
    ],
)
def test_what_leads_nowhere_is_refused_at_once(atlas: Path, address: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(mt.Refusal, match=f"(?s){message}"):
        mt.show(atlas, address, **options)


def test_a_folder_that_is_no_atlas_is_refused(atlas: Path, tmp_path: Path) -> None:
    for folder, beside in ((tmp_path, ()), (atlas, (tmp_path,))):
        with pytest.raises(mt.Refusal, match=r"no atlas\.json"):
            mt.show(folder, beside=beside)


def test_runs_of_atlases_beside_it_can_be_compared(atlas: Path, runs: Path) -> None:
    for beside in (runs, [mt.Atlas(runs)]):
        panel = mt.show(atlas, beside=beside)
        assert "rivers" in {side["run"] for side in panel._answers.record("sides")["others"]}


def test_a_run_is_named_in_the_address(runs: Path) -> None:
    assert mt.show(runs, "neurons.1/7", run="markets").address == "unit/neurons.1/7?run=markets"
    assert mt.show(runs, "units?run=rivers&basis=heads", run="markets").address == "units?run=markets&basis=heads"


def test_without_anywidget_it_says_what_to_install(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "microtome.notebook.panel")
    with pytest.raises(mt.Refusal, match=r"anywidget is not installed.*pip install 'microtome\[notebook\]'"):
        mt.show(atlas)


def test_the_pages_are_those_of_the_explorer() -> None:
    assert {"findings", "overview", "geometry", "units", "vocabulary", "unit"} <= set(pages())


class Heard:
    """What a panel says to its front end, in order."""

    def __init__(self, panel: Panel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[tuple[dict[str, Any], bytes]] = []
        self._more = threading.Semaphore(0)
        self._panel = panel
        monkeypatch.setattr(panel, "send", self._hear)

    def _hear(self, content: dict[str, Any], buffers: list[bytes]) -> None:
        self.said.append((content, buffers[0]))
        self._more.release()

    def after(self, *messages: dict[str, Any], answers: int = 1) -> None:
        """Say these to the panel, and wait for so many answers."""
        for message in messages:
            self._panel._handle_custom_msg(message, [])
        for _ in range(answers):
            assert self._more.acquire(timeout=60)


def ask(number: str, path: str, body: str | None = None) -> dict[str, Any]:
    return {"kind": "ask", "id": number, "path": path, "body": body}


@pytest.fixture
def heard(atlas: Path, monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(mt.show(atlas, "neurons.1/7"), monkeypatch)


def test_the_page_is_sent_when_it_is_asked_for(heard: Heard) -> None:
    heard.after({"kind": "page"})
    [(message, body)] = heard.said
    assert message == {"kind": "page"}
    assert body == page()
    assert b'name="microtome-source" content="framed"' in gzip.decompress(body)


def test_questions_are_answered_by_number(heard: Heard) -> None:
    heard.after(ask("a.1", "unit?address=neurons.1/7"), ask("b.1", "unit?address=neurons.9/7"), answers=2)
    found = {message["id"]: (message, body) for message, body in heard.said}
    message, body = found["a.1"]
    assert message == {"kind": "answer", "id": "a.1", "status": 200, "zipped": True}
    assert json.loads(gzip.decompress(body))["unit"] == "neurons.1/7"
    message, body = found["b.1"]
    assert (message["status"], message["zipped"]) == (404, False)
    assert json.loads(body)["what"] == "unit neurons.9/7"
    end = time.monotonic() + 10
    while heard._panel._asked:
        assert time.monotonic() < end, "what is answered is forgotten"
        time.sleep(0.01)


def test_what_is_not_understood_is_not_answered(heard: Heard) -> None:
    heard.after(
        {}, {"kind": "ask"}, {"kind": "ask", "id": 1, "path": "summary", "body": None}, {"kind": "abort", "id": "z"}, answers=0
    )
    heard.after(ask("a.2", "progress"))
    assert [message["id"] for message, _ in heard.said] == ["a.2"]


def test_a_question_that_is_taken_back_is_not_answered(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    panel, let = heard._panel, threading.Event()
    app = panel._answers._app

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/api/findings":
            await asyncio.to_thread(let.wait, 60)
        await app(scope, receive, send)

    monkeypatch.setattr(panel._answers, "_app", waiting)
    heard.after(ask("a.1", "findings"), {"kind": "abort", "id": "a.1"}, ask("a.2", "summary"))
    let.set()
    heard.after(ask("a.3", "findings"))
    assert [message["id"] for message, _ in heard.said] == ["a.2", "a.3"]


def test_a_panel_is_led_elsewhere(heard: Heard) -> None:
    panel = heard._panel
    panel.go("neurons.2/3")
    assert panel.address == "unit/neurons.2/3"
    with pytest.raises(mt.Refusal):
        panel.go("neurons.99/9")
    assert panel.address == "unit/neurons.2/3"


def test_a_notebook_that_is_saved_holds_a_line(heard: Heard) -> None:
    panel = heard._panel
    state = json.dumps(panel.get_state(), default=str)
    assert len(state) < 20_000
    [data, _] = panel._repr_mimebundle_() or [{}, {}]
    assert data["text/plain"] == "microtome: unit/neurons.1/7 (run this cell to see it)"
    assert "application/vnd.jupyter.widget-view+json" in data
