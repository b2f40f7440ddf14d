# SPDX-License-Identifier: Apache-2.0
"""Why a connection failed, as metrics tell it: Istio's `response_flags`.

The flag travels with the text for the log, from where the failure is known to where it is counted:
`Reason` is that text. A plain text has none, and then it counts whether bytes could flow already.
"""

from __future__ import annotations

from enum import StrEnum


class Flag(StrEnum):
    """The values that Istio's ztunnel has."""

    NONE = "-"
    DENY = "DENY"  # by policy, here or at the destination
    CONNECT = "CONNECT"  # the destination, or the way to it
    TLS_FAILURE = "TLS_FAILURE"
    H2_HANDSHAKE_FAILURE = "H2_HANDSHAKE_FAILURE"  # TLS stood, but no HTTP/2 came of it
    IDENTITY_ERROR = "IDENTITY_ERROR"  # no certificate of ours, or the peer is not whom we expect


class Reason(str):
    """Why, for people; `flag` for metrics."""

    __slots__ = ("flag",)
    flag: Flag

    def __new__(cls, text: str, flag: Flag) -> Reason:
        made = super().__new__(cls, text)
        made.flag = flag
        return made

    def __reduce__(self) -> tuple[type[Reason], tuple[str, Flag]]:
        return Reason, (str(self), self.flag)


def flag_of(reason: str, *, established: bool) -> Flag:
    """The flag of an end. `established`: bytes could flow; then a plain reason is an end like
    any other (a reset by either side), else the connection never came to be."""
    if isinstance(reason, Reason):
        return reason.flag
    return Flag.NONE if established else Flag.CONNECT


def with_prefix(reason: str, more: str) -> str:
    """`reason` with `more` before it, the flag kept."""
    text = f"{more}{reason}"
    return Reason(text, reason.flag) if isinstance(reason, Reason) else text
