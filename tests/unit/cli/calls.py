"""A verb as a person calls it, in this process."""

import sys

import pytest

from microtome.cli.main import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of `microtome` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["microtome", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
