# SPDX-License-Identifier: Apache-2.0
"""`ztctl proxy-config listener|route|cluster|endpoint|secret POD`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import click

from ztctl.commands.l7.proxy_config import envoy_tables, secret_table
from ztctl.commands.l7.proxy_config.pods import find_pod, pod_argument
from ztctl.context import Context
from ztctl.output import Column, Format, Row

_LISTENERS = (
    Column("LISTENER", "listener"),
    Column("ADDRESS", "address"),
    Column("CHAIN", "chain"),
    Column("MATCH", "match"),
    Column("DESTINATION", "destination"),
)
_ROUTES = (
    Column("NAME", "name"),
    Column("DOMAINS", "domains"),
    Column("MATCH", "match"),
    Column("ROUTE", "route"),
    Column("TARGET", "target"),
)
_CLUSTERS = (
    Column("NAME", "name"),
    Column("TYPE", "type"),
    Column("LB", "lb"),
    Column("CONNECT-TIMEOUT", "timeout"),
    Column("TLS", "tls"),
)
_SECRETS = (
    Column("NAME", "name"),
    Column("TYPE", "type"),
    Column("STATE", "state"),
    Column("HOSTS", "hosts"),
    Column("SERIAL", "serial"),
    Column("NOT-BEFORE", "not_before"),
    Column("NOT-AFTER", "not_after"),
    Column("CHAINS", "chains"),
)
_ENDPOINTS = (
    Column("ENDPOINT", "endpoint"),
    Column("HEALTH", "health"),
    Column("CLUSTER", "cluster"),
    Column("WEIGHT", "weight"),
    Column("REQUESTS", "requests"),
    Column("ERRORS", "errors"),
)


@click.command()
@pod_argument
@click.pass_obj
def listener(context: Context, pod: str, namespace: str) -> None:
    """Listeners, their filter chains, and the addresses or names that select these.

    \b
    Examples:
      ztctl proxy-config listener waypoint
      ztctl proxy-config listener waypoint-7d9f-x2b4 -n shop -o yaml
    """
    found = envoy_tables.listeners(find_pod(context, pod, namespace).view("config_dump"))
    _print(context, found, envoy_tables.listener_rows, _LISTENERS)


@click.command()
@pod_argument
@click.pass_obj
def route(context: Context, pod: str, namespace: str) -> None:
    """Routes of HTTP requests, in the order in which they match.

    \b
    Examples:
      ztctl proxy-config route waypoint
      ztctl proxy-config route waypoint -o json
    """
    found = envoy_tables.routes(find_pod(context, pod, namespace).view("config_dump"))
    _print(context, found, envoy_tables.route_rows, _ROUTES)


@click.command()
@pod_argument
@click.pass_obj
def cluster(context: Context, pod: str, namespace: str) -> None:
    """Clusters: the service ports that requests are sent to.

    \b
    Examples:
      ztctl proxy-config cluster waypoint
      ztctl proxy-config cluster waypoint -o json
    """
    found = envoy_tables.clusters(find_pod(context, pod, namespace).view("config_dump"))
    _print(context, found, lambda each: [envoy_tables.cluster_row(each)], _CLUSTERS)


@click.command()
@pod_argument
@click.pass_obj
def endpoint(context: Context, pod: str, namespace: str) -> None:
    """Endpoints with their health, and the numbers of requests and failures.

    \b
    Examples:
      ztctl proxy-config endpoint waypoint
      ztctl proxy-config endpoint waypoint -o json
    """
    status = find_pod(context, pod, namespace).view("clusters")
    if context.output_format is Format.TABLE:
        context.print_rows(list(envoy_tables.endpoint_rows(status)), _ENDPOINTS)
    else:
        context.print_rows(status.get("cluster_statuses") or [], _ENDPOINTS)


@click.command()
@pod_argument
@click.pass_obj
def secret(context: Context, pod: str, namespace: str) -> None:
    """Certificates that Envoy has loaded, and the filter chains that use them. No keys.

    \b
    Examples:
      ztctl proxy-config secret edge -n shop
      ztctl proxy-config secret edge -n shop -o json
    """
    dump = find_pod(context, pod, namespace).view("config_dump")
    if context.output_format is Format.TABLE:
        context.print_rows(list(secret_table.secret_rows(dump)), _SECRETS)
    else:
        context.print_rows(secret_table.secrets(dump), _SECRETS)


def _print(
    context: Context,
    found: list[envoy_tables.Json],
    rows_of: Callable[[envoy_tables.Json], Iterable[Row]],
    columns: Sequence[Column],
) -> None:
    """A table has the rows of each resource; other formats have Envoy's own resources."""
    if context.output_format is Format.TABLE:
        context.print_rows([dict(row) for each in found for row in rows_of(each)], columns)
    else:
        context.print_rows(found, columns)
