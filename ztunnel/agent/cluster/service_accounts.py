# SPDX-License-Identifier: Apache-2.0
"""Service accounts that are gone: no certificate is asked for in their name.

As in Kubernetes, where a deleted account gets no token any more: certificates that are there run
until they expire, pods that run go on running, and an account that is made again is as good as
before. The signer looks for itself (0011); here asking in vain is spared, and people are told.
"""

from __future__ import annotations

from typing import Protocol

from ztunnel.mesh import spiffe


class Accounts(Protocol):
    """What is known of the cluster's; `agent.source.Source` is one."""

    def lacks_account(self, namespace: str, name: str) -> bool: ...


def missing(accounts: Accounts, namespace: str, name: str) -> str:
    """What is wrong with an account; empty when nothing is, or nobody knows."""
    if accounts.lacks_account(namespace, name):
        return f"service account {namespace}/{name} does not exist"
    return ""


def missing_of(accounts: Accounts, identity: str) -> str:
    """The same of an identity's account; what is no identity is for the signer to refuse."""
    try:
        _, namespace, name = spiffe.parse(identity)
    except spiffe.SpiffeError:
        return ""
    return missing(accounts, namespace, name)
