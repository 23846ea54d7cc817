"""``/openapi.json``: it describes what is read, and what is answered is as it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import HANG, Server, save_small

schemathesis = pytest.importorskip("schemathesis")
from hypothesis import HealthCheck, settings  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder: Path = save_small(tmp_path_factory.mktemp("models") / "small")
    with Server(folder, "--level", "2", "--max-new-tokens", "3") as found:
        yield found


@pytest.fixture(scope="module")
def api(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_what_is_answered_is_what_the_description_says(case):
    case.call_and_validate(checks=CHECKS, timeout=HANG)
