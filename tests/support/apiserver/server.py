# SPDX-License-Identifier: Apache-2.0
"""A real API server with a real etcd, both on loopback.

    with ApiServer(directory) as server:
        server.kubectl("get", "ns")
        server.client()                          # kubernetes.client.ApiClient, cluster-admin
        server.kubeconfig("alice", ["people"])   # any user and groups, by certificate
        server.account_kubeconfig("ns", "name")  # a ServiceAccount, by TokenRequest

RBAC, ServiceAccount tokens (also bound tokens) and the CSR API are enabled. There is no controller,
scheduler or kubelet: tests write pods and their status, no default service accounts are
created, and finalizers are not removed. `stop_api` and `start_api` simulate an outage.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import yaml

from tests.support.apiserver.pki import Pki
from tests.support.ports import free_ports
from ztunnel.kube.client.access import Access

ROOT = Path(__file__).resolve().parents[3]
READY_TIMEOUT_S = 60.0  # usually 4 s
STOP_TIMEOUT_S = 20.0
ISSUER = "https://kubernetes.default.svc"
SERVICE_RANGES = "10.96.0.0/16,fd00:10:96::/112"  # the same as in the lab


def assets() -> Path:
    """The directory of the binaries; builds them if necessary, which takes minutes."""
    done = subprocess.run(
        [ROOT / "scripts/apiserver"], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.splitlines()[-1])


class ApiServer:
    """One etcd and one kube-apiserver. `directory` is for their files and must be empty."""

    def __init__(
        self,
        directory: Path,
        binaries: Path | None = None,
        *,
        addresses: Sequence[str] = (),
        port: int = 0,
        options: Sequence[str] = ("--disable-admission-plugins=ServiceAccount",),
    ) -> None:
        """`addresses`: additional addresses of the server; the first one is the endpoint of the
        service `kubernetes`. `options`: further options of kube-apiserver; the default disables
        the admission plugin that requires default service accounts."""
        self.directory = directory
        self.binaries = binaries or assets()
        self.pki = Pki(directory)
        free, self._etcd_port, self._peer_port = free_ports(3)
        self.port = port or free
        self._addresses = tuple(addresses)
        self._options = options
        self.url = f"https://127.0.0.1:{self.port}"
        self.etcd_url = f"http://127.0.0.1:{self._etcd_port}"
        self.ca_file = self.pki.ca
        self._server_files = self.pki.server("kube-apiserver", addresses)
        self._admin_files = self.pki.client("root", ["system:masters"])
        self.account_key = self.pki.signing_key("service-accounts")
        self._kubeconfigs: dict[str, Path] = {}
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None
        self.admin_kubeconfig = self.kubeconfig("admin", ["system:masters"])

    def __enter__(self) -> ApiServer:
        try:
            self.start_etcd()
            self.start_api()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # -- lifecycle --------------------------------------------------------------------------------

    def start_etcd(self) -> None:
        """Start etcd on its existing data."""
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._etcd = self.spawn(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={self.etcd_url}",
            f"--advertise-client-urls={self.etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--quota-backend-bytes=8589934592",
            "--log-level=warn",
        )
        self._until_up(self._etcd, "etcd", lambda: _fetch(f"{self.etcd_url}/health"))

    def start_api(self) -> None:
        """Start the API server; returns when it is ready."""
        certificate, key = self._server_files
        self._api = self.spawn(
            "kube-apiserver",
            f"--etcd-servers={self.etcd_url}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.pki.ca}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self.account_key}",
            f"--service-account-signing-key-file={self.account_key}",
            f"--service-cluster-ip-range={SERVICE_RANGES}",
            "--authorization-mode=Node,RBAC",
            *self._listening(),
            "--allow-privileged=true",
            "--profiling=false",
            *self._options,
        )
        self._until_up(self._api, "kube-apiserver", self._is_ready)

    def _listening(self) -> list[str]:
        if not self._addresses:  # an endpoint must not be a loopback address
            local = ("bind-address=127.0.0.1", "advertise-address=127.0.0.1")
            return [f"--{option}" for option in (*local, "endpoint-reconciler-type=none")]
        return ["--bind-address=0.0.0.0", f"--advertise-address={self._addresses[0]}"]

    def stop_api(self, *, kill: bool = False) -> None:
        """Stop the API server; etcd keeps running."""
        _end(self._api, signal.SIGKILL if kill else signal.SIGTERM)
        self._api = None

    def stop(self) -> None:
        """Stop both."""
        self.stop_api()
        _end(self._etcd, signal.SIGTERM)
        self._etcd = None

    def compact(self) -> None:
        """Compact etcd to the last revision: older watches get 410 Gone."""
        _fetch(f"{self.etcd_url}/v3/kv/put", {"key": _b64("zt-test"), "value": _b64("1")})
        answer = json.loads(_fetch(f"{self.etcd_url}/v3/kv/range", {"key": _b64("zt-test")}))
        revision = answer["header"]["revision"]
        _fetch(f"{self.etcd_url}/v3/kv/compaction", {"revision": revision, "physical": True})

    # -- access -----------------------------------------------------------------------------

    def kubeconfig(self, user: str, groups: Sequence[str] = (), *, url: str = "") -> Path:
        """The kubeconfig of a user, by certificate. `url`: for example of a proxy."""
        name = f"{user}{url.rpartition(':')[2] if url else ''}"
        if name not in self._kubeconfigs:
            certificate, key = self.pki.client(user, groups)
            login = {"client-certificate": str(certificate), "client-key": str(key)}
            self._kubeconfigs[name] = self._write_kubeconfig(name, login, url or self.url)
        return self._kubeconfigs[name]

    def account_kubeconfig(
        self, namespace: str, account: str, *, url: str = "", pod: str = ""
    ) -> Path:
        """The kubeconfig of an existing ServiceAccount, with a new token."""
        token = self.token(namespace, account, pod=pod)
        return self._write_kubeconfig(
            f"{namespace}-{account}-{len(self._kubeconfigs)}", {"token": token}, url or self.url
        )

    def token(self, namespace: str, account: str, *, pod: str = "") -> str:
        """A ServiceAccount token by TokenRequest; with `pod`, bound to it and so to its node."""
        spec: dict[str, Any] = {"audiences": [ISSUER], "expirationSeconds": 3600}
        if pod:
            spec["boundObjectRef"] = {"apiVersion": "v1", "kind": "Pod", "name": pod}
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(request))
        return str(json.loads(answer)["status"]["token"])

    def client(self, kubeconfig: Path | None = None) -> Any:
        """A `kubernetes.client.ApiClient`, by default of cluster-admin. The caller closes it."""
        return Access(kubeconfig or self.admin_kubeconfig).client()

    def kubectl(self, *words: str, stdin: str | None = None, kubeconfig: Path | None = None) -> str:
        """Run kubectl, return its output, and fail with its error."""
        done = self.try_kubectl(*words, stdin=stdin, kubeconfig=kubeconfig)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr[-2000:]}"
        return done.stdout

    def try_kubectl(
        self, *words: str, stdin: str | None = None, kubeconfig: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl and return the result."""
        return subprocess.run(
            [self.binaries / "kubectl", *words],
            env={
                "KUBECONFIG": str(kubeconfig or self.admin_kubeconfig),
                "HOME": str(self.directory),
                "PATH": os.environ["PATH"],
            },
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def apply(self, *objects: dict[str, Any]) -> None:
        """kubectl apply --server-side; then set each `status`, as a kubelet would."""
        bare = [{k: v for k, v in obj.items() if k != "status"} for obj in objects]
        words = ("--server-side", "--force-conflicts", "--field-manager=test", "-f", "-")
        self.kubectl("apply", *words, stdin=yaml.safe_dump_all(bare))
        for obj in objects:
            if "status" in obj:
                self.set_status(obj)

    def set_status(self, obj: dict[str, Any]) -> None:
        """Set the status of an existing Pod or Node."""
        metadata = obj["metadata"]
        place = f"namespaces/{metadata['namespace']}/" if "namespace" in metadata else ""
        path = f"/api/v1/{place}{obj['kind'].lower()}s/{metadata['name']}/status"
        self.request("PATCH", path, {"status": obj["status"]})

    def request(self, method: str, path: str, body: Any = None, *, token: str = "") -> Any:
        """Send a request as cluster-admin or with a token; PATCH is a merge patch.

        Raises urllib.error.HTTPError.
        """
        kind = "merge-patch+json" if method == "PATCH" else "json"
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": f"application/{kind}"},
            method=method,
        )
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        context = ssl.create_default_context(cafile=str(self.pki.ca)) if token else self.tls()
        return json.loads(_fetch(request, context=context))

    # -- implementation ------------------------------------------------------------------------

    def _write_kubeconfig(self, name: str, login: dict[str, str], url: str) -> Path:
        cluster = {"server": url, "certificate-authority": str(self.pki.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": login}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
            "current-context": "test",
        }
        path = self.directory / f"{name.replace(':', '_')}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        self._kubeconfigs[name] = path
        return path

    def spawn(self, binary: str, *options: str) -> subprocess.Popen[bytes]:
        """Start one of the binaries; its output goes to `<binary>.log`."""
        log: IO[bytes]
        with (self.directory / f"{binary}.log").open("ab") as log:
            return subprocess.Popen(
                # ends with the test run, even if that is killed
                ["setpriv", "--pdeathsig", "KILL", self.binaries / binary, *options],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _is_ready(self) -> bytes:
        return _fetch(f"{self.url}/readyz", context=self.tls())

    def tls(self) -> ssl.SSLContext:
        """The TLS context of cluster-admin."""
        context = ssl.create_default_context(cafile=str(self.pki.ca))
        context.load_cert_chain(*self._admin_files)
        return context

    def _until_up(self, process: subprocess.Popen[bytes], name: str, probe: Any) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while True:
            try:
                probe()
                return
            except OSError as error:
                ended = process.poll() is not None
                if ended or time.monotonic() > deadline:
                    tail = (self.directory / f"{name}.log").read_text(errors="replace")[-2000:]
                    what = "exited" if ended else f"not up in {READY_TIMEOUT_S:.0f} s"
                    raise AssertionError(f"{name} {what}: {error}\n{tail}") from error
            time.sleep(0.05)


def _end(process: subprocess.Popen[bytes] | None, number: int) -> None:
    if process is None:
        return
    process.send_signal(number)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _fetch(
    what: str | urllib.request.Request, body: Any = None, context: ssl.SSLContext | None = None
) -> bytes:
    """Send a request, or GET a URL, or POST JSON to it. Every failure is an OSError."""
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    request = urllib.request.Request(what, data) if isinstance(what, str) else what
    with opener.open(request, timeout=10) as answer:
        found: bytes = answer.read()
        return found


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
