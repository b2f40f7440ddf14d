/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Routing of an app's UDP. Datagrams to enrolled pods of other nodes, and to services whose
 * endpoints are enrolled, are redirected to the proxy (see udp_token.h). Other datagrams are native
 * (see udp_conntrack.h), unless they would be plaintext to a STRICT destination.
 */
#ifndef ZT_UDP_ROUTE_H
#define ZT_UDP_ROUTE_H

#include "dns.h"
#include "udp_conntrack.h"

/* The route of a destination: enum zt_udp_route. The default route is not for the pod itself. */
static __always_inline __u8 zt_udp_route_of(const struct zt_pod *pod, const struct zt_endpoint *dst)
{
	struct zt_endpoint key = *dst;
	__u8 *route = zt_udp_route_find(&key);

	if (!route) {
		key.port = 0;
		route = zt_udp_route_find(&key);
	}
	if (!route && !zt_is_local(dst->ip) && !zt_is_pod_ip(pod, dst->ip)) {
		__builtin_memset(key.ip, 0, sizeof(key.ip));
		route = zt_udp_route_find(&key);
	}
	return route ? *route : ZT_UDP_ROUTE_NATIVE;
}

/* Counts a refused plaintext datagram and emits an event, at a limited rate per pod. */
static __always_inline void zt_report_strict(__u64 netns, const struct zt_pod *pod, __be16 port,
					     const struct zt_endpoint *dst,
					     struct zt_udp_stats *stats)
{
	__u64 now = bpf_ktime_get_ns();
	struct zt_event event = {};
	__u8 src[16];

	__sync_fetch_and_add(&stats->strict, 1);
	if (now - stats->last_event_ns < ZT_UDP_EVENT_INTERVAL_NS)
		return;
	stats->last_event_ns = now;
	zt_pod_ip(pod, dst->ip, src);
	zt_set_tuple(&event.key, src, port, dst->ip, dst->port);
	event.netns = netns;
	event.close_reason = ZT_CLOSE_UDP_STRICT;
	zt_emit_event(&event);
}

/*
 * Whether a name server in the pod answers a query that came natively. The proxy of another node
 * forwards the queries of its pods in plaintext, as nothing says whether a name server is enrolled;
 * its socket receives an answer from the server's own address only.
 */
static __always_inline int zt_udp_is_answer(const struct zt_pod *pod, __be16 port,
					    const struct zt_endpoint *dst)
{
	struct zt_four_tuple key = {};
	struct zt_udp_ct_entry *entry;
	__u8 src[16];

	if (!zt_is_dns(port))
		return 0;
	zt_pod_ip(pod, dst->ip, src);
	zt_set_tuple(&key, dst->ip, dst->port, src, port);
	entry = zt_udp_ct_find(&key);
	return entry && zt_udp_ct_is_live(entry);
}

/* Decides about a datagram or a connect() to `dst`; `token` is set for ZT_REDIRECT. */
static __always_inline enum zt_action zt_udp_classify(struct bpf_sock_addr *ctx,
						      const struct zt_endpoint *dst,
						      struct zt_udp_token *token)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_pod *pod = zt_pod_find(netns);
	struct zt_udp_stats *stats;
	struct zt_udp_pod *workers;
	struct zt_sock *known;
	int is_redirected, is_reply;
	__be16 port;
	__u8 route;

	if (ctx->protocol != ZT_IPPROTO_UDP || !dst->port || !ctx->sk)
		return ZT_PASS;
	if (!pod) {
		if (netns == zt_node_netns_cookie())
			zt_node_udp_sent(zt_local_port(ctx->sk), dst);
		return ZT_PASS;
	}
	known = zt_sock_find(ctx->sk);
	if (known && known->role == ZT_ROLE_PROXY)
		return ZT_PASS;
	port = zt_local_port(ctx->sk);
	route = zt_udp_route_of(pod, dst);
	is_reply = zt_redirected_token(netns, dst) != 0;
	if (route == ZT_UDP_ROUTE_NATIVE && !is_reply) {
		zt_udp_ct_outgoing(netns, pod, port, dst);
		return ZT_PASS;
	}
	if (route == ZT_UDP_ROUTE_REDIRECT && !is_reply && zt_udp_is_answer(pod, port, dst))
		return ZT_PASS;
	stats = zt_udp_stats_find(netns);
	if (route == ZT_UDP_ROUTE_STRICT) {
		if (stats)
			zt_report_strict(netns, pod, port, dst, stats);
		return ZT_REFUSE;
	}
	if (route == ZT_UDP_ROUTE_REFUSED && !is_reply) {
		zt_count(ZT_STAT_UDP_NO_ROUTE);
		return ZT_REFUSE;
	}
	workers = zt_udp_pod_find(netns);
	is_redirected = workers && zt_token_for(netns, workers, dst, 0, token);
	if (stats)
		__sync_fetch_and_add(is_redirected ? &stats->redirected : &stats->refused, 1);
	return is_redirected ? ZT_REDIRECT : ZT_REFUSE;
}

/* Replaces the destination in the context with the proxy's: the token, or [::1] for IPv6. */
static __always_inline void zt_udp_set_proxy(struct bpf_sock_addr *ctx, const int family,
					     const struct zt_endpoint *dst,
					     const struct zt_udp_token *token)
{
	__u8 proxy[16];

	if (family == ZT_V4 || zt_is_mapped(dst->ip))
		zt_map4(proxy, zt_token_ip4(token->token));
	else
		zt_loopback(proxy, dst->ip);
	zt_set_addr(ctx, family, proxy, token->worker_port);
}

/* Stores the destination that a UDP socket dialed, for getpeername and getsockname. */
static __always_inline enum zt_action zt_udp_store_dialed(struct bpf_sock_addr *ctx,
							  const struct zt_endpoint *dst,
							  enum zt_action action)
{
	struct zt_sock *known;

	if (!ctx->sk)
		return action;
	known = action == ZT_REDIRECT ? zt_sock_create(ctx->sk) : zt_sock_find(ctx->sk);
	if (action == ZT_REDIRECT && !known)
		return ZT_REFUSE;
	if (!known || known->role == ZT_ROLE_PROXY)
		return action;
	known->role = ZT_ROLE_NONE;
	if (action == ZT_REDIRECT) {
		__builtin_memcpy(known->ip, dst->ip, 16);
		known->port = dst->port;
		known->role = ZT_ROLE_REDIRECTED;
	}
	return action;
}

static __always_inline int zt_udp_connect(struct bpf_sock_addr *ctx, const int family,
					  const struct zt_endpoint *dst)
{
	struct zt_udp_token token = {};
	enum zt_action action = zt_udp_classify(ctx, dst, &token);

	action = zt_udp_store_dialed(ctx, dst, action);
	if (action == ZT_REFUSE)
		return zt_refuse();
	if (action == ZT_REDIRECT)
		zt_udp_set_proxy(ctx, family, dst, &token);
	return ZT_ALLOW;
}

/* The socket is dialing a destination that is not redirected as UDP. */
static __always_inline void zt_udp_clear_dialed(struct bpf_sock_addr *ctx)
{
	struct zt_sock *known = ctx->sk ? zt_sock_find(ctx->sk) : 0;

	if (known && known->role == ZT_ROLE_REDIRECTED)
		known->role = ZT_ROLE_NONE;
}

#endif
