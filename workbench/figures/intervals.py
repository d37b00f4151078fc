"""Error bars that reach from an interval's low end to its high end."""

from collections.abc import Iterable
from typing import Any


def error_bars(spans: Iterable[tuple[float, float, float]], **style: Any) -> dict[str, Any]:
    """Plotly's asymmetric error bars of (value, low, high); a value outside its interval has none on that side."""
    spans = list(spans)
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - value) for value, _, high in spans],
        "arrayminus": [max(0.0, value - low) for value, low, _ in spans],
        **style,
    }
