# SPDX-License-Identifier: Apache-2.0
"""Istio's `response_flags`: why a connection failed.

The code that detects a failure knows its flag. `Reason`, the text for the log, carries the flag to
the code that counts the failure. For a plain text, `flag_of` decides by whether the connection was
established.
"""

from __future__ import annotations

from enum import StrEnum


class Flag(StrEnum):
    """The values of Istio's ztunnel."""

    NONE = "-"
    DENY = "DENY"  # by policy, here or at the destination
    CONNECT = "CONNECT"  # the destination could not be reached
    TLS_FAILURE = "TLS_FAILURE"
    H2_HANDSHAKE_FAILURE = "H2_HANDSHAKE_FAILURE"  # TLS succeeded, but not HTTP/2
    IDENTITY_ERROR = "IDENTITY_ERROR"  # no certificate, or an unexpected peer identity


class Reason(str):
    """The reason of a failure as text, with its flag."""

    __slots__ = ("flag",)
    flag: Flag

    def __new__(cls, text: str, flag: Flag) -> Reason:
        reason = super().__new__(cls, text)
        reason.flag = flag
        return reason

    def __reduce__(self) -> tuple[type[Reason], tuple[str, Flag]]:
        return Reason, (str(self), self.flag)


def flag_of(reason: str, *, established: bool) -> Flag:
    """The flag of a closed connection. After it was established, a reason without a flag, such as
    a reset by a peer, is no failure; before, it is a failure to connect."""
    if isinstance(reason, Reason):
        return reason.flag
    return Flag.NONE if established else Flag.CONNECT


def with_prefix(reason: str, prefix: str) -> str:
    """`reason` with a prefix and the same flag."""
    text = f"{prefix}{reason}"
    return Reason(text, reason.flag) if isinstance(reason, Reason) else text
