"""What Prometheus reads: requests by route, and the engine's own figures."""

from collections.abc import Callable, Iterator, Mapping

from fastapi import APIRouter, Request, Response
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.openapi import operation_id

LATENCY_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
"""Upper bounds of the latency histogram: a session takes milliseconds, a full queue seconds."""


class Metrics:
    """The figures of one server; two servers in one process share nothing."""

    def __init__(self) -> None:
        # What they tell is a time, in the words of the figure that began then.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter(
            "innerloop_http_requests", "Requests answered.", labels, registry=self._registry
        )
        self._seconds = Histogram(
            "innerloop_http_request_duration_seconds",
            "Time from a request's first byte to its answer's last, in seconds.",
            labels,
            buckets=LATENCY_SECONDS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. `route` is a template, never a path."""
        labels = (method, route, str(status))
        self._requests.labels(*labels).inc()
        self._seconds.labels(*labels).observe(seconds)

    def watch(
        self, prefix: str, figures: Callable[[], Mapping[str, float]], words: Mapping[str, str]
    ) -> None:
        """Add figures that are read whenever Prometheus asks, each named `prefix_<figure>`.

        `words` say of every figure what it is.
        """
        self._registry.register(_Figures(prefix, figures, words))

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _Figures(Collector):
    def __init__(
        self, prefix: str, figures: Callable[[], Mapping[str, float]], words: Mapping[str, str]
    ):
        self._prefix = prefix
        self._figures = figures
        self._words = words

    def collect(self) -> Iterator[Metric]:
        for name, value in self._figures().items():
            # Prometheus' own ending tells what only ever grows.
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"{self._prefix}_{name}", self._words[name], value)


class MetricsResponse(Response):
    """Prometheus' text format."""

    media_type = CONTENT_TYPE_LATEST


router = APIRouter(tags=["operations"], generate_unique_id_function=operation_id)


@router.get("/metrics", summary="Figures for Prometheus", response_class=MetricsResponse)
async def read_metrics(request: Request) -> Response:
    """Requests and their latency by method, route and status; figures of engine and process."""
    metrics: Metrics = request.state.metrics
    return MetricsResponse(metrics.text())
