/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/connect4, cgroup/connect6: redirects an app's connect() in an enrolled pod to the proxy's
 * listener in that pod, unless a bypass entry shows that policy allows the connection.
 *
 * The netns cookie of the socket identifies the pod, not that of the process: a process can change
 * its network namespace, a socket cannot.
 */
#include "lib/dns.h"
#include "lib/same_node.h"
#include "lib/udp_route.h"

/*
 * Ports that only the proxy's own sockets may connect to, at any address: the listeners of the
 * proxy, and that of a waypoint's Envoy, which trusts the PROXY header that precedes a connection.
 */
static __always_inline int zt_is_proxy_port(__be16 port)
{
	return port == bpf_htons(ZT_PORT_OUTBOUND) || port == bpf_htons(ZT_PORT_INBOUND) ||
	       port == bpf_htons(ZT_PORT_HBONE) || port == bpf_htons(ZT_PORT_DNS) ||
	       port == bpf_htons(ZT_PORT_WAYPOINT);
}

static __always_inline enum zt_action zt_classify_tcp(struct bpf_sock_addr *ctx,
						      const struct zt_endpoint *dst,
						      struct zt_sock *known,
						      struct zt_pod_stats *stats)
{
	if (known && known->role == ZT_ROLE_PROXY) {
		if (stats)
			__sync_fetch_and_add(&stats->proxy_originated, 1);
		return ZT_PASS;
	}
	if (zt_is_proxy_port(dst->port))
		return ZT_REFUSE;
	if (zt_is_local(dst->ip)) {
		if (known)
			known->role = ZT_ROLE_NONE; /* the socket was connected before */
		if (stats)
			__sync_fetch_and_add(&stats->local, 1);
		return ZT_PASS;
	}
	if (ctx->protocol != ZT_IPPROTO_TCP)
		return ZT_REFUSE; /* the proxy cannot forward it, and it must not pass as plaintext */
	if (zt_is_link_local(dst->ip))
		return ZT_REFUSE; /* the proxy would lose the scope */
	return ZT_REDIRECT;
}

/* Stores the original destination; `proxy_port` selects the proxy's listener. */
static __always_inline enum zt_action zt_capture(struct bpf_sock_addr *ctx,
						 const struct zt_endpoint *dst,
						 const struct zt_pod *pod, __u64 netns,
						 __be16 *proxy_port)
{
	enum zt_action action = ZT_REDIRECT;
	struct zt_sock *sock;

	if (zt_is_dns(dst->port) && !zt_is_pod_ip(pod, dst->ip))
		*proxy_port = bpf_htons(ZT_PORT_DNS);
	else if (zt_same_node_allowed(netns, dst->ip, dst->port))
		action = ZT_BYPASS;
	sock = zt_sock_create(ctx->sk);
	if (!sock)
		return ZT_REFUSE;
	__builtin_memcpy(sock->ip, dst->ip, 16);
	sock->port = dst->port;
	sock->role = action == ZT_BYPASS ? ZT_ROLE_SAME_NODE : ZT_ROLE_REDIRECTED;
	return action;
}

static __always_inline void zt_count_connect(struct zt_pod_stats *stats, enum zt_action action,
					     __be16 proxy_port)
{
	if (action == ZT_REDIRECT && proxy_port == bpf_htons(ZT_PORT_DNS))
		__sync_fetch_and_add(&stats->dns, 1);
	else if (action == ZT_REDIRECT)
		__sync_fetch_and_add(&stats->redirected, 1);
	else if (action == ZT_BYPASS)
		__sync_fetch_and_add(&stats->same_node_bypass, 1);
	else if (action == ZT_REFUSE)
		__sync_fetch_and_add(&stats->refused, 1);
}

static __always_inline enum zt_action zt_connect_stream(struct bpf_sock_addr *ctx,
							const struct zt_endpoint *dst,
							__be16 *proxy_port)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_pod *pod = zt_pod_find(netns);
	struct zt_pod_stats *stats;
	enum zt_action action;

	if (!pod)
		return ZT_PASS;
	if (!ctx->sk)
		return ZT_REFUSE;
	stats = zt_pod_stats_find(netns);
	action = zt_classify_tcp(ctx, dst, zt_sock_find(ctx->sk), stats);
	if (action == ZT_REDIRECT)
		action = zt_capture(ctx, dst, pod, netns, proxy_port);
	if (stats)
		zt_count_connect(stats, action, *proxy_port);
	return action;
}

static __always_inline enum zt_action zt_connect_dns(struct bpf_sock_addr *ctx,
						     const struct zt_endpoint *dst,
						     __be16 *proxy_port)
{
	int server = zt_dns_redirect(ctx, dst);

	*proxy_port = bpf_htons(ZT_PORT_DNS + server);
	if (server >= 0)
		zt_udp_clear_dialed(ctx);
	if (server == ZT_DNS_ERROR)
		return ZT_REFUSE;
	return server == ZT_DNS_NONE ? ZT_PASS : ZT_REDIRECT;
}

static __always_inline int zt_connect(struct bpf_sock_addr *ctx, const int family)
{
	__be16 proxy_port = bpf_htons(ZT_PORT_OUTBOUND);
	enum zt_action action = ZT_PASS;
	struct zt_endpoint dst = {};
	__u8 loopback[16];

	zt_get_addr(ctx, family, &dst);
	if (ctx->type == ZT_SOCK_STREAM) {
		action = zt_connect_stream(ctx, &dst, &proxy_port);
	} else if (ctx->type == ZT_SOCK_DGRAM) {
		action = zt_connect_dns(ctx, &dst, &proxy_port);
		if (action == ZT_PASS)
			return zt_udp_connect(ctx, family, &dst);
	}
	if (action == ZT_REFUSE)
		return zt_refuse();
	if (action == ZT_REDIRECT) {
		zt_loopback(loopback, dst.ip);
		zt_set_addr(ctx, family, loopback, proxy_port);
	}
	return ZT_ALLOW;
}

SEC("cgroup/connect4")
int zt_connect4(struct bpf_sock_addr *ctx)
{
	return zt_connect(ctx, ZT_V4);
}

SEC("cgroup/connect6")
int zt_connect6(struct bpf_sock_addr *ctx)
{
	return zt_connect(ctx, ZT_V6);
}
