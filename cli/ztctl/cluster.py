# SPDX-License-Identifier: Apache-2.0
"""Objects to and from an API server: server-side apply, delete, wait for a roll-out.

Knows the kinds of deploy/ only, which spares asking the server what there is.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from ztctl.errors import CommandError, NotReachableError
from ztctl.manifests import Object, title
from ztunnel.kube.client.access import Access, AccessError

MANAGER = "ztctl"  # field manager
TIMEOUT = (5, 30)  # seconds to connect, to answer
POLL = 0.5  # seconds between looks at a roll-out
_PLURALS = {  # kind → its plural, whether it is in a namespace
    "ClusterRole": ("clusterroles", False),
    "ClusterRoleBinding": ("clusterrolebindings", False),
    "ConfigMap": ("configmaps", True),
    "CustomResourceDefinition": ("customresourcedefinitions", False),
    "DaemonSet": ("daemonsets", True),
    "Deployment": ("deployments", True),
    "Namespace": ("namespaces", False),
    "PodDisruptionBudget": ("poddisruptionbudgets", True),
    "Role": ("roles", True),
    "RoleBinding": ("rolebindings", True),
    "ServiceAccount": ("serviceaccounts", True),
    "ValidatingAdmissionPolicy": ("validatingadmissionpolicies", False),
    "ValidatingAdmissionPolicyBinding": ("validatingadmissionpolicybindings", False),
}


@dataclass(frozen=True)
class Progress:
    """How far a workload is; `text` for people."""

    done: bool
    text: str


class Cluster:
    """One API server, as one of a kubeconfig's users. Every method raises CommandError."""

    def __init__(self, kubeconfig: Path | None, context: str | None) -> None:
        try:
            self._api = Access(kubeconfig or default_kubeconfig(), context).client()
        except AccessError as error:
            raise NotReachableError(str(error)) from error
        self.url: str = self._api.configuration.host

    def get(self, obj: Object) -> Object | None:
        """The object as the server has it; None when it has none."""
        return self._call("GET", path_of(obj), missing_ok=True)

    def list(self, path: str, **query: str) -> list[Object]:
        """The items of a list."""
        found = self._call("GET", path, query=query)
        return list((found or {}).get("items") or [])

    def apply(self, obj: Object, *, dry_run: bool, force: bool) -> str:
        """Server-side apply; `created`, `configured` or `unchanged`."""
        before = self.get(obj)
        query = {"fieldManager": MANAGER, "force": "true" if force else "false"}
        if dry_run:
            query["dryRun"] = "All"
        after = self._call("PATCH", path_of(obj), body=obj, query=query)
        if before is None:
            return "created"
        return "unchanged" if _meaning(before) == _meaning(after or {}) else "configured"

    def delete(self, obj: Object) -> bool:
        """False when it was not there. What belongs to it goes afterwards."""
        options = {"propagationPolicy": "Background"}
        return self._call("DELETE", path_of(obj), body=options, missing_ok=True) is not None

    def wait_for(self, obj: Object, timeout: float, on_change: Callable[[str], None]) -> bool:
        """Until a DaemonSet or Deployment is rolled out. False when `timeout` seconds are over."""
        name = title(obj)
        return self.wait(
            lambda: progress(self.get(obj)), timeout, lambda text: on_change(f"{name}: {text}")
        )

    def wait(
        self,
        look: Callable[[], Progress],
        timeout: float,
        on_change: Callable[[str], None],
    ) -> bool:
        """Look until it is done, telling each new text. False when `timeout` seconds are over."""
        deadline, told = time.monotonic() + timeout, ""
        while True:
            seen = look()
            if seen.text != told:
                on_change(seen.text)
                told = seen.text
            if seen.done or time.monotonic() >= deadline:
                return seen.done
            time.sleep(POLL)

    def close(self) -> None:
        """Let go of its connections."""
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
        kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        try:
            answer = self._api.call_api(
                *self._api.param_serialize(
                    method,
                    path,
                    query_params=list((query or {}).items()),
                    header_params={"Accept": "application/json", "Content-Type": kind},
                    body=body,
                    auth_settings=["BearerToken"],
                ),
                _request_timeout=TIMEOUT,
            )
            answer.read()
        except (HTTPError, OSError) as error:
            raise NotReachableError(
                f"asked {self.url} for {path}: {_first_line(error)}; is it the right cluster? "
                "name another --kubeconfig or --context"
            ) from error
        if answer.status == 404 and missing_ok:
            return None
        if not 200 <= answer.status < 300:
            raise _refusal(method, path, ApiException(http_resp=answer))
        found: Object = json.loads(answer.data)
        return found


def path_of(obj: Object) -> str:
    """Where an object is on the server."""
    api = obj["apiVersion"]
    root = f"/apis/{api}" if "/" in api else f"/api/{api}"
    plural, namespaced = _PLURALS[obj["kind"]]
    metadata = obj["metadata"]
    where = f"/namespaces/{metadata['namespace']}" if namespaced else ""
    return f"{root}{where}/{plural}/{metadata['name']}"


def progress(obj: Object | None) -> Progress:
    """How far the roll-out of a DaemonSet or Deployment is, from its status. Pure."""
    if obj is None:
        return Progress(False, "not there")
    status = obj.get("status") or {}
    if status.get("observedGeneration", 0) < obj["metadata"].get("generation", 1):
        return Progress(False, "waits for the cluster's controllers")
    if obj["kind"] == "DaemonSet":
        wanted = status.get("desiredNumberScheduled", 0)
        fresh = status.get("updatedNumberScheduled", 0)
        ready = status.get("numberAvailable", 0)
    else:
        wanted = obj["spec"].get("replicas", 1)
        fresh = status.get("updatedReplicas", 0)
        ready = status.get("availableReplicas", 0)
    if fresh < wanted:
        return Progress(False, f"{fresh} of {wanted} updated")
    return Progress(ready >= wanted, f"{min(ready, wanted)} of {wanted} ready")


def default_kubeconfig() -> Path:
    """kubectl's: the first file that $KUBECONFIG names, else ~/.kube/config."""
    named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(named) if named else Path.home() / ".kube" / "config"


def _meaning(obj: Object) -> Object:
    """An object without what changes by itself."""
    kept = {name: value for name, value in obj.items() if name != "status"}
    volatile = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
    kept["metadata"] = {
        name: value for name, value in obj.get("metadata", {}).items() if name not in volatile
    }
    return kept


def _refusal(method: str, path: str, error: ApiException) -> CommandError:
    try:
        message = str(json.loads(error.body or "")["message"])
    except (ValueError, TypeError, KeyError):
        message = str(error.reason)
    asked = f"{method} {path}: the API server answered {error.status}: {message}"
    if error.status == 409 and method == "PATCH":
        return CommandError(f"{asked}; to take these fields over, add --force")
    if error.status in (401, 403):
        return CommandError(f"{asked}; installing needs a cluster administrator's rights")
    return CommandError(asked)


def _first_line(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return str(cause).splitlines()[0] if str(cause) else type(error).__name__
