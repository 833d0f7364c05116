"""The trace context of now, by OpenTelemetry's API, which is needed only here."""

from collections.abc import Callable, Mapping

from ringpost.client.errors import InvalidRequest

HEADER = "traceparent"


def current_context() -> Callable[[], str]:
    """What gives the W3C traceparent of the span that is current, "" outside of one. Raises `InvalidRequest`."""
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as error:
        raise InvalidRequest(f"options.tracing: install ringpost[tracing] for it ({error})") from None
    form = TraceContextTextMapPropagator()

    def current() -> str:
        carrier: dict[str, str] = {}
        form.inject(carrier)
        return carrier.get(HEADER, "")

    return current


def with_context(headers: Mapping[str, str] | None, traceparent: str) -> Mapping[str, str] | None:
    """The headers with the context among them, unless the message has one of its own."""
    if not traceparent or (headers and HEADER in headers):
        return headers
    return {**(headers or {}), HEADER: traceparent}
