# SPDX-License-Identifier: Apache-2.0
"""Compiles the configurations of this node's gateways, in a thread and with a time limit.

    change --> (collected for DEBOUNCE_S) --> state applied --> each gateway compiled --> publish

The state changes only between compilations. If one fails or takes too long, the gateway keeps its
last configuration, and the failure is reported.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import structlog

from ztunnel.gateway.mesh_config import MeshConfig
from ztunnel.gateway.state import GatewayState
from ztunnel.gateway.xds.descriptors import EnvoyApi
from ztunnel.gateway.xds.resources import Config, Invalid, ResourceEncoder
from ztunnel.l7.compile import DEFECT, GatewayCompiler
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.problems import Problem

DEBOUNCE_S = 0.01
MAX_COMPILE_S = 20.0  # of one gateway; 2,000 routes take a few seconds the first time

log = structlog.get_logger()


class CompileTimeoutError(BaseException):
    """A compilation took longer than MAX_COMPILE_S. No Exception: the compiler handles these."""


@dataclass(frozen=True)
class MeshConfigChanged:
    """A new content of Istio's MeshConfig."""

    config: MeshConfig


@dataclass(frozen=True)
class Compiled:
    """A gateway's configuration. `problems` concern objects, `invalid` resources."""

    config: Config
    problems: tuple[Problem, ...] = ()
    invalid: tuple[Invalid, ...] = ()
    seconds: float = 0.0


@dataclass
class _Gateway:
    compiler: GatewayCompiler
    encoder: ResourceEncoder
    settings: Settings
    error: str = ""
    last: Compiled | None = field(default=None)


class ConfigCompiler:
    """One per process. `wanted` returns the gateways of this node's pods, `namespace/name`.

    `pods` returns the pods, by Workload.uid.
    """

    def __init__(
        self,
        api: EnvoyApi,
        state: GatewayState,
        wanted: Callable[[], Iterable[str]],
        publish: Callable[[str, Compiled], None],
        pods: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._api = api
        self._state = state
        self._wanted = wanted
        self._publish = publish
        self._pods = pods
        self._messages: list[Any] = []
        self._changed = asyncio.Event()
        self._gateways: dict[str, _Gateway] = {}
        self._executor = ThreadPoolExecutor(1, "compile")

    def add(self, message: Any) -> None:
        """Apply a message of the agent, or a MeshConfigChanged, before the next compilation."""
        self._messages.append(message)
        self._changed.set()

    def wake(self) -> None:
        """The wanted gateways have changed."""
        self._changed.set()

    def error(self, gateway: str) -> str:
        """Why the last compilation failed; empty if it did not."""
        found = self._gateways.get(gateway)
        return found.error if found is not None else ""

    def last(self, gateway: str) -> Compiled | None:
        """The last configuration that was compiled."""
        found = self._gateways.get(gateway)
        return found.last if found is not None else None

    async def run(self) -> None:
        """Compile after each change until cancelled."""
        try:
            while True:
                await self._changed.wait()
                await asyncio.sleep(DEBOUNCE_S)
                self._changed.clear()
                await self._round()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def _round(self) -> None:
        messages, self._messages = self._messages, []
        for message in messages:
            try:
                if isinstance(message, MeshConfigChanged):
                    self._state.set_mesh_config(message.config)
                else:
                    self._state.apply(message)
            except Exception as error:  # a defect: continue with the other messages
                log.error("message failed", message=type(message).__name__, exc_info=error)
        self._state.set_locality(sorted(self._pods()))
        inputs, wanted = self._state.inputs(), set(self._wanted())
        for gone in self._gateways.keys() - wanted:
            del self._gateways[gone]
        if inputs is None:
            return
        for gateway in sorted(wanted):
            await self._compile(gateway, inputs)

    async def _compile(self, name: str, inputs: Inputs) -> None:
        gateway = self._gateways.get(name)
        if gateway is None:
            gateway = _Gateway(GatewayCompiler(name), ResourceEncoder(self._api), inputs.settings)
            self._gateways[name] = gateway
        if gateway.settings is not inputs.settings:  # not tracked by the compiler
            gateway.compiler, gateway.settings = GatewayCompiler(name), inputs.settings
        loop = asyncio.get_running_loop()
        try:
            compiled = await loop.run_in_executor(self._executor, _compiled, gateway, inputs)
        except (Exception, CompileTimeoutError) as error:
            # the cache may be incomplete: compile everything next time
            gateway.compiler, gateway.encoder = GatewayCompiler(name), ResourceEncoder(self._api)
            gateway.error = f"{type(error).__name__}: {error}"[:1024]
            log.error("gateway not compiled", gateway=name, exc_info=error)
            return
        gateway.error = ""
        before, gateway.last = gateway.last, compiled
        known = set(before.invalid) if before is not None else set()
        for each in compiled.invalid:
            if each not in known:
                log.error("resource invalid", gateway=name, resource=each.name, error=each.message)
        reported = set(before.problems) if before is not None else set()
        for problem in compiled.problems:
            if problem.reason == DEFECT and problem not in reported:
                log.error("destination not compiled", gateway=name, error=str(problem))
        self._publish(name, compiled)


def _compiled(gateway: _Gateway, inputs: Inputs) -> Compiled:
    began = time.monotonic()
    with _TimeLimit(MAX_COMPILE_S):
        found = gateway.compiler.compile(inputs)
        config, invalid = gateway.encoder.encode(found.resources)
    return Compiled(config, found.problems, tuple(invalid), time.monotonic() - began)


class _TimeLimit:
    """Raises CompileTimeoutError in the thread of the body, which runs Python code only."""

    def __init__(self, seconds: float) -> None:
        self._thread = threading.get_ident()
        self._timer = threading.Timer(seconds, self._expire)
        self._lock = threading.Lock()
        self._is_over = False

    def __enter__(self) -> None:
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._is_over = True
        self._timer.cancel()

    def _expire(self) -> None:
        with self._lock:
            if not self._is_over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread), ctypes.py_object(CompileTimeoutError)
                )
