# SPDX-License-Identifier: Apache-2.0
"""A lab whose agents use a real API server, with exactly the RBAC of deploy/.

The API server owns the state: it assigns pod UIDs, and tests change labels there with kubectl. The
lab is scheduler and kubelet: it binds and runs pods, and a thread here copies bindings, statuses,
services and endpoints from the directory of the lab to the API server. The server listens on the
loopback of the host; a relay on the loopback of each node connects to it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError

from tests.support.apiserver.fault_proxy import FaultProxy
from tests.support.apiserver.objects import account
from tests.support.apiserver.rbac_fixture import agent_kubeconfig, grant
from tests.support.apiserver.server import ApiServer
from ztunnel.lab import Lab
from ztunnel.lab.network import netns
from ztunnel.lab.objects import Key, key_of

Object = dict[str, Any]
_POLL = 0.03  # seconds between polls of the directory of the lab
_GIVEN = ("uid", "creationTimestamp", "resourceVersion")
_PATHS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Service": "/api/v1/namespaces/{}/services",
    "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
}
_AT_ONCE = "?gracePeriodSeconds=0"


class ApiLab:
    """Starts the lab and the relays, and stops them."""

    def __init__(
        self, name: str, server: ApiServer, nodes: int = 2, *, agent_options: Sequence[str] = ()
    ) -> None:
        self.server = server
        kubeconfigs = server.directory / "{node}.kubeconfig"
        options = ("--kubeconfig", str(kubeconfigs), *agent_options)
        self.lab = Lab(
            name, nodes=nodes, mesh=False, agent_options=options, pod_uid=self._create_pod
        )
        self.relays: dict[str, FaultProxy] = {}
        self._posted: dict[Key, Object] = {}
        self._seen: dict[Path, tuple[int, int]] = {}
        self._keys: dict[Path, Key] = {}
        self._stack = ExitStack()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._post_all, daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> ApiLab:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        assert self.failure is None, self.failure

    def _start(self) -> None:
        names = [node.name for node in self.lab.nodes]
        grant(self.server, *names)
        assert self.lab.up([]) == []  # network only: agents start once the relays are up
        for name in names:
            with netns.inside(self.lab.names.node_netns(name)):
                listener = socket.create_server(("127.0.0.1", self.server.port))
            self.relays[name] = self._stack.enter_context(FaultProxy(self.server.port, listener))
            found = agent_kubeconfig(self.server, name)
            found.rename(self.server.directory / f"{name}.kubeconfig")
        self._thread.start()
        self.lab.settings.mesh = True
        assert self.lab.up([]) == []

    def _stop(self) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(30)
        self.lab.down()
        self._stack.close()

    # -- the kubelet's and scheduler's side ------------------------------------------------------

    def _create_pod(self, pod: Object) -> str:
        """Create the unbound pod and its account in the API, as controllers do."""
        metadata = pod["metadata"]
        space = metadata["namespace"]
        namespaces = self.lab.store.load()
        self._create(namespaces.get(Key("Namespace", "", space)) or _namespace(space))
        self._create(account(pod["spec"].get("serviceAccountName", "default"), space))
        made = self._create({**pod, "spec": {**pod["spec"], "schedulerName": "lab"}})
        return str(made["metadata"]["uid"])

    def _post_all(self) -> None:
        try:
            while not self._ended.wait(_POLL):
                self._post()
        except BaseException as error:
            self.failure = error
            raise

    def _post(self) -> None:
        there = {}
        for path in self.lab.names.objects.glob("*.yaml"):
            with suppress(FileNotFoundError):
                stat = path.stat()
                there[path] = (stat.st_ino, stat.st_mtime_ns)
        if there == self._seen:
            return
        now = self.lab.store.load()
        for key in self._posted.keys() - now.keys():
            self._delete(key)
            del self._posted[key]
        for key, obj in sorted(now.items()):
            if key.kind in _PATHS and self._posted.get(key) != obj and _is_whole(obj):
                try:
                    self._put(key, obj)
                except HTTPError as error:
                    raise AssertionError(f"{key}: {error}: {error.read().decode()}") from error
                self._posted[key] = obj
        self._seen = there

    def _put(self, key: Key, obj: Object) -> None:
        if key.kind == "Pod":
            self._put_pod(key, obj)
        elif key.kind == "Namespace" or key not in self._posted:
            self._create(obj)  # kubectl changes the labels of namespaces
        else:
            self.server.request("PATCH", _path(key), _bare(obj))

    def _put_pod(self, key: Key, pod: Object) -> None:
        was = self._posted.get(key, {})
        node, uid = pod["spec"].get("nodeName"), pod["metadata"].get("uid")
        if not node or not uid:
            return
        if not was.get("spec", {}).get("nodeName") or was["metadata"]["uid"] != uid:
            binding = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": key.name, "uid": uid},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            }
            self.server.request("POST", f"{_path(key)}/binding", binding)
        if pod.get("status"):
            self.server.request("PATCH", f"{_path(key)}/status", {"status": pod["status"]})

    def _create(self, obj: Object) -> Any:
        key = key_of(obj)
        bare = _bare(obj)
        try:
            return self.server.request("POST", _path(key).rpartition("/")[0], bare)
        except HTTPError as error:
            if error.code != 409:
                raise AssertionError(f"{key}: {error.read().decode()[:1000]}") from error
        return self.server.request("GET", _path(key))

    def _delete(self, key: Key) -> None:
        with suppress(HTTPError):
            self.server.request("DELETE", _path(key) + _AT_ONCE)


def _is_whole(obj: Object) -> bool:
    """Whether the lab has assigned the addresses of a service, which do not change later."""
    return obj["kind"] != "Service" or bool(obj["spec"].get("clusterIP"))


def _bare(obj: Object) -> Object:
    """The object as a controller writes it, without the fields that the lab adds."""
    metadata = {k: v for k, v in obj["metadata"].items() if k not in _GIVEN}
    return {**{k: v for k, v in obj.items() if k != "status"}, "metadata": metadata}


def _namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def _path(key: Key) -> str:
    return f"{_PATHS[key.kind].format(key.namespace)}/{key.name}"
