"""The API against its own description: generated requests, and a description of everything."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from accounting.installation import version
from tests.support.api_site import Site


@pytest.fixture(scope="module")
def document(sample_site: Site) -> dict[str, Any]:
    document: dict[str, Any] = sample_site.raw("/api/openapi.json").json
    return document


@pytest.mark.parametrize("examples", [2, pytest.param(8, marks=pytest.mark.long)])
def test_generated_requests_get_the_answers_that_are_described(
    sample_site: Site, document: dict[str, Any], examples: int
) -> None:
    # Every worker imports this module, and one needs what takes a second to import.
    import schemathesis  # noqa: PLC0415
    from schemathesis import Case, GenerationMode  # noqa: PLC0415
    from schemathesis.checks import positive_data_acceptance  # noqa: PLC0415

    url = f"http://127.0.0.1:{sample_site.port}"
    schema = schemathesis.openapi.from_dict(document)
    operations: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) == len(document["paths"])
    for operation in operations:
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            if mode is GenerationMode.NEGATIVE and not operation.query:
                continue  # nothing can be wrong: any text may be the id of a session

            @seed(20261128)
            @settings(
                max_examples=examples,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(mode))
            def check(case: Case[Any]) -> None:
                if case.query and "wait" in case.query:
                    case.query["wait"] = 0
                response = case.call(base_url=url)
                assert response.status_code < 500
                if response.status_code == 414:
                    return  # the gate refuses what is longer than any cursor
                # Names, times and cursors have a grammar beyond their schema.
                case.validate_response(response, excluded_checks=[positive_data_acceptance])

            check()


def test_everything_is_described(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == version()
    assert document["security"] == [{"token": []}, {"session": []}, {}]
    assert set(document["components"]["securitySchemes"]) == {"token", "session"}
    described = 0
    for path, operations in document["paths"].items():
        (operation,) = operations.values()
        assert operation["description"]
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (path, parameter["name"])
        problems = {"400", "401", "403", "404", "409", "429", "503", "default"}
        assert {"200", *problems} <= set(operation["responses"])
    for name, schema in document["components"]["schemas"].items():
        assert schema["description"], name
        for field, value in schema["properties"].items():
            assert value.get("description") or "$ref" in value, (name, field)
            described += 1
    assert described > 100
    assert document["components"]["schemas"]["Session"]["properties"]["ended_at"] == {
        "type": ["string", "null"],
        "format": "date-time",
        "description": "When it ended; null while it is open",
    }
