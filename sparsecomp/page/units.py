"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence

NOTHING = "–"
"""In place of a number that is not known."""
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def milliseconds(ms: float | None) -> str:
    """Three digits or more: "0.045", "12.3", "268"."""
    if ms is None:
        return NOTHING
    decimals = next((count for limit, count in ((100, 0), (10, 1), (1, 2)) if abs(ms) >= limit), 3)
    return f"{ms:.{decimals}f}"


def percent(share: float | None) -> str:
    """ "90 %". What is not quite nothing, or not quite all, is not rounded to it."""
    if share is None:
        return NOTHING
    if 0 < share < 0.005 or 0.995 < share < 1:
        return (
            f"{100 * share:.1f} %" if 0.0005 < share < 0.9995 else ("< 0.1 %" if share < 0.5 else "> 99.9 %")
        )
    return f"{100 * share:.0f} %"


def times(ratio: float | None) -> str:
    """ "2.35x"."""
    if ratio is None:
        return NOTHING
    return f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def scaled(count: float, unit: str) -> str:
    """ "1.2 MB", "12.3 GFLOP"."""
    for size, prefix in _PREFIXES:
        if count >= size:
            return f"{count / size:.1f} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def shape(extents: Sequence[int]) -> str:
    """ "768×3072"."""
    return "×".join(str(extent) for extent in extents)


def ratio(before: float | None, after: float | None) -> float | None:
    return before / after if before and after else None
