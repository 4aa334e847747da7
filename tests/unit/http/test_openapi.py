"""The OpenAPI document, and requests made from it by schemathesis: whatever is sent, no 5xx and no hang."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from router.api import ServiceStatus
from tests.fakes.generator import FakeGenerator, FakeStatus
from tests.fakes.service_thread import doors_in_thread
from tests.fakes.text_models import served_model
from tests.unit.http.conftest import Service

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TIMEOUT_S = 20.0
FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), database=None)
MANY = settings(FEW, max_examples=100)


@pytest.fixture(scope="module")
def operations() -> Iterator[list[APIOperation]]:
    """Those of a service that runs in another thread, from its own document."""
    generator, status = FakeGenerator(lambda call: call.tokens), FakeStatus(ServiceStatus(ready=True))
    with tempfile.TemporaryDirectory() as folder:
        model = served_model(Path(folder))  # the process that tries grammars reads it again
        with doors_in_thread(generator, model, status) as addresses:
            schema = schemathesis.openapi.from_url(f"{addresses.url}/openapi.json")
            yield [found.ok() for found in schema.get_all_operations()]
            assert not generator.running
        model.grammars.close()


def fuzz(operations: list[APIOperation], profile: settings) -> None:
    """Requests that fit the document and ones that do not, to each operation."""
    for operation in operations:
        for mode in GenerationMode:

            @profile
            @given(case=operation.as_strategy(generation_mode=mode))
            def answered(case: Case) -> None:
                case.call_and_validate(checks=CHECKS, timeout=TIMEOUT_S)

            try:
                answered()
            except Unsatisfiable:  # nothing can be wrong with a request that has no parameters
                assert mode is GenerationMode.NEGATIVE and operation.method in ("get", "head")


def test_whatever_is_sent_gets_an_answer(operations: list[APIOperation]) -> None:
    assert len(operations) >= 9
    fuzz(operations, FEW)


@pytest.mark.slow(seconds=30)
def test_whatever_is_sent_gets_an_answer_at_length(operations: list[APIOperation]) -> None:
    fuzz(operations, MANY)


async def test_the_document_says_what_the_door_takes(service: Service) -> None:
    doc = (await service.http.get("/openapi.json")).json()
    assert {"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/models", "/tokenize", "/health"} <= set(
        doc["paths"]
    )
    body = doc["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "max_tokens", "priority", "timeout_s"} <= set(body["properties"])
    assert body["properties"]["model"]["enum"] == ["tiny"]
    assert doc["paths"]["/v1/completions"]["post"]["security"] and "security" not in doc["paths"]["/health"]["get"]
    for name in ("TokenIds", "StopTexts", "Error"):
        assert name in doc["components"]["schemas"]
