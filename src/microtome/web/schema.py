"""What the server answers, as OpenAPI: the front end takes its types from `ui/openapi.json`, which `make ui` writes of this.

Only what a page asks for and is told is in it: nothing of this machine, no version, and no answer to a mistaken request.
"""

import json
import sys
from pathlib import Path
from typing import Any

from microtome.web.app import create_app

__all__ = ["schema"]


def schema() -> str:
    """The OpenAPI document as JSON, the same bytes wherever it is made."""
    document = create_app(Path()).openapi()
    document["info"] = {"title": "microtome", "version": "0"}
    for methods in document["paths"].values():
        for operation in methods.values():
            operation.pop("operationId", None)
            operation["responses"] = {code: each for code, each in operation["responses"].items() if code == "200"}
    records: dict[str, Any] = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        records.pop(name, None)
    return json.dumps(document, indent=1, sort_keys=False, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema())
