"""FP32 against INT8: accuracy, latency, and the gates that turn figures into a verdict."""

from edgeres.verify.accuracy import Answers, Comparison, Disagreement, compare
from edgeres.verify.gates import METRICS, Limits, Metric, gate, judge
from edgeres.verify.latency import LatencyPlan, measure, noise, speedup
from edgeres.verify.statistics import Estimate

__all__ = [
    "METRICS",
    "Answers",
    "Comparison",
    "Disagreement",
    "Estimate",
    "LatencyPlan",
    "Limits",
    "Metric",
    "compare",
    "gate",
    "judge",
    "measure",
    "noise",
    "speedup",
]
