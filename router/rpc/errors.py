"""Baton's error tree as gRPC statuses with google.rpc details."""

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2

from engine.core.errors import BatonError

ERROR_DOMAIN = "baton"


def rpc_status_of(error: BatonError) -> status_pb2.Status:
    """The status whose code has the error's own name; details say which field is at fault and when to come back."""
    details: list[Any] = [_packed(error_details_pb2.ErrorInfo(reason=error.code.name, domain=ERROR_DOMAIN))]
    if error.param is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=error.message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message, details=details)


def _packed(
    detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> Any:
    packed = Any()
    packed.Pack(detail)
    return packed
