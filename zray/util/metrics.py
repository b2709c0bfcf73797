"""``zray.util.metrics``: ``Counter``, ``Gauge`` and ``Histogram``; ``zray metrics`` shows their values."""

from zray.api.metrics import Counter, Gauge, Histogram, Metric

__all__ = ["Counter", "Gauge", "Histogram", "Metric"]
