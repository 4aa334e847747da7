"""The tenants' file: TOML, read as a whole or refused as a whole.

    [tenants.acme]
    weight = 2.0                # share of a busy service, relative to others'; 1 unless said
    max_priority = 0            # the most urgent (smallest) priority that its requests may have
    requests_per_s = 50         # with a burst of request_burst (one second's worth unless said)
    tokens_per_s = 20000        # prompt and answer; with a burst of token_burst (ten seconds' worth unless said)
    max_concurrent = 200        # requests at once
    ttft_slo_s = 2.0            # refuse at once what is expected to get its first token later
    keys = [{ id = "...", sha256 = "...", operator = true }]     # as `baton keys new acme` prints them

What is left out is no limit.
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.core.errors import InvalidRequest
from router.gateway.tenants import ApiKey, RateLimit, Tenant, TenantTable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Hex = Annotated[str, Field(pattern="^[0-9a-f]+$")]


class _Key(BaseModel):
    model_config = ConfigDict(extra="forbid")

    id: Annotated[_Hex, Field(max_length=32)]
    sha256: Annotated[_Hex, Field(min_length=64, max_length=64)]
    operator: bool = False


class _Tenant(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weight: _Positive = 1.0
    max_priority: int | None = None
    requests_per_s: _Positive | None = None
    request_burst: Annotated[float, Field(ge=1)] | None = None
    tokens_per_s: _Positive | None = None
    token_burst: Annotated[float, Field(ge=1)] | None = None
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    ttft_slo_s: _Positive | None = None
    keys: list[_Key] = []

    def named(self, name: str) -> Tenant:
        """As the gateway wants it."""
        requests = tokens = None
        if self.requests_per_s is not None:
            requests = RateLimit(self.requests_per_s, self.request_burst or max(self.requests_per_s, 1.0))
        if self.tokens_per_s is not None:
            tokens = RateLimit(self.tokens_per_s, self.token_burst or max(10 * self.tokens_per_s, 1.0))
        return Tenant(
            name, self.weight, self.max_priority, requests, tokens, self.max_concurrent, ttft_slo_s=self.ttft_slo_s
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: dict[str, _Tenant]


def read_tenants(path: Path) -> TenantTable:
    """Raises InvalidRequest that says what is wrong with the file, and never quotes from it."""
    try:
        text = path.read_bytes().decode()
        file = _File.model_validate(tomllib.loads(text))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}", param="tenants") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{path}: {place}: {first['msg']}", param="tenants") from None
    except ValueError as error:  # not UTF-8, not TOML
        raise InvalidRequest(f"{path} is not TOML: {str(error).partition(chr(10))[0]}", param="tenants") from None
    for name in file.tenants:
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{path}: {name!r}: letters, digits and . _ - make a tenant's name", param="tenants")
    try:
        return TenantTable.of(
            (tenant.named(name), [ApiKey(key.id, key.sha256, key.operator) for key in tenant.keys])
            for name, tenant in file.tenants.items()
        )
    except ValueError as error:
        raise InvalidRequest(f"{path}: {error}", param="tenants") from error


class TenantsFile:
    """Reads the file again when it has changed. One that cannot be read leaves everything as it was."""

    def __init__(self, path: Path) -> None:
        """Raises InvalidRequest."""
        self.path = path
        self._mark = self._current_mark()
        self.table = read_tenants(path)

    def changed(self) -> bool:
        """Whether the file is another one than was read last, or looks like it. Cheap."""
        return self._current_mark() != self._mark

    def read(self) -> TenantTable:
        """Read it now. Raises InvalidRequest; then `table` stays as it was."""
        self._mark = self._current_mark()
        self.table = read_tenants(self.path)
        return self.table

    def _current_mark(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
