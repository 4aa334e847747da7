"""One line in the log for each client request: who, how much, where the time went, how it ended. Never any text."""

import logging

from router.gateway.record import RequestRecord

logger = logging.getLogger("baton.request")

_LINE = " ".join(
    f"{name}=%({name})s"
    for name in (
        "request_id tenant key_id outcome sequences prompt_tokens cached_tokens output_tokens prefill_worker"
        " decode_worker queue_ms admit_ms prefill_ms deliver_ms ttft_ms transfer_ms first_step_ms total_ms"
    ).split()
)


class RequestLog:
    """A RecordSink. As text the line reads name=value; as JSON each is a field of its own (router.logs)."""

    def done(self, record: RequestRecord) -> None:
        """Write one line."""
        if not logger.isEnabledFor(logging.INFO):
            return
        timing = record.timing
        seconds = {
            "queue": timing.queue_s,
            "admit": timing.admit_s,
            "prefill": timing.prefill_s,
            "deliver": timing.deliver_s,
            "ttft": timing.ttft_s,
            "transfer": timing.transfer_s,
            "first_step": timing.first_step_s,
            "total": record.total_s,
        }
        fields = {
            "request_id": record.request_id,
            "tenant": record.tenant,
            "key_id": record.key_id,
            "outcome": record.outcome,
            "sequences": record.num_sequences,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "output_tokens": record.output_tokens,
            "prefill_worker": timing.prefill_worker,
            "decode_worker": timing.decode_worker,
        }
        logger.info(_LINE, fields | {f"{name}_ms": round(value * 1e3, 3) for name, value in seconds.items()})
