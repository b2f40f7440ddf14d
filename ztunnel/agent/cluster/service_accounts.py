# SPDX-License-Identifier: Apache-2.0
"""Blocks certificate requests for deleted ServiceAccounts.

Kubernetes issues no token for a deleted account, either. Existing certificates remain valid until
they expire, running pods continue, and a re-created account is valid again. The controller checks
the account itself (decision 0011); this check avoids futile requests and reports the reason.
"""

from __future__ import annotations

from typing import Protocol

from ztunnel.mesh import spiffe


class Accounts(Protocol):
    """The ServiceAccounts of the cluster; see `config_source.ConfigSource`."""

    def lacks_account(self, namespace: str, name: str) -> bool: ...


def blocked_reason(accounts: Accounts, namespace: str, name: str) -> str:
    """Why no certificate is requested for an account; empty if one is, or if it is unknown."""
    if accounts.lacks_account(namespace, name):
        return f"service account {namespace}/{name} does not exist"
    return ""


def blocked_reason_of_identity(accounts: Accounts, identity: str) -> str:
    """The same for the account of an identity; the controller rejects an invalid identity."""
    try:
        _, namespace, name = spiffe.parse(identity)
    except spiffe.SpiffeError:
        return ""
    return blocked_reason(accounts, namespace, name)
