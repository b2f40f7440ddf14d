# SPDX-License-Identifier: Apache-2.0
"""Puts the signer's parts together: whoever leads watches and works, the others wait.

wait for the lease --> watch Secrets, requests, namespaces, ConfigMaps, policies --> work
         ^                                                                            |
         +-------------------------------- lease lost --------------------------------+
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ztunnel.controller.ca_manager import Authorities, CaNotReadyError, Policy
from ztunnel.controller.csr_controller import Requests, is_over
from ztunnel.controller.csr_policy import Terms
from ztunnel.controller.kube_client import Cluster
from ztunnel.controller.leader_election import Leadership, LeaseTimings
from ztunnel.controller.policy_status_controller import PolicyWatch, Verdicts
from ztunnel.controller.workqueue import Work
from ztunnel.identity.ca import CaError
from ztunnel.identity.csr_signer import CsrRejected
from ztunnel.kube.client.informers import informer, stop_all
from ztunnel.kube.constants import (
    AGENT_ACCOUNT,
    LEASE,
    NAMESPACE,
    PLUGGED_CA,
    ROOTS_CONFIGMAP,
    ROOTS_KEY,
    SELF_MADE_CA,
    SIGNER_NAME,
    user_of,
)
from ztunnel.mesh.model import DEFAULT_TRUST_DOMAIN

KNOWN = (ApiException, HTTPError, CaNotReadyError, CaError, CsrRejected)  # tell all in their text
THREADS = 4  # a request waits for the API server four times; so others need not

log = structlog.get_logger()


@dataclass(frozen=True)
class Options:
    """`identity` tells this process from other signers. `settle` is in seconds."""

    identity: str
    namespace: str = NAMESPACE
    agent_account: str = AGENT_ACCOUNT
    trust_domain: str = DEFAULT_TRUST_DOMAIN
    ttl: timedelta = timedelta(hours=24)
    settle: float = 10.0
    lease: int = 15

    @property
    def terms(self) -> Terms:
        return Terms(self.trust_domain, user_of(self.namespace, self.agent_account), self.ttl)

    @property
    def policy(self) -> Policy:
        keep = self.ttl.total_seconds() + self.settle
        return Policy(self.namespace, self.trust_domain, keep, self.settle)


@dataclass(frozen=True)
class Item:
    """Something to look at: the CA, a request, a namespace's roots, a policy."""

    kind: str
    name: str = ""


class SignerProcess:
    """One signer, leading or waiting."""

    def __init__(self, api: Any, options: Options) -> None:
        self._options = options
        self._cluster = Cluster(api)
        self._leadership = Leadership(
            api, options.namespace, LEASE, options.identity, LeaseTimings.of(options.lease)
        )

    def run(self) -> None:
        """Until `stop`."""
        self._leadership.run(self._lead)

    def stop(self) -> None:
        """From any thread, or a signal's handler."""
        self._leadership.stop()

    def is_healthy(self) -> bool:
        """Whether the API server answered lately, to the leader or to one that waits."""
        return self._leadership.silence < 2 * self._options.lease

    def _lead(self, lost: threading.Event) -> None:
        term = LeaderSession(self._cluster, self._options, lost)
        try:
            term.start()
            lost.wait()
        finally:
            term.close()


class LeaderSession:
    """All that is known while this process leads; the next term begins with nothing."""

    def __init__(self, cluster: Cluster, options: Options, lost: threading.Event) -> None:
        self._lost = lost
        self._work: Work[Item] = Work()
        self._authorities = Authorities(cluster, options.policy)
        self._requests = Requests(cluster, options.terms, self._authorities.current)
        self._policies = PolicyWatch(
            cluster.core.api_client, lambda name: self._work.add(Item("policy", name))
        )
        verdicts = Verdicts(cluster.core.api_client, self._policies.get)
        self._handlers: dict[str, Callable[[str], None]] = {
            "ca": self._look_at_ca,
            "request": self._requests.handle,
            "roots": self._look_at_namespace,
            "policy": verdicts.handle,
        }
        core, home = cluster.core, options.namespace
        self._namespaces = self._informer(core.list_namespace, self._namespace_came)
        self._published = self._informer(
            core.list_config_map_for_all_namespaces,
            self._roots_changed,
            field_selector=f"metadata.name={ROOTS_CONFIGMAP}",
        )
        self._informers = [
            self._policies,
            self._informer(
                cluster.certificates.list_certificate_signing_request,
                self._request_came,
                field_selector=f"spec.signerName={SIGNER_NAME}",
            ),
            self._namespaces,
            self._published,
            *(
                self._informer(
                    core.list_namespaced_secret,
                    lambda _: self._work.add(Item("ca")),
                    namespace=home,
                    field_selector=f"metadata.name={name}",
                )
                for name in (PLUGGED_CA, SELF_MADE_CA)
            ),
        ]
        self._home = home
        self._threads = [
            threading.Thread(target=self._serve, name=f"signer-{number}", daemon=True)
            for number in range(THREADS)
        ]

    def start(self) -> None:
        self._work.add(Item("ca"))
        for each in (*self._informers, *self._threads):
            each.start()

    def close(self) -> None:
        self._work.close()
        stop_all(self._informers)
        for thread in self._threads:
            thread.join()

    def _informer(
        self, list_func: Callable[..., Any], on_event: Callable[[Any], None], **selectors: Any
    ) -> Any:
        return informer(list_func, on_event, self._lost, **selectors)

    def _request_came(self, csr: Any) -> None:
        if not is_over(csr):
            self._work.add(Item("request", csr.metadata.name))

    def _namespace_came(self, namespace: Any) -> None:
        self._work.add(Item("roots", namespace.metadata.name))

    def _roots_changed(self, config_map: Any) -> None:
        where = config_map.metadata.namespace
        self._work.add(Item("ca") if where == self._home else Item("roots", where))

    def _look_at_namespace(self, name: str) -> None:
        """Cheap when all is well, for every namespace is looked at again and again."""
        there = self._published.cache.get_by_key(f"{name}/{ROOTS_CONFIGMAP}")
        bundle = (there.data or {}).get(ROOTS_KEY, "") if there is not None else ""
        if bundle.encode() != self._authorities.bundle:
            self._authorities.publish(name)

    def _look_at_ca(self, _: str) -> None:
        before = self._authorities.bundle
        wait = self._authorities.refresh()
        if wait is not None:
            self._work.add(Item("ca"), after=wait)
        if self._authorities.bundle != before:
            for key in self._namespaces.cache.list_keys():
                self._work.add(Item("roots", key))

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            try:
                self._handlers[item.kind](item.name)
                self._work.done(item)
            except Exception as error:
                self._failed(item, error)

    def _failed(self, item: Item, error: Exception) -> None:
        delay = self._work.retry(item)
        if isinstance(error, ApiException) and error.status == 409:
            return  # somebody was quicker: looked at anew
        known = isinstance(error, KNOWN)
        log.warning(
            "not done, tried again",
            kind=item.kind,
            name=item.name,
            error=str(error).splitlines()[0] if str(error) else type(error).__name__,
            retry_in=round(delay, 1),
            exc_info=None if known else error,
        )
