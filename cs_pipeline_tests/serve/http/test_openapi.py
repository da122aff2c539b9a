"""The OpenAPI document: generated requests, valid and invalid, get documented responses and never a server error."""

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from cs_pipeline_tests.support.serving import PATIENCE, Serving

ROUTES = {
    "GET /health",
    "GET /metrics",
    "GET /models",
    "GET /ready",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "POST /chat",
    "POST /v1/chat/completions",
}
CHECKS_BEYOND_THE_SCHEMA: dict[str, Any] = {"POST /v1/chat/completions": [positive_data_acceptance]}
"""A JSON schema cannot say that the last message must be the user's."""


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_generated_requests_get_the_documented_responses(serving: Serving, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{serving.url}/openapi.json")
    operations: dict[str, Any] = {str(found.ok().label): found.ok() for found in schema.get_all_operations()}  # type: ignore[union-attr]
    assert set(operations) == ROUTES
    statuses = set()
    for operation in operations.values():
        if mode is GenerationMode.NEGATIVE and operation.label not in ("POST /chat", "POST /v1/chat/completions"):
            continue  # these requests have nothing that could be wrong

        @hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)
        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        def matches_the_document(case: Case) -> None:
            response = case.call(timeout=PATIENCE)
            if response.status_code == 413:
                return  # too large to be read at all; schemathesis does not know that this rejects the request
            statuses.add(response.status_code)
            case.validate_response(response, excluded_checks=CHECKS_BEYOND_THE_SCHEMA.get(case.operation.label))

        matches_the_document()
    assert statuses <= ({200, 400, 404} if mode is GenerationMode.POSITIVE else {400, 422})


def test_the_statuses_of_both_chat_routes_are_documented(serving: Serving) -> None:
    paths = serving.get("/openapi.json").json()["paths"]
    for path, invalid in (("/chat", "422"), ("/v1/chat/completions", "400")):
        assert {"200", invalid, "404", "429", "503"} <= set(paths[path]["post"]["responses"])


def test_the_document_describes_fields_limits_and_errors(serving: Serving) -> None:
    document = serving.get("/openapi.json").json()
    assert {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods} == ROUTES
    schemas = document["components"]["schemas"]
    assert schemas["ChatRequest"]["properties"]["user_input"]["maxLength"] == 8000
    assert schemas["Tone"]["enum"] == ["neutral", "friendly", "strictly professional"]
    assert "Too many questions" in document["paths"]["/chat"]["post"]["responses"]["429"]["description"]


def test_there_is_no_documentation_page_that_loads_scripts_from_other_hosts(serving: Serving) -> None:
    for path in ("/docs", "/redoc"):
        assert serving.get(path).status_code == 404
