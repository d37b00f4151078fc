"""Shares in per cent."""


def percent(share: float) -> str:
    """A share from 0 to 1 as "75 %": what is neither nothing nor all never reads "0 %" or "100 %"."""
    digits, rounded = 0, f"{100 * share:.0f}"
    while 0 < share < 1 and float(rounded) in (0, 100):
        digits += 1
        rounded = f"{100 * share:.{digits}f}"
    return f"{rounded} %"
