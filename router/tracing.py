"""Traces of requests, sent by OTLP: one span a request, and below it one for each part of its time.

Spans are made when a request is over, from times that are taken anyway: without an endpoint none of this is imported.
"""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router.gateway.record import RequestRecord


def otlp_tracing(endpoint: str) -> "Tracing":
    """Traces to a collector's base URL, such as http://localhost:4318; a thread sends them in batches."""
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")))


class Tracing:
    """A RecordSink."""

    def __init__(self, processor: SpanProcessor) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "baton-router"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("baton.router")
        self._propagator = TraceContextTextMapPropagator()

    def done(self, record: RequestRecord) -> None:
        """The spans of one request; below the client's own span, if it sent a traceparent."""
        timing = record.timing
        request = self._tracer.start_span(
            "request",
            context=self._propagator.extract(dict(record.trace)),
            kind=SpanKind.SERVER,
            start_time=_ns(record.began_s),
            attributes={
                "baton.request_id": record.request_id,
                "baton.tenant": record.tenant,
                "baton.outcome": record.outcome,
                "baton.prefill_worker": timing.prefill_worker,
                "baton.decode_worker": timing.decode_worker,
                "gen_ai.usage.input_tokens": record.prompt_tokens,
                "gen_ai.usage.output_tokens": record.output_tokens,
                "baton.cached_tokens": record.cached_tokens,
            },
        )
        if record.outcome not in ("finished", "cancelled"):
            request.set_status(Status(StatusCode.ERROR, record.outcome))
        context, at_s = set_span_in_context(request), record.began_s
        parts = [("queue", timing.queue_s), ("admit", timing.admit_s), ("prefill", timing.prefill_s)]
        for name, seconds in parts if timing.ttft_s else ():
            at_s = self._part(name, at_s, seconds, context)
        if timing.ttft_s and timing.prefill_worker != timing.decode_worker:
            after_s = self._part("transfer", at_s, timing.transfer_s, context)
            self._part("first_step", after_s, timing.first_step_s, context)
        if timing.ttft_s:
            self._part("deliver", at_s, timing.deliver_s, context)
        request.end(end_time=_ns(record.began_s + record.total_s))

    def _part(self, name: str, at_s: float, seconds: float, context: object) -> float:
        span = self._tracer.start_span(name, context=context, start_time=_ns(at_s))  # type: ignore[arg-type]
        span.end(end_time=_ns(at_s + seconds))
        return at_s + seconds

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
