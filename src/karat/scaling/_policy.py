"""How many replicas there should be, by the tokens that wait; Ray runs it in its controller, so it imports no karat."""

import math
from typing import Any

BACKLOG = "karat_batches"  # what replicas tell: tokens that wait or are computed, in batches
BATCHES = 4.0  # to a replica: enough that none is idle between two batches


def replicas(context: Any) -> tuple[int, dict[str, Any]]:
    """Replicas for what waits of late, of an `AutoscalingContext`; Ray keeps it between the least and the most."""
    told = (context.aggregated_metrics or {}).get(BACKLOG, {})
    if not told:
        return context.target_num_replicas, {}
    return max(1, math.ceil(sum(told.values()) / BATCHES)), {}
