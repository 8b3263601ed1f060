"""Who waits for workers is told for what, when nothing has happened for long, and not all the time. That a cluster is waited for is tested there."""

import pytest

from microtome.engine.waiting import Waiting


def test_it_is_said_when_nothing_has_happened_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = 0.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    waiting, said = Waiting(), []
    for clock, placed in [(0, 0), (29, 0), (31, 0), (300, 0), (332, 0), (340, 2), (369, 2), (371, 2), (372, 2)]:
        waiting.look(3, placed)
        said += [(clock, record.getMessage()) for record in caplog.records]
        caplog.clear()
    nobody = "3 workers are waited for, and none has a place yet: others use the cluster; this command goes on waiting"
    opening = "3 workers are waited for: 2 have a place, and have not opened the model yet; this command goes on waiting"
    assert said == [(31, nobody), (332, nobody), (371, opening)]
