# SPDX-License-Identifier: Apache-2.0
"""Hostnames of listeners and routes: exact, `*.suffix` for one label or more, or `` for all.

Semantics: Gateway API, Listener.hostname and HTTPRoute.spec.hostnames.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

ANY = ""


def covers(pattern: str, hostname: str) -> bool:
    """Return whether every name that `hostname` matches is matched by `pattern`."""
    if pattern == ANY:
        return True
    if pattern.startswith("*."):
        suffix = pattern[1:]
        if hostname.startswith("*."):
            return hostname[1:].endswith(suffix)
        return hostname.endswith(suffix) and len(hostname) > len(suffix)
    return pattern == hostname


def intersection(one: str, other: str) -> str | None:
    """Return the names that both match, as a hostname; None if there are none."""
    if covers(one, other):
        return other
    return one if covers(other, one) else None


def intersections(listener: str, route: Iterable[str]) -> tuple[str, ...]:
    """Return the hostnames at which a route with these hostnames serves a listener.

    Without hostnames, it is the listener's own. Empty: the route does not attach.
    """
    names = tuple(route) or (ANY,)
    found = (intersection(listener, each) for each in names)
    return tuple(dict.fromkeys(each for each in found if each is not None))


def most_specific(hostnames: Container[str], name: str) -> str | None:
    """Return the most specific of the hostnames that cover a name or pattern, or None."""
    return next((each for each in _covering(name) if each in hostnames), None)


def _covering(name: str) -> Iterator[str]:
    """Yield all hostnames that cover a name or pattern, the most specific first."""
    yield name
    labels = name.split(".")
    for at in range(1 if not name.startswith("*.") else 2, len(labels)):
        yield "*." + ".".join(labels[at:])
    yield ANY
