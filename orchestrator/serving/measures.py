"""What Prometheus is told of a server: https://prometheus.io/docs/practices/naming/."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

if TYPE_CHECKING:
    from orchestrator.serving.following import Loaded

__all__ = ["CONTENT_TYPE", "Measures"]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = to = CollectorRegistry()
        ProcessCollector(registry=to)
        self.requests = Counter("orch_requests", "Requests that were answered.", ["path", "code"], registry=to)
        self.request_seconds = Histogram("orch_request_seconds", "Of a prediction.", buckets=SECONDS, registry=to)
        self.in_flight = Gauge("orch_requests_in_flight", "Predictions that are under way.", registry=to)
        self.batch_size = Histogram("orch_batch_size", "Pictures computed at once.", buckets=IMAGES, registry=to)
        self.batch_seconds = Histogram("orch_batch_seconds", "To compute a batch.", buckets=SECONDS, registry=to)
        about = ["model", "version", "sha256"]
        self.model = Gauge("orch_model_info", "The version that answers.", about, registry=to)
        self.switches = Counter("orch_model_switches", "Versions that took over from another.", registry=to)
        self.refusals = Counter("orch_model_refusals", "Looks at the alias that ended in an error.", registry=to)
        self.answered = functools.cache(self.requests.labels)  # which looks its labels up anew each time
        self.problem = Gauge("orch_model_problem", "1 while the version asked for is not taken.", registry=to)

    def serves(self, loaded: Loaded) -> None:
        """Note which version answers from now on."""
        self.model.clear()
        self.model.labels(loaded.name, loaded.version, loaded.sha256).set(1)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
