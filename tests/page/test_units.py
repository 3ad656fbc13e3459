"""Numbers as people read them."""

from __future__ import annotations

import pytest

from sparsecomp.page.units import milliseconds, percent, ratio, scaled, shape, times


@pytest.mark.parametrize(
    ("ms", "said"),
    [(None, "–"), (0.0451, "0.045"), (1.234, "1.23"), (12.34, "12.3"), (268.3, "268"), (0.0, "0.000")],
)
def test_milliseconds_have_three_digits_or_three_decimals(ms: float | None, said: str) -> None:
    assert milliseconds(ms) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (None, "–"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.9, "90 %"),
        (0.004, "0.4 %"),
        (0.996, "99.6 %"),
        (0.0001, "< 0.1 %"),
        (0.9999, "> 99.9 %"),
    ],
)
def test_what_is_not_quite_nothing_or_all_is_not_rounded_to_it(share: float | None, said: str) -> None:
    assert percent(share) == said


def test_sizes_have_prefixes() -> None:
    assert [scaled(count, "B") for count in (0, 999, 1500, 2.5e6, 3e9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "3.0 GB",
    ]
    assert shape([64, 3, 7, 7]) == "64×3×7×7"


def test_a_ratio_needs_both_times() -> None:
    assert (times(ratio(10.0, 4.0)), times(ratio(30.0, 2.0))) == ("2.50x", "15.0x")
    assert ratio(None, 1.0) is ratio(1.0, None) is None
    assert times(None) == "–"
