"""The OpenAPI document: requests made from it, right and wrong ones, meet what it says and never a server's error."""

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
BEYOND_ITS_SCHEMA: dict[str, Any] = {"POST /v1/chat/completions": [positive_data_acceptance]}
"""That the last message is the customer's no JSON schema can say."""


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_requests_made_from_the_document(serving: Serving, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{serving.url}/openapi.json")
    operations: dict[str, Any] = {str(found.ok().label): found.ok() for found in schema.get_all_operations()}  # type: ignore[union-attr]
    assert set(operations) == ROUTES
    statuses = set()
    for operation in operations.values():
        if mode is GenerationMode.NEGATIVE and operation.label not in ("POST /chat", "POST /v1/chat/completions"):
            continue  # there is nothing in them that could be wrong

        @hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)
        @hypothesis.given(operation.as_strategy(generation_mode=mode))
        def meets_its_description(case: Case) -> None:
            response = case.call(timeout=PATIENCE)
            statuses.add(response.status_code)
            case.validate_response(response, excluded_checks=BEYOND_ITS_SCHEMA.get(case.operation.label))

        meets_its_description()
    assert statuses <= ({200, 400, 404} if mode is GenerationMode.POSITIVE else {400, 422})


def test_the_statuses_of_a_question_are_documented(serving: Serving) -> None:
    paths = serving.get("/openapi.json").json()["paths"]
    for path, invalid in (("/chat", "422"), ("/v1/chat/completions", "400")):
        assert {"200", invalid, "404", "429", "503"} <= set(paths[path]["post"]["responses"])


def test_the_page_of_the_document_shows_all_of_it_and_loads_nothing(serving: Serving) -> None:
    page = serving.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for text in (
        *ROUTES,
        "user_input",
        "maxLength 8000",
        "neutral, friendly, strictly professional",
        "Too many questions",
    ):
        assert text in page.text
    assert "<script" not in page.text
    assert page.text.count("http") == page.text.count("http://127.0.0.1:8000/chat")
