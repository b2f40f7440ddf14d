# SPDX-License-Identifier: Apache-2.0
"""Records lists and watches of a real API server, and replays them from a small server.

    record_lists, Watching ──▶ DIRECTORY ──▶ Replay ──▶ the agent under measurement

A real API server and etcd on the same machine cannot keep up. A list is a file `KIND.list` with a
response per line; a watch is a file `NAME.watch` with an event per line; both byte for byte.
"""

from __future__ import annotations

import http.client
import json
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import yaml

from tests.support.apiserver.pki import Pki
from ztunnel.kube.client.reflector import PAGE_LIMIT, Resource
from ztunnel.kube.sources.api_server import watched_resources

BOOKMARK_INTERVAL_S = 30.0  # seconds of silence before the replay sends a bookmark
_END = b""


def record_lists(connection: http.client.HTTPSConnection, node: str, directory: Path) -> str:
    """Record every list of the agent of a node; return the resource version of the list of pods."""
    version = ""
    for resource in watched_resources(node):
        lines, rest = [], ""
        while True:
            text = _get(connection, _list_path(resource, rest))
            if text is None:
                break  # the resource is not installed
            lines.append(text.strip() + b"\n")
            metadata = json.loads(text)["metadata"]
            rest = metadata.get("continue", "")
            if not rest:
                version = metadata["resourceVersion"] if resource.kind == "Pod" else version
                break
        if lines:
            (directory / f"{resource.kind}.list").write_bytes(b"".join(lines))
    return version


def _list_path(resource: Resource, rest: str) -> str:
    only = f"&fieldSelector={quote(resource.field_selector)}" if resource.field_selector else ""
    return f"{resource.path}?limit={PAGE_LIMIT}{only}" + (
        f"&continue={quote(rest)}" if rest else ""
    )


def _get(connection: http.client.HTTPSConnection, path: str) -> bytes | None:
    connection.request("GET", path, headers={"Accept": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status == 404:
        return None
    assert answer.status == 200, f"{path}: {answer.status} {text[:300]!r}"
    return text


class Watching:
    """Records a watch of all pods, starting at a resource version."""

    def __init__(self, connection: http.client.HTTPSConnection, version: str, file: Path) -> None:
        path = f"/api/v1/pods?watch=true&timeoutSeconds=3000&resourceVersion={version}"
        connection.request("GET", path, headers={"Accept": "application/json"})
        self._connection = connection
        self._answer = connection.getresponse()
        assert self._answer.status == 200, self._answer.read()[:300]
        self._file = file
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.lines = 0
        self._thread.start()

    def _run(self) -> None:
        with self._file.open("wb") as out:
            while line := self._answer.readline():
                out.write(line)
                self.lines += 1

    def close(self) -> None:
        """End the watch, which completes the file."""
        sock = self._connection.sock
        if sock is not None:
            sock.shutdown(2)
        self._thread.join(10)


class Replay:
    """An HTTPS server on loopback that serves a recording to an agent.

    `send` adds an event to the watch of pods; other watches only send bookmarks. Each write to a
    pod, which is the annotation of the agent, calls `marked`.
    """

    def __init__(self, recording: Path, directory: Path, node: str) -> None:
        directory.mkdir()
        pki = Pki(directory)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pki.server("replay"))
        self._answers = dict(_answers(recording, node))
        self._complete: dict[str, bytes] = {}  # by path: lists without pages
        self._watch_lock = threading.Lock()
        self._watch: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.marked: Callable[[], None] = lambda: None
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(_kubeconfig(self._server.server_port, pki.ca))

    def __enter__(self) -> Replay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.put(_END)
        self._server.shutdown()
        self._server.server_close()

    def send(self, line: bytes) -> None:
        """Send an event to the watch of pods."""
        self._watch.put(line)

    def answer(self, path: str, query: dict[str, list[str]]) -> bytes | None:
        """A page of a list; without a limit, the complete list. None if it was not recorded."""
        if "limit" in query or "watch" in query:
            return self._answers.get((path, query.get("continue", [""])[0]))
        if path not in self._complete:
            self._complete[path] = self._merged(path)
        return self._complete[path]

    def _merged(self, path: str) -> bytes:
        """All pages of a list in one response."""
        pages = [json.loads(body) for (of, _), body in self._answers.items() if of == path]
        items = [item for page in pages for item in page["items"]]
        metadata = {"resourceVersion": pages[-1]["metadata"]["resourceVersion"]}
        return json.dumps({**pages[0], "metadata": metadata, "items": items}).encode()

    def events(self, path: str) -> Iterator[bytes]:
        """The lines of a watch."""
        source = self._watch if path == "/api/v1/pods" else queue.SimpleQueue[bytes]()
        while True:
            try:
                line = source.get(timeout=BOOKMARK_INTERVAL_S)
            except queue.Empty:
                line = b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1"}}}\n'
            if line == _END:
                return
            yield line


def _answers(recording: Path, node: str) -> Iterator[tuple[tuple[str, str], bytes]]:
    for resource in watched_resources(node):
        file, rest = recording / f"{resource.kind}.list", ""
        for line in file.read_bytes().splitlines() if file.exists() else ():
            yield (resource.path, rest), line
            rest = json.loads(line)["metadata"].get("continue", "")


def _kubeconfig(port: int, ca: Path) -> str:
    cluster = {"server": f"https://127.0.0.1:{port}", "certificate-authority": str(ca)}
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "replay", "cluster": cluster}],
        "users": [{"name": "replay", "user": {"token": "replay"}}],
        "contexts": [{"name": "replay", "context": {"cluster": "replay", "user": "replay"}}],
        "current-context": "replay",
    }
    return yaml.safe_dump(config)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def _handler(replay: Replay) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            body = replay.answer(parts.path, query)
            if body is None:
                self._send(404, b'{"kind":"Status","message":"not recorded"}')
            elif "watch" in query:
                self._stream(replay.events(parts.path))
            else:
                self._send(200, body)

        def do_PATCH(self) -> None:
            self.do_POST()
            replay.marked()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self._send(200, b"{}")

        def _send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, lines: Iterator[bytes]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in lines:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    return Handler
