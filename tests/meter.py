"""The meter of peak bytes that tests share with the benchmarks."""

from benchmarks.meter import Meter

__all__ = ["Meter"]
