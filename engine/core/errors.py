"""The one error tree of Baton. Each boundary (HTTP, gRPC, CLI) maps `code` and nothing else.

Running out of pages is not here: it is a result (`None` or `False`), because the scheduler expects it.
"""

from enum import StrEnum


class Code(StrEnum):
    """What went wrong, in the words of google.rpc.Code that both HTTP and gRPC map from."""

    INVALID_ARGUMENT = "invalid_argument"
    NOT_FOUND = "not_found"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELLED = "cancelled"
    FAILED_PRECONDITION = "failed_precondition"
    INTERNAL = "internal"


class BatonError(Exception):
    """Base of all errors that Baton raises on purpose.

    Attributes:
        code: what a client may act on.
        param: the request field at fault, when there is one.
        retry_after_s: when a retry may succeed, when that is known.
    """

    code: Code = Code.INTERNAL

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(BatonError):
    """The request can never succeed as it is."""

    code = Code.INVALID_ARGUMENT


class NotFound(BatonError):
    """A named thing (model, worker, request) does not exist."""

    code = Code.NOT_FOUND


class Unauthenticated(BatonError):
    """The caller's key or certificate is missing or wrong."""

    code = Code.UNAUTHENTICATED


class PermissionDenied(BatonError):
    """The caller is known, and may not do this."""

    code = Code.PERMISSION_DENIED


class Overloaded(BatonError):
    """Refused before any work was done; `retry_after_s` says when to come back."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(BatonError):
    """No worker can serve this now."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(BatonError):
    """The request's own deadline passed."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(BatonError):
    """The client went away or asked to stop."""

    code = Code.CANCELLED


class CheckpointError(BatonError):
    """A checkpoint cannot be served. The message names the file, the tensor and what was expected."""

    code = Code.FAILED_PRECONDITION


class Incompatible(BatonError):
    """Two workers must not hand pages to each other; the message says why in plain words."""

    code = Code.FAILED_PRECONDITION


class TransferFailed(BatonError):
    """A page transfer ended without proven pages."""

    code = Code.UNAVAILABLE


class RankLost(BatonError):
    """A rank of a tensor-parallel worker stopped because another one did; the other one's error is the reason."""

    code = Code.INTERNAL


class IllegalEvent(BatonError):
    """A state machine got an event that its table does not list; the state is unchanged."""

    code = Code.INTERNAL
