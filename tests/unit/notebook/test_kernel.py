"""A panel in a real kernel: the cell's result is a widget, and over its comm a front end gets records and the page."""

import gzip
import json
import queue
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager

from microtome.notebook.bundle import page

SECONDS = 120
MIME = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def kernel() -> Iterator[BlockingKernelClient]:
    manager = KernelManager(kernel_name="python3")
    # this interpreter, whatever kernels are installed
    assert manager.kernel_spec is not None
    manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(kernel: BlockingKernelClient, code: str) -> list[dict[str, Any]]:
    """Everything that a cell publishes until it is done."""
    said: list[dict[str, Any]] = []
    reply = kernel.execute_interactive(code, output_hook=said.append, timeout=SECONDS, store_history=False)
    assert reply["content"]["status"] == "ok", reply["content"].get("traceback")
    return said


def answer(kernel: BlockingKernelClient, comm: str, content: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Send a custom message as a front end does, and wait for the answer over the comm."""
    data = {"method": "custom", "content": content}
    kernel.shell_channel.send(kernel.session.msg("comm_msg", {"comm_id": comm, "data": data}))
    while True:
        try:
            message = kernel.get_iopub_msg(timeout=SECONDS)
        except queue.Empty:
            pytest.fail(f"no answer to {content}")
        assert message["msg_type"] != "error", message["content"]
        if message["msg_type"] == "comm_msg" and message["content"]["comm_id"] == comm:
            told = message["content"]["data"]
            if told["method"] == "custom":
                return told["content"], bytes(message["buffers"][0])


def test_a_cell_shows_a_panel_that_answers(kernel: BlockingKernelClient, atlas: Path) -> None:
    said = run(kernel, f"import microtome as mt\npanel = mt.show({str(atlas)!r}, 'neurons.1/7')\npanel")
    [result] = [message["content"]["data"] for message in said if message["msg_type"] == "execute_result"]
    assert result["text/plain"] == "microtome: unit/neurons.1/7 (run this cell to see it)"
    opened = {
        message["content"]["comm_id"]: message["content"]["data"]["state"]
        for message in said
        if message["msg_type"] == "comm_open"
    }
    comm = result[MIME]["model_id"]
    state = opened[comm]
    assert (state["address"], state["height"], state["_model_module"]) == ("unit/neurons.1/7", 640, "anywidget")
    assert "render" in state["_esm"]

    message, body = answer(kernel, comm, {"kind": "page"})
    assert (message, body) == ({"kind": "page"}, page())

    message, body = answer(kernel, comm, {"kind": "ask", "id": "x.1", "path": "unit?address=neurons.1/7", "body": None})
    assert message == {"kind": "answer", "id": "x.1", "status": 200, "zipped": True}
    record = json.loads(gzip.decompress(body))
    assert record["unit"] == "neurons.1/7"
    assert record["contexts"]

    message, body = answer(kernel, comm, {"kind": "ask", "id": "x.2", "path": "../index.html", "body": None})
    assert message["status"] == 404

    update = {"comm_id": comm, "data": {"method": "update", "state": {"address": "geometry"}, "buffer_paths": []}}
    kernel.shell_channel.send(kernel.session.msg("comm_msg", update))
    told = "".join(
        message["content"]["text"] for message in run(kernel, "print(panel.address)") if message["msg_type"] == "stream"
    )
    assert told.strip() == "geometry"


def test_a_wrong_address_is_the_cells_error(kernel: BlockingKernelClient, atlas: Path) -> None:
    code = f"import microtome as mt\ntry:\n    mt.show({str(atlas)!r}, 'neurons.99/9')\nexcept mt.Refusal as error:\n    print(error.what)"
    told = "".join(message["content"]["text"] for message in run(kernel, code) if message["msg_type"] == "stream")
    assert told.strip() == "unit neurons.99/9"
