from __future__ import annotations

import inspect
import json

import pytest

from omendb import errors
from omendb.server import problems

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.OmenError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_a_status_of_its_own(kind: type[errors.OmenError]) -> None:
    assert kind in problems.STATUSES


def test_a_new_kind_of_error_takes_the_status_of_its_base() -> None:
    class NewError(errors.OverloadedError):
        code = "new"

    response = problems.to_response(NewError("busy"))

    assert response.status == 503
    assert json.loads(response.body) == {"error": {"code": "new", "message": "busy"}}


def test_facts_become_fields_and_headers() -> None:
    field = problems.to_response(errors.InvalidRequestError("is wrong", "[3].timestamp"))
    setting = problems.to_response(errors.ConfigError("max_error", -1, "must be from 0"))
    method = problems.to_response(errors.MethodNotAllowedError("no", ("GET", "HEAD")))
    busy = problems.to_response(errors.OverloadedError("busy", retry_after_seconds=9))
    slow = problems.to_response(errors.RequestTimeoutError("slow"))

    assert json.loads(field.body)["error"]["field"] == "[3].timestamp"
    assert json.loads(setting.body)["error"]["field"] == "max_error"
    assert ("allow", "GET, HEAD") in method.headers
    assert ("retry-after", "9") in busy.headers
    assert ("connection", "close") in slow.headers


def test_unknown_errors_are_logged_and_hidden(caplog: pytest.LogCaptureFixture) -> None:
    response = problems.to_response(KeyError("secret"))

    assert response.status == 500
    assert b"secret" not in response.body
    assert "KeyError: 'secret'" in caplog.text
