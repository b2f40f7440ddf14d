# SPDX-License-Identifier: Apache-2.0
"""`ztctl route test`: what the routes of a service do with a request, without sending it."""

from __future__ import annotations

import re
from typing import Any

import click
import msgspec

from ztctl import output
from ztctl.commands.l7.route.gateways import find_gateway
from ztctl.commands.l7.route.services import find_port, find_service
from ztctl.context import Context, output_option, target_options
from ztctl.errors import CommandError
from ztctl.l7_inputs import load_inputs
from ztctl.output import Column, Format
from ztunnel.l7.ingress.evaluate import evaluate as evaluate_gateway
from ztunnel.l7.inputs import Inputs, Protocol
from ztunnel.l7.routing.attachment import RouteIndex
from ztunnel.l7.routing.evaluate import Receiver, RouteDecision, RouteRequest, evaluate
from ztunnel.l7.routing.protocols import declared_protocol
from ztunnel.mesh.model import Service, ServicePort

_GATEWAY_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[^/:?]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^ ]*)?"
)
_URL = re.compile(r"(?:http://)?(?P<host>[^:?]+?)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[^ ]*)?")
_BACKENDS = (
    Column("BACKEND", "backend"),
    Column("PERCENT", "percent"),
    Column("ERROR", "error"),
)


@click.command()
@click.argument("url")
@click.option(
    "--gateway", default="", metavar="NAME", help="Ingress gateway, as NAME or NAMESPACE/NAME."
)
@click.option("--from", "source", default="", metavar="POD", help="Client, as NAMESPACE/NAME.")
@click.option("--method", default="GET", show_default=True, help="Method of the request.")
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="NAME: VALUE", help="Header; repeatable."
)
@target_options
@output_option
@click.pass_obj
def test(
    context: Context, *, url: str, gateway: str, source: str, method: str, headers: tuple[str, ...]
) -> None:
    """Show which backends get a request to URL, and the rule it follows from. Nothing is sent.

    URL is SERVICE[:PORT][/PATH]; SERVICE is NAME, NAMESPACE/NAME (with http://) or a DNS name. With
    --gateway, it is http[s]://HOST[:PORT][/PATH], sent to the ingress gateway by any client.
    Policies are not considered; see `ztctl policy test`.

    \b
    Examples:
      ztctl route test my-app/cart
      ztctl route test http://shop/cart:8080/items?id=1 --method POST -H 'version: v2'
      ztctl route test my-app.default --from other/client -o json
      ztctl route test https://shop.example.com/cart --gateway edge
    """
    inputs = load_inputs(context)
    if gateway:
        _test_gateway(context, inputs, gateway, url, (method.upper(), headers))
        return
    service, port, path = _target(inputs, url)
    namespace = _namespace(inputs, service, source)
    request = RouteRequest(
        method.upper(), path, _headers(service.hostname or service.name, headers), namespace
    )
    decided = _decide(inputs, service, port, request)
    if context.output_format is not Format.TABLE:
        data = {"service": service.key, "port": port.port, **msgspec.to_builtins(decided)}
        click.echo(output.render_data(data, context.output_format))
        return
    place = {"service": f"{service.key} port {port.port}"}
    if service.waypoint:
        place["waypoint"] = service.waypoint
    click.echo(_render(place, decided))


def _test_gateway(
    context: Context, inputs: Inputs, name: str, url: str, request: tuple[str, tuple[str, ...]]
) -> None:
    """Print what a gateway does with a request: method and headers."""
    gateway = find_gateway(inputs, name)
    match = _GATEWAY_URL.fullmatch(url)
    if match is None:
        raise CommandError(f"{url!r} is not a URL; hint: http[s]://HOST[:PORT][/PATH]")
    scheme = match["scheme"]
    port = int(match["port"] or {"http": 80, "https": 443}[scheme])
    method, headers = request
    sent = RouteRequest(method, match["path"] or "/", _headers(match["host"], headers), "")
    found = evaluate_gateway(inputs, gateway, Receiver(None, port, scheme), sent)
    key = f"{gateway.namespace}/{gateway.name}"
    if context.output_format is not Format.TABLE:
        base = {"gateway": key, "listener": found.listener, "hostname": found.hostname}
        data = {**base, "port": port, **msgspec.to_builtins(found.decision)}
        click.echo(output.render_data(data, context.output_format))
        return
    place = {"gateway": key, "listener": f"{found.listener or '-'} port {port}"}
    if found.listener:
        place["hostname"] = found.hostname or "*"
    click.echo(_render(place, found.decision))


