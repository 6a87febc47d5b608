"""When a series of numbers is growth, and when it is not."""

from __future__ import annotations

import random

import pytest

from loopwatch.monitor.histogram import Histogram
from loopwatch.monitor.options import check_options
from loopwatch.monitor.series import Bound, Growth, Rule, Series

RULE = Rule(window=20, sigma=2.0, consecutive=3)


def feed(series: Series, values: list[float], start: float = 0.0) -> list[Growth]:
    found = [series.add(start + number * 10.0, value) for number, value in enumerate(values)]
    return [growth for growth in found if growth is not None]


def test_steady_noise_is_no_growth() -> None:
    source = random.Random(1)
    for level in (0, 5, 50, 5000):
        series = Series(RULE, 10)
        assert feed(series, [max(0.0, source.gauss(level, level / 10)) for _ in range(500)]) == []


def test_fifty_plus_minus_five_that_rises_to_two_hundred_and_stays() -> None:
    source = random.Random(2)
    series = Series(RULE, 10)
    assert feed(series, [source.uniform(45, 55) for _ in range(40)]) == []
    found = [series.add(400 + number * 10, 200.0) for number in range(3)]
    assert found[:2] == [None, None]
    growth = found[2]
    assert growth is not None
    assert growth.value == 200 and 45 < growth.before < 55 and growth.since == 400 and growth.samples == 3


def test_a_leak_is_told_after_the_third_high_sample() -> None:
    series = Series(RULE, 10)
    feed(series, [3.0] * 20)
    leak = [3.0 + 5 * number for number in range(1, 10)]
    found = [series.add(200 + 10 * number, value) for number, value in enumerate(leak)]
    first = next(number for number, growth in enumerate(found) if growth is not None)
    assert leak[first - 2] > 13 >= leak[first - 3]  # 3 + the least that matters
    growth = found[first]
    assert growth is not None and growth.rate == pytest.approx(0.5)


def test_a_burst_that_goes_down_is_none() -> None:
    series = Series(RULE, 10)
    feed(series, [5.0] * 20)
    assert feed(series, [50.0, 60.0, 20.0, 5.0, 5.0, 80.0, 30.0, 5.0, 5.0], 200) == []


def test_bursts_as_high_as_those_before_are_none() -> None:
    series = Series(RULE, 10)
    assert feed(series, [5.0, 5.0, 5.0, 5.0, 90.0] * 6 + [85.0, 85.0, 85.0, 5.0]) == []


def test_growth_that_does_not_matter_is_none() -> None:
    assert feed(Series(RULE, 10), [0.0] * 30 + [9.0] * 30) == []
    assert feed(Series(RULE, 10), [1000.0] * 30 + [1150.0] * 30) == []


def test_nothing_is_told_before_the_window_is_full() -> None:
    assert feed(Series(RULE, 10), [0.0] * 10 + [500.0] * 9) == []


def test_a_series_that_comes_later_has_had_zeros() -> None:
    series = Series(RULE, 10, past=20, born=200.0)
    assert len(feed(series, [30.0, 40.0, 50.0], 200.0)) == 1


def test_a_new_level_becomes_normal() -> None:
    series = Series(RULE, 10)
    feed(series, [5.0] * 20 + [100.0] * 20)
    assert not series.suspected
    assert feed(series, [100.0] * 40, 1000) == []


def test_a_leak_older_than_the_window_is_a_slope() -> None:
    series = Series(RULE, 10)
    found = feed(series, [10.0 + 3 * number for number in range(60)])
    assert found and found[0].rate == pytest.approx(0.3)
    assert feed(Series(RULE, 10, steady=False), [10.0 + 3 * number for number in range(60)]) == []


def test_restart_warms_up_again() -> None:
    series = Series(RULE, 10)
    feed(series, [5.0] * 25)
    series.restart()
    assert feed(series, [500.0] * 19) == []


def test_a_bound_needs_samples_in_a_row() -> None:
    bound = Bound(RULE)
    values = [150, 150, 90, 150, 150, 150, 150]
    assert [bound.add(time, value, 100) is not None for time, value in enumerate(values)] == [
        False, False, False, False, False, True, True,
    ]  # fmt: skip


def test_quantiles_and_differences_of_histograms() -> None:
    early = Histogram(3, 0.3, 0.15, ((0.1, 2), (0.2, 1)))
    late = Histogram(103, 10.3, 0.15, ((0.1, 101), (0.2, 2)))
    assert late.quantile(0.5) == 0.1 and late.quantile(1) == 0.15
    assert Histogram().quantile(0.99) == 0.0 and Histogram().mean == 0.0
    between = late.since(early)
    assert between.count == 100 and between.buckets == ((0.1, 99), (0.2, 1)) and between.sum == pytest.approx(10)
    assert early.plus(between).buckets == late.buckets
    with pytest.raises(ValueError, match="fraction"):
        late.quantile(99)


GOOD = {
    "interval": 1.0, "window": 10, "sigma": 2.0, "consecutive": 3, "max_tasks": 100, "memory_growth": 0.5, "lag": 0.2,
    "hang": 10.0, "repeat": 60.0, "objects": 0, "on_alarm": None, "logger": None, "json": None, "ignore": (),
    "memory": False, "on_sample": None, "stderr": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "error", "says"),
    [
        ("interval", 0, ValueError, "interval must be a finite number of seconds above 0; got 0"),
        ("interval", "5", TypeError, "interval must be a finite number of seconds above 0; got '5' of type str"),
        ("interval", 0.001, ValueError, "at least 0.01"),
        ("window", 2, ValueError, "window must be a whole number from 3"),
        ("window", 2.5, TypeError, "window must be a whole number"),
        ("sigma", -1, ValueError, "sigma must be a number of standard deviations"),
        ("sigma", float("nan"), ValueError, "sigma"),
        ("consecutive", 0, ValueError, "consecutive"),
        ("max_tasks", True, TypeError, "max_tasks"),
        ("memory_growth", 0, ValueError, "memory_growth must be a fraction"),
        ("lag", 0.0001, ValueError, "lag must be at least 0.001"),
        ("hang", -1, ValueError, "hang"),
        ("memory", "tracemalloc", ValueError, "False, True or 'sampled'"),
        ("on_alarm", 5, TypeError, "on_alarm must be a callable"),
        ("logger", "x", TypeError, "logger must be a logging.Logger"),
        ("json", 5, TypeError, "json must be a path"),
        ("stderr", "yes", TypeError, "stderr must be True or False, got 'yes' of type str"),
        ("stderr", None, TypeError, "stderr must be True or False, got None"),
        ("ignore", 5, TypeError, "ignore must be"),
    ],
)
def test_wrong_options_say_what_was_expected(name: str, value: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says.replace("(", r"\(")):
        check_options(**GOOD | {name: value})  # type: ignore[arg-type]


def test_good_options() -> None:
    assert check_options(**GOOD | {"memory": "sampled"}).sampled  # type: ignore[arg-type]
