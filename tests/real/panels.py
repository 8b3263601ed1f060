"""Panels in a plain page, as a notebook would show them: the module that anywidget runs, and between it and the widget in Python a
web server in the place of the kernel's comm."""

import contextlib
import http.server
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from microtome.notebook.bundle import widget
from microtome.notebook.panel import Panel

__all__ = ["notebook"]

PAGE = """<!doctype html><html><head><meta charset="utf-8"><title>a notebook</title>POLICY<link rel="icon" href="data:,"></head><body>
<script type="module">
import panel from "./widget.js";
class Model {
  #heard = new Map();
  #said = Promise.resolve();
  constructor(number, state) {
    Object.assign(this, { number, state });
    void this.#hear();
  }
  get(name) { return this.state[name]; }
  set(name, value) {
    if (this.state[name] === value) return;
    this.state[name] = value;
    this.#tell(`change:${name}`);
  }
  save_changes() { this.#say("state", this.state); }
  send(message) { this.#say("send", message); }
  #say(path, what) {
    const body = JSON.stringify(what);
    this.#said = this.#said.then(() => fetch(`${path}?${this.number}`, { method: "POST", body }));
  }
  on(name, listener) { this.#heard.set(name, [...(this.#heard.get(name) ?? []), listener]); }
  off(name, listener) { this.#heard.set(name, (this.#heard.get(name) ?? []).filter((each) => each !== listener)); }
  #tell(name, ...said) { for (const listener of this.#heard.get(name) ?? []) listener(...said); }
  async #hear() {
    for (;;) {
      const answer = await fetch(`hear?${this.number}`);
      if (answer.status !== 200) continue;
      const message = JSON.parse(answer.headers.get("x-message"));
      const buffer = new DataView(await answer.arrayBuffer());
      if (message.state) for (const [name, value] of Object.entries(message.state)) this.set(name, value);
      else this.#tell("msg:custom", message, [buffer]);
    }
  }
}
window.models = [];
window.ends = [];
for (const [number, state] of STATES.entries()) {
  const el = document.createElement("div");
  document.body.append(el);
  const model = new Model(number, state);
  window.models.push(model);
  window.ends.push(panel.render({ model, el }));
}
</script></body></html>"""


class _Comm(http.server.BaseHTTPRequestHandler):
    """What a kernel's comm does: custom messages both ways, and shared state."""

    panels: Sequence[Panel]
    sent: Sequence["queue.Queue[tuple[dict[str, Any], bytes]]"]
    policy: str
    shared: list[dict[str, Any]]

    def do_GET(self) -> None:
        path, _, number = self.path.partition("?")
        if path == "/hear":
            try:
                message, body = self.sent[int(number)].get(timeout=0.5)
            except queue.Empty:
                self._answer(204, b"", "text/plain")
            else:
                self._answer(200, body, "application/octet-stream", json.dumps(message))
        elif path == "/widget.js":
            self._answer(200, widget().encode(), "text/javascript")
        else:
            states = [{"address": panel.address, "height": panel.height} for panel in self.panels]
            page = PAGE.replace("STATES", json.dumps(states)).replace("POLICY", self.policy)
            self._answer(200, page.encode(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        path, _, number = self.path.partition("?")
        said = json.loads(self.rfile.read(int(self.headers["content-length"])))
        panel = self.panels[int(number)]
        if path == "/send":
            panel._handle_custom_msg(said, [])
        else:
            self.shared[int(number)] = said
            panel.set_state(said)
        self._answer(200, b"", "text/plain")

    def _answer(self, status: int, body: bytes, kind: str, message: str = "") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if message:
            self.send_header("x-message", message)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def notebook(*panels: Panel, policy: str = "") -> Iterator[str]:
    """The address of a page that shows `panels`, under a content policy if one is given."""
    sent: list[queue.Queue[tuple[dict[str, Any], bytes]]] = [queue.Queue() for _ in panels]
    shared: list[dict[str, Any]] = [{} for _ in panels]

    def changed(change: Any) -> None:
        """Tell the page of what it has not said itself."""
        number = panels.index(change.owner)
        if shared[number].get(change.name) != change.new:
            sent[number].put(({"state": {change.name: change.new}}, b""))

    for panel, mine in zip(panels, sent, strict=True):
        panel.send = lambda content, buffers=None, mine=mine: mine.put((content, (buffers or [b""])[0]))
        panel.observe(changed, names=["address", "height"])
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">' if policy else ""
    handler = type("Comm", (_Comm,), {"panels": panels, "sent": sent, "policy": meta, "shared": shared})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_port}/"
        web.shutdown()
        thread.join()
