/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * DNS over UDP. A datagram that an app of an enrolled pod sends to port 53 is redirected to the
 * resolver, the proxy's DNS sockets in the pod. The resolver has one port for each name server that
 * an app's socket can use, so the port of a reply identifies the name server; the app sees the name
 * server's own address.
 *
 *   app sends to 10.96.0.10:53   -> zt_dns_server_slots of its socket: server[0] -> 127.0.0.1:15053
 *   resolver reads the query     -> server[0] of the sender's socket -> zt_dns_pending
 *                                   -> getsockopt(ZT_SOCKOPT_DNS_SERVER)
 *   app reads from 127.0.0.1:15053 -> sees 10.96.0.10:53
 */
#ifndef ZT_DNS_H
#define ZT_DNS_H

#include "addr.h"
#include "maps.h"

#define ZT_DNS_PORT 53
#define ZT_DNS_NONE (-1)  /* not a query to redirect */
#define ZT_DNS_ERROR (-2) /* no memory for the slots: refuse the query */

static __always_inline int zt_is_dns(__be16 port)
{
	return port == bpf_htons(ZT_DNS_PORT);
}

/* The index of a resolver port (host order); -1 for any other port. */
static __always_inline int zt_dns_index(__u16 port)
{
	return port >= ZT_PORT_DNS && port < ZT_PORT_DNS + ZT_DNS_SERVERS ? port - ZT_PORT_DNS : -1;
}

/* The barrier preserves the mask: the compiler finds it redundant, the verifier requires it. */
static __always_inline struct zt_addr *zt_dns_slot(struct zt_dns_slots *slots, __u64 index)
{
	asm volatile("" : "+r"(index));
	return &slots->server[index & 3];
}

/* The index of a name server's slot; a new one replaces the oldest. */
static __always_inline int zt_dns_assign_slot(struct zt_dns_slots *slots, const __u8 ip[16])
{
	__u32 free = slots->next < ZT_DNS_SERVERS ? slots->next : 0;

#pragma unroll
	for (int index = 0; index < ZT_DNS_SERVERS; index++)
		if (zt_same_ip(slots->server[index].ip, ip))
			return index;
	__builtin_memcpy(zt_dns_slot(slots, free)->ip, ip, 16);
	slots->next = free + 1;
	return free;
}

/*
 * Whether an ingress gateway with UDP listeners sends to a backend that is redirected as UDP: what
 * Envoy forwards to a name server of the mesh is not a query of the pod.
 */
static __always_inline int zt_dns_is_backend(const struct zt_pod *pod,
					     const struct zt_endpoint *dst)
{
	struct zt_gateway_port_key gateway = {};
	struct zt_endpoint remote = *dst;
	__u8 *route;

	zt_pod_ip(pod, dst->ip, gateway.ip);
	gateway.protocol = ZT_IPPROTO_UDP; /* with port 0: it has such listeners */
	if (!zt_gateway_port_find(&gateway))
		return 0;
	route = zt_udp_route_find(&remote);
	if (!route) {
		remote.port = 0;
		route = zt_udp_route_find(&remote);
	}
	return route && *route == ZT_UDP_ROUTE_REDIRECT;
}

/*
 * The index of the resolver port for a datagram to `dst`, or ZT_DNS_NONE or ZT_DNS_ERROR. A socket
 * bound to port 53 is a name server in the pod; it sends replies, not queries.
 */
static __always_inline int zt_dns_redirect(struct bpf_sock_addr *ctx, const struct zt_endpoint *dst)
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_dns_slots *slots;
	struct zt_sock *known;
	struct zt_pod *pod;

	if (!zt_is_dns(dst->port) || ctx->protocol != ZT_IPPROTO_UDP)
		return ZT_DNS_NONE;
	pod = zt_pod_find(bpf_get_netns_cookie(ctx));
	if (!pod || zt_is_local(dst->ip) || zt_is_link_local(dst->ip) || zt_is_pod_ip(pod, dst->ip))
		return ZT_DNS_NONE;
	if (zt_dns_is_backend(pod, dst))
		return ZT_DNS_NONE;
	if (!sk)
		return ZT_DNS_ERROR;
	known = zt_sock_find(sk);
	if ((known && known->role == ZT_ROLE_PROXY) || sk->src_port == ZT_DNS_PORT)
		return ZT_DNS_NONE;
	slots = zt_dns_slots_create(sk);
	return slots ? zt_dns_assign_slot(slots, dst->ip) : ZT_DNS_ERROR;
}

/* Replaces the resolver's address in the context with the name server's; returns whether it did. */
static __always_inline int zt_dns_restore_server(struct bpf_sock_addr *ctx, const int family)
{
	struct zt_endpoint shown = {};
	struct bpf_sock *sk = ctx->sk;
	struct zt_dns_slots *slots;
	struct zt_addr *server;
	int index;

	zt_get_addr(ctx, family, &shown);
	index = zt_dns_index(bpf_ntohs(shown.port));
	if (index < 0 || !sk || !zt_is_local(shown.ip))
		return 0;
	slots = zt_dns_slots_find(sk);
	if (!slots)
		return 0;
	server = zt_dns_slot(slots, index);
	if (zt_is_zero(server->ip) || zt_is_mapped(server->ip) != zt_is_mapped(shown.ip))
		return 0;
	zt_set_addr(ctx, family, server->ip, bpf_htons(ZT_DNS_PORT));
	return 1;
}

/* The index of the resolver socket that the hook runs for; -1 for any other socket. */
static __always_inline int zt_dns_resolver_index(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_sock *known;

	if (!sk)
		return -1;
	known = zt_sock_find(sk);
	return known && known->role == ZT_ROLE_RESOLVER ? zt_dns_index(sk->src_port) : -1;
}

/* Stores the name server that the socket `sender` addressed by sending to this resolver port. */
static __always_inline void zt_dns_store_server(struct bpf_sock_addr *ctx, struct bpf_sock *sender,
						struct zt_dns_pending_key *key)
{
	struct zt_dns_slots *slots = zt_dns_slots_find(sender);
	struct zt_pod_stats *stats;
	struct zt_addr server;

	if (!slots)
		return;
	server = *zt_dns_slot(slots, key->server);
	if (zt_is_zero(server.ip))
		return;
	key->netns = bpf_get_netns_cookie(ctx);
	zt_dns_pending_set(key, &server);
	stats = zt_pod_stats_find(key->netns);
	if (stats)
		__sync_fetch_and_add(&stats->dns, 1);
}

/* The resolver reads a query. */
static __always_inline void zt_dns_read_query(struct bpf_sock_addr *ctx, const int family,
					      int index)
{
	struct zt_dns_pending_key key = {};
	struct zt_endpoint client = {};
	struct bpf_sock *sender;

	zt_get_addr(ctx, family, &client);
	sender = zt_lookup_app_udp(ctx, family, bpf_htons(ZT_PORT_DNS + index), &client);
	if (!sender)
		return;
	key.port = client.port;
	key.server = index;
	key.family = family;
	zt_dns_store_server(ctx, sender, &key);
	bpf_sk_release(sender);
}

#endif