def _target(inputs: Inputs, url: str) -> tuple[Service, ServicePort, str]:
    """The service, its port, and the path of the URL."""
    if url.startswith("http://"):  # http://NAMESPACE/NAME, unless the first part is a service
        parts = re.fullmatch(r"http://([^/:]+/[^/:?]+)(?::([0-9]{1,5}))?(/[^ ]*)?", url)
        found = inputs.mesh.service(parts[1]) if parts else None
        if parts and found is not None:
            port = find_port(found, int(parts[2]) if parts[2] else None)
            return found, port, parts[3] or "/"
    match = _URL.fullmatch(url)
    if match is None:
        raise CommandError(f"{url!r} is not a URL; hint: SERVICE[:PORT][/PATH]")
    service = find_service(inputs, match["host"])
    port = find_port(service, int(match["port"]) if match["port"] else None)
    return service, port, match["path"] or "/"


def _headers(host: str, headers: tuple[str, ...]) -> dict[str, str]:
    """Headers by lower-case name. Values of a repeated header are joined, as Envoy does."""
    found = {"host": host}
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise CommandError(f"{header!r} is not a header; hint: -H 'NAME: VALUE'")
        key, text = name.strip().lower(), value.strip()
        is_repeated = key in found and key != "host"
        found[key] = f"{found[key]},{text}" if is_repeated else text
    return found


def _namespace(inputs: Inputs, service: Service, source: str) -> str:
    """The client's namespace; without --from, that of the service."""
    if not source:
        return service.namespace
    namespace, slash, name = source.rpartition("/")
    pods = [
        w
        for w in inputs.mesh.workloads()
        if name in (w.name, w.owner_name) and (not slash or w.namespace == namespace)
    ]
    namespaces = {w.namespace for w in pods}
    if len(namespaces) != 1:
        problem = "is ambiguous" if namespaces else "not found"
        raise CommandError(
            f"pod {source!r} {problem}; hint: NAMESPACE/NAME, see `ztctl workload list`"
        )
    return namespaces.pop()


def _decide(
    inputs: Inputs, service: Service, port: ServicePort, request: RouteRequest
) -> RouteDecision:
    index = RouteIndex()
    index.refresh(inputs.store)
    if declared_protocol(port) in (Protocol.TCP, Protocol.TLS):
        raise CommandError(
            f"port {port.port} of {service.key} is {port.app_protocol or 'tcp'}: waypoints do not "
            "parse its requests; hint: set the port's appProtocol, or see `ztctl route show`"
        )
    decided = evaluate(inputs, service, port, request, index)
    if not service.waypoint:
        reason = f"{service.key} uses no waypoint, so that no route applies"
        return RouteDecision(reason=reason, backends=(), path=request.path)
    return decided


def _render(place: dict[str, str], decided: RouteDecision) -> str:
    fields: dict[str, Any] = dict(place)
    if decided.route:
        fields["route"] = f"{decided.route}, rule {decided.rule_name or decided.rule}"
    fields["reason"] = decided.reason
    if decided.status is not None:
        fields["response"] = f"{decided.status} {decided.location}".rstrip()
    else:
        fields |= {"path": decided.path, "host": decided.host or "-"}
    if decided.filters:
        fields["filters"] = "; ".join(decided.filters)
    text = output.render_fields(fields)
    if decided.backends:
        rows = [{**msgspec.to_builtins(b), "percent": f"{b.percent:g}"} for b in decided.backends]
        text += "\n\n" + output.render_table(_BACKENDS, rows)
    return text
