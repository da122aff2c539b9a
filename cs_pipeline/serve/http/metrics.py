"""What Prometheus is told, and a line in the log for every request; never what was asked or answered."""

import logging
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cs_pipeline.serve.models.answering import Answering, Running

logger = logging.getLogger(__name__)

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histograms' buckets."""


class Metrics:
    """The counts of one server; ``answered`` is told of every answer that ended."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "cs_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "cs_request_seconds",
            "From a request to the end of its response.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._answers = Counter("cs_answers", "Answers by model and end.", ["model", "finish"], registry=self.registry)
        self._tokens = Counter("cs_tokens", "Tokens read and written.", ["model", "kind"], registry=self.registry)
        self._answer_seconds = Histogram(
            "cs_answer_seconds",
            "From a question to the end of its answer.",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def answered(self, running: Running) -> None:
        name = running.served.name
        self._answers.labels(name, running.ended).inc()
        self._tokens.labels(name, "read").inc(running.prompt_tokens)
        self._tokens.labels(name, "written").inc(running.tokens)
        self._answer_seconds.labels(name).observe(time.monotonic() - running.started)

    def page(self) -> bytes:
        """In Prometheus's text format 0.0.4."""
        return generate_latest(self.registry)


class State(Collector):
    """What is so at the moment of asking: the queue, the memory, the champion."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def collect(self) -> Iterator[Metric]:
        registry = self._answering.registry
        yield GaugeMetricFamily("cs_questions_inside", "Questions that wait or are answered.", self._answering.inside)
        yield GaugeMetricFamily("cs_weights_bytes", "Memory of all weights.", self._answering.bytes)
        yield GaugeMetricFamily("cs_champion_version", "The champion that answers; 0: none.", registry.champion or 0)
        failing = registry.failure is not None
        yield GaugeMetricFamily("cs_champion_fails_to_load", "1: the alias is at one that does not load.", failing)
        yield GaugeMetricFamily("cs_registry_up", "1: the registry answers.", registry.silent is None)
        loaded = GaugeMetricFamily("cs_model_loaded", "1 for each model in memory.", labels=["model"])
        for name in self._answering.figures():
            loaded.add_metric([name], 1)
        yield loaded


class Counted:
    """Counts and logs the requests that pass."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            took = time.monotonic() - started
            # The route's pattern: a path may hold what somebody typed.
            route = getattr(scope.get("route"), "path", "other") or "page"
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(took)
            logger.info("%s %s %d %.0f ms", scope["method"], route, status, 1000 * took)
