"""Hub ids, against a stand-in for the hub on this machine that speaks as much of its protocol as downloads need."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from microtome.core import Refusal
from microtome.model import open_checkpoint
from tests.toys import save_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODELS = "/api/models/"

OPEN = """
import json, sys
from microtome.core import Refusal
from microtome.model import open_checkpoint
try:
    checkpoint = open_checkpoint(sys.argv[1])
    print(json.dumps([checkpoint.name, checkpoint.fingerprint, sorted(p.name for p in checkpoint.files.folder.iterdir())]))
except Refusal as refusal:
    print(json.dumps([refusal.what, refusal.why, refusal.instead]))
"""


@dataclass
class Hub:
    """Models by id, each a folder; which are gated; and the paths that were asked for."""

    folders: dict[str, Path]
    gated: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content for a path."""
        path = path.partition("?")[0]
        self.asked.append(path)
        model = next((name for name in self.folders if name in path), None)
        if model is None:
            return 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b""
        rest = path.partition(model)[2]
        if model in self.gated:
            return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"}, b""
        if "/revision/" in rest and not rest.endswith(("/main", "/v1", COMMIT)):
            return 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b""
        if not path.startswith(MODELS):
            return self._file(self.folders[model] / rest.partition(f"/resolve/{COMMIT}/")[2])
        files = sorted(self.folders[model].iterdir())
        if "/tree/" in rest:
            return _json([{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _etag(f)} for f in files])
        return _json({"id": model, "sha": COMMIT, "siblings": [{"rfilename": file.name} for file in files], "tags": []})

    def _file(self, file: Path) -> tuple[int, dict[str, str], bytes]:
        if not file.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        return 200, {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}, file.read_bytes()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@pytest.fixture
def hub(saved: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub with the tiny Llama in safetensors, the same in a pickle, and a gated one."""
    pickled = save_checkpoint(tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    both = Path(pickled.rename(tmp_path / "both"))
    pickled.mkdir()
    for file in both.iterdir():
        if file.name != "model.safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    (both / "modeling_own.py").write_text("raise SystemExit('code ran')")
    (both / "README.md").write_text("large and of no use here")
    folders = {"someone/both": both, "someone/pickled": pickled, "someone/gated": saved}
    served = Hub(folders, gated=frozenset({"someone/gated"}))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = served.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    served.address = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Opener:
    """Opens models in processes of their own, for which `endpoint` is the hub and `home` its cache."""

    home: Path
    endpoint: str

    def open(self, source: str, offline: str = "0") -> list[Any]:
        """Name, fingerprint and files of the checkpoint; or what, why, instead."""
        settings = {"HF_HOME": str(self.home), "HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", OPEN, source]
        done = subprocess.run(command, env={**os.environ, **settings}, cwd=self.home, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def test_a_model_is_downloaded_once_and_opens_offline(hub: Hub, saved: Path, tmp_path: Path) -> None:
    opener = Opener(tmp_path, hub.address)
    name, fingerprint, files = opener.open("someone/both")
    assert name == "someone/both"
    assert fingerprint == open_checkpoint(saved).fingerprint
    assert "model.safetensors" in files
    assert not {"pytorch_model.bin", "modeling_own.py", "README.md"} & set(files)
    assert any(path.endswith("/model.safetensors") for path in hub.asked)
    assert not any(path.endswith((".bin", ".py")) for path in hub.asked)
    hub.asked.clear()
    assert opener.open("someone/both", offline="1") == [name, fingerprint, files]
    assert hub.asked == []
    assert Opener(tmp_path, "http://127.0.0.1:9").open("someone/both") == [name, fingerprint, files]


def test_a_pickle_is_downloaded_where_there_is_nothing_else(hub: Hub, tmp_path: Path) -> None:
    name, _, files = Opener(tmp_path, hub.address).open("someone/pickled@v1")
    assert name == "someone/pickled@v1"
    assert "pytorch_model.bin" in files


def test_what_the_hub_does_not_give(hub: Hub, tmp_path: Path) -> None:
    opener = Opener(tmp_path, hub.address)
    what, why, instead = opener.open("someone/absent")
    assert what == "model someone/absent"
    assert "no such public model on the hub" in why
    assert "hf auth login" in instead
    assert "accepted its terms" in opener.open("someone/gated")[1]
    assert opener.open("someone/both@nowhere")[1] == "the model has no revision nowhere"


def test_no_hub_and_not_in_the_cache(tmp_path: Path) -> None:
    for offline in ("0", "1"):
        what, why, instead = Opener(tmp_path, "http://127.0.0.1:9").open("someone/model", offline)
        assert what == "model someone/model"
        assert "there is no such folder here, the hub cannot be reached" in why
        assert "name a model folder or a .gguf file" in instead


def test_offline_in_this_process() -> None:
    with pytest.raises(Refusal, match="the hub cannot be reached"):
        open_checkpoint("gpt2")
