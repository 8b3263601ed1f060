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
answers = []
for source in sys.argv[1:]:
    try:
        checkpoint = open_checkpoint(source)
        files = sorted(p.name for p in checkpoint.files.folder.iterdir())
        answers.append([checkpoint.name, checkpoint.fingerprint, files])
    except Refusal as refusal:
        answers.append([refusal.what, refusal.why, refusal.instead])
print(json.dumps(answers))
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


def opened(sources: list[str], home: Path, endpoint: str, offline: str = "0") -> list[list[Any]]:
    """Name, fingerprint and files of each checkpoint, or what, why, instead; in a process for which `endpoint` is the hub."""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", OPEN, *sources]
    done = subprocess.run(command, env={**os.environ, **settings}, cwd=home, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_models_are_downloaded_once_and_open_offline(hub: Hub, saved: Path, tmp_path: Path) -> None:
    """What is taken, what is refused and why, and what is left for later runs."""
    sources = ["someone/both", "someone/pickled@v1", "someone/absent", "someone/gated", "someone/both@nowhere"]
    both, pickled, absent, gated, nowhere = answers = opened(sources, tmp_path, hub.address)
    assert both[:2] == ["someone/both", open_checkpoint(saved).fingerprint]
    assert "model.safetensors" in both[2]
    assert not {"pytorch_model.bin", "modeling_own.py", "README.md"} & set(both[2])
    assert pickled[0] == "someone/pickled@v1"
    assert "pytorch_model.bin" in pickled[2]
    assert absent[0] == "model someone/absent"
    assert "no such public model on the hub" in absent[1]
    assert "hf auth login" in absent[2]
    assert "accepted its terms" in gated[1]
    assert nowhere[1] == "the model has no revision nowhere"
    assert any(path.endswith("/model.safetensors") for path in hub.asked)
    assert not any(path.endswith((".py", ".md")) for path in hub.asked)
    hub.asked.clear()
    assert opened(sources[:2], tmp_path, hub.address, offline="1") == answers[:2]
    assert hub.asked == []


def test_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    ((what, why, instead),) = opened(["someone/model"], tmp_path, "http://127.0.0.1:9")
    assert what == "model someone/model"
    assert "there is no such folder here, the hub cannot be reached" in why
    assert "name a model folder or a .gguf file" in instead


def test_offline() -> None:
    with pytest.raises(Refusal, match="the hub cannot be reached"):
        open_checkpoint("gpt2")
