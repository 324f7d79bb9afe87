"""What a model card says."""

from __future__ import annotations


def intervals_of(card: str) -> dict[str, tuple[float, float, float] | None]:
    """Metric -> its interval's low end, its value and the high end; None where the card has no interval."""
    table = card.partition("| metric | value | 95% interval |")[2].partition("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        name, value, interval = (cell.strip() for cell in line.strip("|").split("|"))
        low, _, high = interval.partition(" to ")
        found[name] = (float(low), float(value), float(high)) if interval else None
    return found


def assert_intervals(card: str, *without: str) -> None:
    """See that every metric has an interval around it, but for those named."""
    found = intervals_of(card)
    assert {name for name, interval in found.items() if interval is None} == {*without}
    assert all(low <= value <= high and low < high for low, value, high in filter(None, found.values())), found
