# SPDX-License-Identifier: Apache-2.0
"""Secrets in delta ADS: sent on demand, and again while Envoy rejects them."""

from __future__ import annotations

from ztunnel.gateway.xds.delta import DeltaSession, Request, Response, SyncState
from ztunnel.gateway.xds.resources import LISTENER, SECRET, Resource
from ztunnel.gateway.xds.secrets import RETRY_S

MISSING = "Invalid path: /certs/a.crt"


def secret(name: str) -> Resource:
    return Resource(SECRET, name, name.encode(), {}, watched=(2, 7, "/certs"))


class Stream:
    """A session whose client subscribes to secrets; `now` in seconds."""

    def __init__(self, *names: str, subscribe: tuple[str, ...] = ()) -> None:
        self.session = DeltaSession()
        self.session.set_config({SECRET: {each: secret(each) for each in names}})
        self.session.receive(Request(SECRET, subscribe=subscribe or names))
        self.now = 0.0

    def sent(self) -> list[Response]:
        return list(self.session.responses(self.now))

    def one(self) -> Response:
        (response,) = self.sent()
        return response

    def accept(self, response: Response) -> None:
        self.session.receive(Request(SECRET, nonce=response.nonce))

    def reject(self, response: Response) -> None:
        self.session.receive(Request(SECRET, nonce=response.nonce, error=MISSING))

    def states(self) -> dict[str, SyncState]:
        return {each.name: each.state for each in self.session.statuses()}


def names(response: Response) -> list[str]:
    return [each.name for each in response.resources]


def test_only_requested_secrets_are_sent() -> None:
    stream = Stream("a.crt", "b.crt", subscribe=("a.crt",))
    assert names(stream.one()) == ["a.crt"]


def test_rejected_secret_is_sent_again_every_second_until_accepted() -> None:
    stream = Stream("a.crt")
    stream.reject(stream.one())
    for attempt in range(1, 4):
        assert stream.sent() == []
        assert stream.session.wait_until == attempt * RETRY_S
        stream.now = attempt * RETRY_S
        stream.reject(stream.one())
        assert stream.states() == {"a.crt": SyncState.REJECTED}
    stream.now += RETRY_S
    stream.accept(stream.one())
    assert stream.states() == {"a.crt": SyncState.SYNCED}
    assert stream.sent() == []
    assert stream.session.wait_until is None


def test_each_attempt_has_another_encoding_and_the_same_version() -> None:
    """Envoy accepts a secret that equals the rejected one without reading the files."""
    stream = Stream("a.crt")
    attempts = []
    for attempt in range(5):
        stream.now = attempt * RETRY_S
        (resource,) = (response := stream.one()).resources
        attempts.append(resource)
        stream.reject(response)
        list(stream.sent())
    assert len({each.head for each in attempts}) == 5
    assert {each.version for each in attempts} == {secret("a.crt").version}


def test_rejected_secret_does_not_delay_the_others() -> None:
    stream = Stream("a.crt", "b.crt", "c.crt")
    while responses := stream.sent():
        for each in responses:
            (stream.reject if "b.crt" in names(each) else stream.accept)(each)
    assert stream.states() == {
        "a.crt": SyncState.SYNCED,
        "b.crt": SyncState.REJECTED,
        "c.crt": SyncState.SYNCED,
    }
    stream.now = RETRY_S
    assert names(stream.one()) == ["b.crt"]


def test_several_rejected_secrets_are_sent_again_one_by_one() -> None:
    stream = Stream("a.crt", "b.crt")
    while responses := stream.sent():
        for each in responses:
            stream.reject(each)
    stream.now += RETRY_S
    found = []
    while responses := stream.sent():
        for each in responses:
            found.append(names(each))
            stream.reject(each)
    assert found == [["a.crt"], ["b.crt"]]


def test_rejected_secret_that_is_not_requested_any_more_is_not_sent() -> None:
    stream = Stream("a.crt")
    stream.reject(stream.one())
    stream.sent()
    stream.session.receive(Request(SECRET, unsubscribe=("a.crt",)))
    stream.now = 10 * RETRY_S
    assert stream.sent() == []
    assert stream.session.wait_until is None


def test_repaired_secret_lets_rejected_listeners_be_sent_again() -> None:
    stream = Stream("a.crt")
    listener = Resource(LISTENER, "l", b"head", {"chain": b"uses a.crt"}, 3)
    stream.reject(stream.one())
    stream.sent()
    stream.session.set_config({SECRET: {"a.crt": secret("a.crt")}, LISTENER: {"l": listener}})
    stream.session.receive(Request(LISTENER))
    while responses := [each for each in stream.sent() if each.type_url == LISTENER]:
        for each in responses:
            stream.session.receive(
                Request(LISTENER, nonce=each.nonce, error="Failed to load certificate chain")
            )
    assert [url for url, _ in stream.session.rejected()] == [SECRET, LISTENER]
    stream.now = RETRY_S
    stream.accept(stream.one())
    assert [(each.type_url, names(each)) for each in stream.sent()] == [(LISTENER, ["l"])]
