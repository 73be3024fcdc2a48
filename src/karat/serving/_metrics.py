"""What the server counts and times, for Prometheus. Nothing here holds a text or a user's name."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from karat.engine.batcher import Batcher
from karat.serving._pipeline import Pipeline
from karat.serving._rows import Outcome
from karat.types import Reward

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_GAUGES = {
    "karat_waiting": "Sequences that wait for their turn.",
    "karat_expected_wait_seconds": "Seconds that a new request would wait.",
    "karat_joined": "Sequences that were in flight already.",
    "karat_dropped": "Sequences that nobody waited for any more.",
    "karat_failed": "Sequences that the model failed on.",
    "karat_generated_tokens": "Tokens that were generated.",
    "karat_golden_drift": "By how much a golden score differs from that at the start, at most.",
}
_REWARDS = (-20, -10, -5, -2, -1, -0.5, 0, 0.25, 0.5, 0.75, 1, 2, 5, 10, 20)


class Metrics:
    """The figures of one server."""

    media = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("karat_requests", "Requests by path and status.", ("path", "status"), registry=own)
        self.seconds = Histogram(
            "karat_request_seconds", "Seconds from a request's arrival to its reply.", buckets=_SECONDS, registry=own
        )
        self.stages = Histogram(
            "karat_stage_seconds",
            "Seconds that requests took to be rendered, and from then to their results.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=own,
        )
        of = ("model",)
        self.rewards = Histogram("karat_reward", "Rewards that were given.", of, buckets=_REWARDS, registry=own)
        self.unscored = Counter("karat_unscored", "Answers that got an error and no reward.", of, registry=own)
        self.batch_pieces = Histogram(
            "karat_batch_sequences", "Sequences to a batch.", of, buckets=_COUNTS, registry=own
        )
        self.batch_seconds = Histogram("karat_batch_seconds", "Seconds of a batch.", of, buckets=_SECONDS, registry=own)
        self.tokens = Counter("karat_computed_tokens", "Tokens of batches, shared prefixes once.", of, registry=own)
        self.shared = Counter("karat_shared_tokens", "Tokens that were saved within batches.", of, registry=own)
        self.cached = Counter(
            "karat_cached_tokens", "Tokens of rewards that were not computed for them.", of, registry=own
        )
        self.reloads = Counter(
            "karat_reloads", "Models that were loaded anew, or refused.", ("model", "done"), registry=own
        )
        self._of: Callable[..., Any] = cache(lambda metric, *labels: metric.labels(*labels))  # looked up once
        self._gauges = {name: Gauge(name, said, of, registry=own) for name, said in _GAUGES.items()}

    def watch(self, name: str, pipeline: Pipeline, drift: Callable[[], float]) -> None:
        """Follow a model's batches and its queue, and by how much its golden scores moved since it was loaded."""
        batcher: Batcher[Any, Any] = pipeline.batcher
        batcher.on_batch = partial(self._batch, name)
        pipeline.on_outcomes = partial(self.scored, name)
        pipeline.on_stage = lambda stage, seconds: self._of(self.stages, name, stage).observe(seconds)
        read: dict[str, Callable[[], float]] = {
            "karat_waiting": lambda: batcher.waiting,
            "karat_expected_wait_seconds": pipeline.load.wait,
            "karat_joined": lambda: batcher.counts.joined,
            "karat_dropped": lambda: batcher.counts.dropped,
            "karat_failed": lambda: batcher.counts.failed,
            "karat_generated_tokens": lambda: pipeline.generator.drawn if pipeline.generator else 0,
            "karat_golden_drift": drift,
        }
        for gauge, own in self._gauges.items():
            own.labels(name).set_function(read[gauge])

    def _batch(self, name: str, pieces: int, tokens: int, saved: int, seconds: float) -> None:
        self._of(self.batch_pieces, name).observe(pieces)
        self._of(self.batch_seconds, name).observe(seconds)
        self._of(self.tokens, name).inc(tokens)
        self._of(self.shared, name).inc(saved)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request was answered. `path` is one of the server's own, or "other"."""
        self._of(self.requests, path, status).inc()
        self.seconds.observe(seconds)

    def scored(self, name: str, outcomes: list[Outcome]) -> None:
        """Results of a model were given."""
        rewards = [outcome for outcome in outcomes if isinstance(outcome, Reward)]
        histogram = self._of(self.rewards, name)
        for reward in rewards:
            histogram.observe(reward.value)
        self._of(self.cached, name).inc(sum(reward.cached_tokens for reward in rewards))
        if len(rewards) < len(outcomes):
            self._of(self.unscored, name).inc(len(outcomes) - len(rewards))

    def text(self) -> bytes:
        """All of it in Prometheus' own format."""
        found: bytes = generate_latest(self.registry)
        return found
