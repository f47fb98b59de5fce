"""The OpenAPI document: valid, and complete enough to generate a client."""

from __future__ import annotations

from typing import Any

import openapi_spec_validator
import pytest

from served import Served


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.server.call("GET", "/openapi.json")
    return found


def test_it_is_valid_and_has_a_schema_for_every_answer(document: dict[str, Any]) -> None:
    openapi_spec_validator.validate(document)
    names = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            names.add(operation["operationId"])
            codes = set(operation["responses"])
            assert {"4XX", "5XX"} < codes, (method, path)
            assert "422" not in codes
            for code, answer in operation["responses"].items():
                schemas = [body.get("schema") for body in answer.get("content", {}).values()]
                assert code == "204" or (schemas and all(schemas)), (method, path, code)
                whole = answer.get("content", {}).get("application/json")
                assert whole is None or "$ref" in whole["schema"], (method, path, code)
    assert len(names) == sum(len(operations) for operations in document["paths"].values())
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}


def test_a_request_may_name_its_adapter_in_a_header(document: dict[str, Any]) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"):
        names = [one["name"] for one in document["paths"][path]["post"]["parameters"]]
        assert {"X-Adapter-Id", "X-Amzn-SageMaker-Adapter-Identifier"} < set(names)
    models = document["paths"]["/v1/models"]["get"]["parameters"]
    assert [one["name"] for one in models] == ["X-User-Id"]
