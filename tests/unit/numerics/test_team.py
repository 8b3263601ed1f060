"""Every part is done once on a thread of its own, errors come back, and it makes no difference which runtime the threads are of."""

import threading
import time

import pytest
import torch

from microtome.numerics import team


@pytest.fixture(params=["torch's runtime", "a pool"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "a pool":
        monkeypatch.setattr(team, "_runtime", lambda: None)
    elif team._runtime() is None:
        pytest.skip("not run: torch has another OpenMP here")
    return request.param


@pytest.mark.usefixtures("runtime")
def test_each_part_is_done_once() -> None:
    for parts in (1, 2, 3, 7):
        done: list[int] = []
        team.each(parts, done.append)
        assert sorted(done) == list(range(parts))


@pytest.mark.usefixtures("runtime")
def test_parts_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=20)

    def meet(_: int) -> None:
        both.wait()

    team.each(2, meet)


@pytest.mark.usefixtures("runtime")
def test_an_error_of_any_part_is_raised_when_all_have_ended() -> None:
    done: list[int] = []

    def work(part: int) -> None:
        if part == 1:
            raise ValueError("part 1")
        time.sleep(0.05)
        done.append(part)

    with pytest.raises(ValueError, match="part 1"):
        team.each(2, work)
    assert done == [0]
    done.clear()

    def other(part: int) -> None:
        if part == 0:
            raise ValueError("part 0")
        work(2)

    with pytest.raises(ValueError, match="part 0"):
        team.each(2, other)
    assert done == [2]


def test_torch_goes_on_with_its_own_threads() -> None:
    x = torch.randn(300, 300)
    expected = x @ x
    team.each(2, lambda _: None)
    assert torch.equal(x @ x, expected)
