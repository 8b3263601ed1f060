"""Takes the picture in the README: the page of a unit, in a headless Chromium. usage: python docs/picture.py ATLAS [UNIT]."""

import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from microtome.web import serve

PICTURE = Path(__file__).parent / "images" / "atlas.png"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)


def main() -> None:
    """Serve the atlas, load the page, save what it looks like."""
    atlas, unit = Path(sys.argv[1]), (sys.argv[2] if len(sys.argv) > 2 else "neurons.24/343")
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium found: apt-get install chromium")
    ready, address = threading.Event(), []

    def started(where: str) -> None:
        address.append(where)
        ready.set()

    threading.Thread(target=serve, args=(atlas,), kwargs={"port": 0, "started": started}, daemon=True).start()
    ready.wait(60)
    with tempfile.TemporaryDirectory() as profile:
        options = [
            f"--user-data-dir={profile}",
            "--window-size=1280,1150",
            "--virtual-time-budget=15000",
            f"--screenshot={PICTURE}",
        ]
        command = [browser, "--headless", *QUIET, *options, f"{address[0]}#/unit/{unit}"]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main()
