# SPDX-License-Identifier: Apache-2.0
"""A cluster's API server: server-side apply, delete, and waiting for a roll-out.

Only the kinds in deploy/ are supported, so API discovery is not needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztctl.cluster.manifests import Object, title
from ztctl.errors import CommandError, NotReachableError
from ztunnel.kube.client.access import Access, AccessError
from ztunnel.kube.client.request import (
    APPLY_PATCH,
    CONFLICT,
    FORBIDDEN,
    JSON,
    NOT_FOUND,
    UNAUTHORIZED,
    ApiError,
    send,
)

FIELD_MANAGER = "ztctl"
REQUEST_TIMEOUT_S = 30.0
POLL_INTERVAL_S = 0.5
_PLURALS = {  # kind: plural, and whether it is namespaced
    "ClusterRole": ("clusterroles", False),
    "ClusterRoleBinding": ("clusterrolebindings", False),
    "ConfigMap": ("configmaps", True),
    "CustomResourceDefinition": ("customresourcedefinitions", False),
    "DaemonSet": ("daemonsets", True),
    "Deployment": ("deployments", True),
    "Gateway": ("gateways", True),
    "GatewayClass": ("gatewayclasses", False),
    "Namespace": ("namespaces", False),
    "NetworkPolicy": ("networkpolicies", True),
    "PodDisruptionBudget": ("poddisruptionbudgets", True),
    "Role": ("roles", True),
    "RoleBinding": ("rolebindings", True),
    "ServiceAccount": ("serviceaccounts", True),
    "ValidatingAdmissionPolicy": ("validatingadmissionpolicies", False),
    "ValidatingAdmissionPolicyBinding": ("validatingadmissionpolicybindings", False),
}


@dataclass(frozen=True)
class Progress:
    """The progress of a roll-out; `text` describes it for progress output."""

    is_done: bool
    text: str


class ApiServer:
    """One API server, with the credentials of a kubeconfig. Every method raises CommandError."""

    def __init__(self, kubeconfig: Path | None, context: str | None) -> None:
        try:
            self._api = Access(kubeconfig or default_kubeconfig(), context).client()
        except AccessError as error:
            raise NotReachableError(str(error)) from error
        self.url: str = self._api.configuration.host

    def get(self, obj: Object) -> Object | None:
        """The object's current state; None if it does not exist."""
        return self._call("GET", path_of(obj), missing_ok=True)

    def list(self, path: str, **query: str) -> list[Object]:
        """The items of a list."""
        response = self._call("GET", path, query=query)
        return list((response or {}).get("items") or [])

    def apply(self, obj: Object, *, dry_run: bool, force: bool) -> str:
        """Apply the object server-side; returns `created`, `configured` or `unchanged`."""
        before = self.get(obj)
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        after = self._call("PATCH", path_of(obj), body=obj, query=query)
        if before is None:
            return "created"
        is_unchanged = _without_volatile(before) == _without_volatile(after or {})
        return "unchanged" if is_unchanged else "configured"

    def delete(self, obj: Object) -> bool:
        """Delete the object and its dependents, in the background. False if it did not exist."""
        options = {"propagationPolicy": "Background"}
        return self._call("DELETE", path_of(obj), body=options, missing_ok=True) is not None

    def wait_for_rollout(
        self, obj: Object, timeout_s: float, on_change: Callable[[str], None]
    ) -> bool:
        """Wait until a DaemonSet or Deployment is rolled out. False on timeout."""
        name = title(obj)
        return self.wait(
            lambda: rollout_progress(self.get(obj)),
            timeout_s,
            lambda text: on_change(f"{name}: {text}"),
        )

    def wait(
        self,
        poll: Callable[[], Progress],
        timeout_s: float,
        on_change: Callable[[str], None],
    ) -> bool:
        """Poll until done, and pass each new text to `on_change`. False on timeout."""
        deadline, last_text = time.monotonic() + timeout_s, ""
        while True:
            progress = poll()
            if progress.text != last_text:
                on_change(progress.text)
                last_text = progress.text
            if progress.is_done or time.monotonic() >= deadline:
                return progress.is_done
            time.sleep(POLL_INTERVAL_S)

    def close(self) -> None:
        """Close all connections."""
        self._api.close()

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, str] | None = None,
        missing_ok: bool = False,
    ) -> Object | None:
        try:
            response: Object = send(
                self._api,
                method,
                path,
                query=query,
                body=body,
                content_type=APPLY_PATCH if method == "PATCH" else JSON,
                timeout_s=REQUEST_TIMEOUT_S,
            )
        except ApiError as error:
            if error.status == NOT_FOUND and missing_ok:
                return None
            if error.status:
                raise _status_error(method, path, error) from error
            raise NotReachableError(
                f"{method} {path} at {self.url} failed: {error}; "
                "hint: check the cluster, or set --kubeconfig or --context"
            ) from error
        return response


def path_of(obj: Object) -> str:
    """The object's path on the API server."""
    api = obj["apiVersion"]
    root = f"/apis/{api}" if "/" in api else f"/api/{api}"
    plural, is_namespaced = _PLURALS[obj["kind"]]
    metadata = obj["metadata"]
    namespace = f"/namespaces/{metadata['namespace']}" if is_namespaced else ""
    return f"{root}{namespace}/{plural}/{metadata['name']}"


def rollout_progress(obj: Object | None) -> Progress:
    """The progress of a DaemonSet's or Deployment's roll-out, from its status. Pure."""
    if obj is None:
        return Progress(False, "not found")
    status = obj.get("status") or {}
    if status.get("observedGeneration", 0) < obj["metadata"].get("generation", 1):
        return Progress(False, "waiting for the cluster's controllers")
    if obj["kind"] == "DaemonSet":
        desired = status.get("desiredNumberScheduled", 0)
        updated = status.get("updatedNumberScheduled", 0)
        available = status.get("numberAvailable", 0)
    else:
        desired = obj["spec"].get("replicas", 1)
        updated = status.get("updatedReplicas", 0)
        available = status.get("availableReplicas", 0)
    if updated < desired:
        return Progress(False, f"{updated} of {desired} updated")
    return Progress(available >= desired, f"{min(available, desired)} of {desired} ready")


def default_kubeconfig() -> Path:
    """The same as kubectl's: the first file in $KUBECONFIG, otherwise ~/.kube/config."""
    first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(first) if first else Path.home() / ".kube" / "config"


def _without_volatile(obj: Object) -> Object:
    """The object without status and without metadata that the server updates."""
    stable = {name: value for name, value in obj.items() if name != "status"}
    volatile = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
    stable["metadata"] = {
        name: value for name, value in obj.get("metadata", {}).items() if name not in volatile
    }
    return stable


def _status_error(method: str, path: str, error: ApiError) -> CommandError:
    text = f"{method} {path} failed: the API server responded {error.status}: {error.message}"
    if error.status == CONFLICT and method == "PATCH":
        return CommandError(f"{text}; hint: --force takes ownership of these fields")
    if error.status in (UNAUTHORIZED, FORBIDDEN):
        return CommandError(f"{text}; hint: use the credentials of a cluster administrator")
    return CommandError(text)
