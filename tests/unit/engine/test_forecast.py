"""The forecast: known answers where there are any, and the bound that there must be."""

import math

import pytest

from microtome.core import Refusal
from microtome.engine.forecast import Rates, forecast


def test_one_worker_takes_the_sum_and_many_their_share() -> None:
    rates = Rates(2.0, 0.0, spread=0.0, driver_seconds=0.0)
    assert forecast(100, 1, rates).seconds == pytest.approx(200)
    assert forecast(100, 4, rates).seconds == pytest.approx(50, abs=2), "the last unit may have to wait for the one before it"
    assert forecast(100, 200, rates).seconds == pytest.approx(2), "no more workers can work than there are units"
    assert forecast(1000, 4, rates).computing == pytest.approx(1, abs=0.01)


def test_what_is_moved_is_a_state_for_each_unit_and_one_read_for_each_merge() -> None:
    alone = forecast(64, 1, Rates(1.0, 10.0, bytes_per_second=1.0, row_bytes=3.0, spread=0.0))
    assert alone.bytes_written == 64 * 13
    assert alone.bytes_read == 63 * 10
    assert alone.seconds == pytest.approx(64 * (1 + 13) + 630)
    many = forecast(64, 8, Rates(1.0, 10.0))
    assert many.bytes_written < 64 * 10 * 2, "merges that are tasks of their own write a state more, and there are few"


def test_many_units_take_as_long_as_some_of_them_say() -> None:
    rates = Rates(5.0, 1e6)
    some, all_of_them = forecast(20_000, 16, rates), forecast(2_000_000, 16, rates)
    assert all_of_them.seconds == pytest.approx(100 * some.seconds)
    assert all_of_them.seconds == pytest.approx(2_000_000 * 5 / 16, rel=0.02)


def test_what_bounds_a_run_is_named() -> None:
    assert forecast(1000, 10, Rates(1.0, 1e6)).bound == "workers"
    slow = forecast(1000, 10, Rates(1.0, 1e9, storage_bytes_per_second=1e9))
    assert slow.bound == "storage"
    assert slow.seconds >= 1000
    busy = forecast(1000, 1000, Rates(1.0, 1.0, driver_seconds=0.1))
    assert busy.bound == "driver"
    assert busy.seconds >= 100


def test_workers_that_die_cost_what_they_had_begun() -> None:
    rates = Rates(10.0, 1.0, life_seconds=200.0, open_seconds=20.0)
    mortal, immortal = forecast(500, 10, rates), forecast(500, 10, Rates(10.0, 1.0))
    deaths = 10 * mortal.seconds / 220
    assert 0.3 * deaths < mortal.lost / 2 < 2 * deaths
    assert immortal.lost == 0
    assert mortal.seconds > 1.05 * immortal.seconds
    assert mortal.seconds < 1.6 * immortal.seconds


def test_a_unit_takes_time() -> None:
    for seconds in (0.0, -1.0, math.nan):
        with pytest.raises(Refusal, match="a unit takes no time"):
            Rates(seconds, 1.0)


def test_workers_must_live_long_enough_for_a_unit() -> None:
    with pytest.raises(Refusal, match="workers die before they have done a unit; let units be smaller"):
        Rates(100.0, 1.0, life_seconds=150.0)
