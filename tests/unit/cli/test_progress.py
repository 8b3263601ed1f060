"""What a log tells of a build: a line a minute, and of a short one nothing."""

import io

import pytest

from microtome.capture.progress import Progress
from microtome.cli.progress import Bar, Lines, watching


class Clock:
    """Goes as far as it is told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_a_minute_says_what_is_done_and_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Lines(clock) as lines:
        lines.step("opening a model")
        lines.begin("geometry", 1000)
        lines.found(400)
        for _ in range(10):
            clock.now += 10
            lines.advance(20, 2560)
        clock.now += 30
        lines.step("writing tables of geometry")
        lines.begin("factors", 50)
        clock.now += 3600
        lines.advance(1, 128)
    assert capsys.readouterr().err.splitlines() == [
        "geometry: 520 of 1,000 windows, 256 tokens/s, 0:04:00 left",
        "writing tables of geometry",
        "factors: 1 of 50 windows, 0 tokens/s, 2 days, 1:00:00 left",
    ]


def test_what_is_over_within_a_minute_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Lines(clock) as lines:
        lines.begin("geometry", 2)
        clock.now += 59
        lines.advance(2, 256)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    """Standard error of somebody who looks at it."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_and_a_log_has_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(watching(), Lines)
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(watching(), Bar)
    assert isinstance(Lines(), Progress)
