"""Prometheus metrics, and one log line per request. Neither contains a question or an answer."""

import logging
import time
from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cs_pipeline.serve.models.generation import Generation
from cs_pipeline.serve.models.service import ModelService

logger = logging.getLogger(__name__)

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram buckets in seconds."""


class Metrics:
    """The metrics of one server. ``count_answer`` is called with every answer that ended."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        seconds = partial(Histogram, buckets=_BUCKETS, registry=self.registry)
        self.requests = counter("cs_requests", "Requests by route and status.", ["route", "status"])
        self.request_seconds = seconds("cs_request_seconds", "From a request to the end of its response.", ["route"])
        self._answers = counter("cs_answers", "Answers by model and finish reason.", ["model", "finish"])
        self._tokens = counter("cs_tokens", "Tokens of prompts (read) and answers (written).", ["model", "kind"])
        self._answer_seconds = seconds("cs_answer_seconds", "From a question to the end of its answer.", ["model"])

    def count_answer(self, generation: Generation) -> None:
        name = generation.served.name
        self._answers.labels(name, generation.ended).inc()
        self._tokens.labels(name, "read").inc(generation.prompt_tokens)
        self._tokens.labels(name, "written").inc(generation.tokens)
        self._answer_seconds.labels(name).observe(time.monotonic() - generation.started)


class ServiceCollector(Collector):
    """Gauges that are computed when Prometheus asks for them: queue, memory, champion."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        registry, pool = self._service.registry, self._service.pool
        failing = registry.failure is not None
        for name, meaning, value in (
            ("cs_questions_inside", "Questions queued or being answered.", self._service.inside),
            ("cs_weights_bytes", "Memory of all weights in bytes.", pool.weight_bytes),
            ("cs_champion_version", "The version that answers as champion; 0 if none.", registry.champion or 0),
            ("cs_champion_fails_to_load", "1 if the version with the champion alias does not load.", failing),
            ("cs_registry_up", "1 if the registry answers.", registry.unreachable is None),
        ):
            yield GaugeMetricFamily(name, meaning, value)
        loaded = GaugeMetricFamily("cs_model_loaded", "1 for each model in memory.", labels=["model"])
        for name in pool.usage():
            loaded.add_metric([name], 1)
        yield loaded


class RequestMetrics:
    """Middleware that counts and logs requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def recording_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, recording_send)
        finally:
            seconds = time.monotonic() - started
            # The route's pattern, not the path: a path may contain a user's text.
            route = getattr(scope.get("route"), "path", "other") or "page"
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            logger.info("%s %s %d %.0f ms", scope["method"], route, status, 1000 * seconds)
