"""A token that expires in the middle: it is renewed, nothing is done twice or lost, and what cannot be says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.oauth2.credentials import Credentials

from airflow_mlops.backends import TERMINAL, backend_of
from airflow_mlops.backends.google import vertex as vertex_module
from airflow_mlops.call import Call, Store
from airflow_mlops.errors import CloudAccessError, CloudUnreachableError
from airflow_mlops.google import rest as rest_module
from airflow_mlops.google.auth import lend
from airflow_mlops.google.rest import Rest
from tests import toy
from tests.google.test_vertex import GOOGLE
from tests.loopback.rest import Asked, RestService, route, until

ME = "google_cloud_default"


class Tokens(RestService):
    """What gives out tokens, each another one."""

    given = 0

    @route("POST", "token")
    def token(self, asked: Any) -> dict[str, Any]:
        self.given += 1
        return {"access_token": f"token-{self.given}", "expires_in": 3600, "token_type": "Bearer"}


class Door(RestService):
    """In front of a service: the newest token is let in, and that for some requests only."""

    def __init__(self, tokens: Tokens, behind: RestService) -> None:
        super().__init__()
        self.tokens, self.behind = tokens, behind
        self.lasts = 1
        """For how many requests a token is good."""
        self.let_in: dict[str, int] = {}

    def answer(self, asked: Asked) -> tuple[int, Any, bool]:
        token = str(asked.authorization)
        self.asked.append(asked)
        if token != f"Bearer token-{self.tokens.given}" or self.let_in.get(token, 0) >= self.lasts:
            error = {"code": 401, "status": "UNAUTHENTICATED", "message": "Request had invalid credentials."}
            return 401, {"error": error}, False
        self.let_in[token] = self.let_in.get(token, 0) + 1
        return self.behind.answer(asked)


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    with Tokens() as service:
        yield service


def credentials(tokens: Tokens) -> Credentials:
    """Those of a person, whose first token has expired already."""
    return Credentials("old", refresh_token="r", token_uri=f"{tokens.url}/token", client_id="c", client_secret="s")


@pytest.fixture
def door(tokens: Tokens, vertex: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """Vertex AI behind a door."""
    with Door(tokens, vertex) as service:
        for name in ("AIPLATFORM", "LOGGING"):
            monkeypatch.setenv(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{name}", service.url)
        vertex_module._rest.cache_clear()
        yield service


@pytest.fixture
def call(tmp_path: Path, gcs: str) -> Call:
    store = Store(f"{gcs}/mlops")
    data = store.put_file(toy.write(toy.rows("2024-01", 50), tmp_path / "rows.parquet"), "dataset")
    params = {"target": "y", "split": {"by": "random", "test": 0.5}}
    return Call(pipeline="toy", stage="prepare", run="r", inputs={"data": data}, params=params, store=store.root)


def test_a_token_that_is_good_for_one_request_carries_a_job_to_its_end(
    door: Door, vertex: Any, tokens: Tokens, call: Call
) -> None:
    backend = backend_of("vertex", GOOGLE)
    with lend(ME, credentials(tokens)):
        handle = backend.submit(call, {})
        until(lambda: backend.status(handle) in TERMINAL, 120)
        assert list(backend.logs(handle))
        assert backend.collect(handle).stage == "prepare"
    refused = len(door.asked) - len(vertex.asked)
    assert len(vertex.jobs) == len(vertex.requests("POST", "customJobs$")) == 1
    assert refused >= tokens.given - 1 >= 4, "each token was used up, and renewed"


def test_a_token_that_cannot_be_renewed_says_so_and_leaves_the_job_to_be_found(
    door: Door, vertex: Any, tokens: Tokens, call: Call
) -> None:
    backend = backend_of("vertex", GOOGLE)
    with lend(ME, credentials(tokens)):
        handle = backend.submit(call, {})
        tokens.fail("INVALID_ARGUMENT", "Token has been expired or revoked.", times=99)
        with pytest.raises(CloudAccessError, match="google_cloud_default.*expired or revoked") as caught:
            backend.status(handle)
        assert "give the connection a valid key" in str(caught.value) and not caught.value.retryable
        tokens.forget()
        assert backend.find(call) == handle
        until(lambda: backend.status(handle) in TERMINAL, 120)
        assert backend.collect(handle).stage == "prepare"
    assert len(vertex.jobs) == 1


class Things(RestService):
    """A service with something to read and something to make."""

    made = 0

    @route("GET", "v1/projects/p/things")
    def things(self, asked: Any) -> dict[str, Any]:
        return {"things": []}

    @route("POST", "v1/projects/p/things")
    def make(self, asked: Any) -> dict[str, Any]:
        self.made += 1
        return {}


@pytest.fixture
def rest(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rest]:
    """A service that has a door; what is made there is made once."""
    with Things() as things, Door(tokens, things) as door:
        monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_THINGS", door.url)
        made = Rest("things", ME)
        yield made
        assert things.made <= 1


def test_what_must_not_be_done_twice_is_asked_with_a_new_token(rest: Rest, tokens: Tokens) -> None:
    with lend(ME, credentials(tokens)):
        rest.get("v1/projects/p/things")
        assert rest.ask("POST", "v1/projects/p/things", {}, again=False) == {}


def test_a_connection_that_holds_another_key_by_now_is_asked_again(rest: Rest, tokens: Tokens) -> None:
    keys = iter([Credentials("revoked"), credentials(tokens)])
    with lend(ME, lambda: next(keys)):
        assert rest.get("v1/projects/p/things") == {"things": []}


def test_a_token_that_cannot_be_renewed_just_now_is_worth_a_retry(
    rest: Rest, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_module, "_TRIES", 1)
    tokens.fail("UNAVAILABLE", times=99)
    with (
        lend(ME, credentials(tokens)),
        pytest.raises(CloudUnreachableError, match="cannot be renewed now") as caught,
    ):
        rest.get("v1/projects/p/things")
    assert caught.value.retryable


def test_a_door_that_lets_nobody_in_is_no_question_of_roles(rest: Rest, tokens: Tokens) -> None:
    class Stale(Credentials):
        def refresh(self, request: Any) -> None:
            self.token = "of another project"

    with lend(ME, Stale("x")), pytest.raises(CloudAccessError, match="valid key") as caught:
        rest.get("v1/projects/p/things")
    assert "add-iam-policy-binding" not in str(caught.value)
