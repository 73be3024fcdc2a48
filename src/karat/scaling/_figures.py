"""Prometheus figures of several replicas as one text, each under its replica's name."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


def together(texts: Mapping[str, str]) -> bytes:
    """The figures of all replicas, by their names, with a label `replica`."""
    registry = CollectorRegistry()
    registry.register(_All(texts))
    found: bytes = generate_latest(registry)
    return found


class _All(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Each figure once, with the samples of all replicas."""
        found: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for own in text_string_to_metric_families(text):
                metric = found.setdefault(own.name, Metric(own.name, own.documentation, own.type))
                for sample in own.samples:
                    labels = {**sample.labels, "replica": replica}
                    metric.add_sample(sample.name, labels, sample.value)
        return found.values()
