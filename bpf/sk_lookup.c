/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sk_lookup, linked to each enrolled pod's netns: a connection that comes in from outside goes to
 * the proxy's inbound listener; the accepted socket keeps the pod's address and port. When the
 * listener is gone the connection is refused: no proxy, no way in. What is let through is a
 * connection by verdict: its source socket was seen to connect, and it is let through only once.
 * Datagrams come in by verdict too, see udp_talk.h. Those to a socket that is connected to their
 * sender never get here.
 */
#include "udp_talk.h"

static __always_inline void zt_lookup_ips(struct bpf_sk_lookup *ctx, struct zt_addr *local,
					  struct zt_addr *remote)
{
	if (ctx->family == ZT_AF_INET) {
		zt_map4(local->ip, ctx->local_ip4);
		zt_map4(remote->ip, ctx->remote_ip4);
		return;
	}
	zt_copy6(local->ip, ctx->local_ip6);
	zt_copy6(remote->ip, ctx->remote_ip6);
}

/* Whether the very connection was authorised; notes what becomes of it. */
static __always_inline int zt_passes(struct bpf_sk_lookup *ctx, const struct zt_addr *local,
				     const struct zt_addr *remote)
{
	struct zt_four_tuple key = {};
	struct zt_same_node_conn *direct;

	__builtin_memcpy(key.src, remote->ip, 16);
	__builtin_memcpy(key.dst, local->ip, 16);
	key.sport = ctx->remote_port;
	key.dport = bpf_htons((__u16)ctx->local_port);
	direct = zt_same_node_conns.lookup(&key);
	if (!direct || direct->state == ZT_SAME_NODE_ESTABLISHED)
		return 0;
	if (!direct->epoch || direct->epoch != zt_current_epoch()) {
		direct->state = ZT_SAME_NODE_INTERCEPTED;
		return 0;
	}
	direct->state = ZT_SAME_NODE_ADMITTED;
	return 1;
}

/*
 * Whether it comes from the node itself, as a probe does. What the node forwards under an address
 * of its own, say by a NodePort, no socket of the node has sent.
 */
static __always_inline int zt_is_nodes(struct bpf_sk_lookup *ctx, const struct zt_addr *local,
				       const struct zt_addr *remote)
{
	struct zt_four_tuple key = {};

	if (!zt_node_addrs.lookup(remote))
		return 0;
	if (ctx->protocol != ZT_IPPROTO_TCP || !zt_node_netns_now())
		return 1;
	__builtin_memcpy(key.src, remote->ip, 16);
	__builtin_memcpy(key.dst, local->ip, 16);
	key.sport = ctx->remote_port;
	key.dport = bpf_htons((__u16)ctx->local_port);
	return zt_node_conns.lookup(&key) != 0;
}

/* A datagram that would come in. The agent's socket is gone with the agent. */
static __always_inline int zt_lookup_udp(struct bpf_sk_lookup *ctx, struct zt_addr *local,
					 const struct zt_addr *remote)
{
	struct zt_four_tuple key = {};
	enum zt_udp_entry entry;
	struct bpf_sock *judge;
	long failed;

	if (zt_is_token_ip6(remote->ip) &&
	    zt_udp_from_proxy(remote->ip, local->ip, ctx->remote_port))
		return SK_PASS;
	__builtin_memcpy(key.src, remote->ip, 16);
	__builtin_memcpy(key.dst, local->ip, 16);
	key.sport = ctx->remote_port;
	key.dport = bpf_htons((__u16)ctx->local_port);
	entry = zt_udp_enters(&key);
	if (entry == ZT_UDP_IN)
		return SK_PASS;
	if (entry == ZT_UDP_DENIED) {
		zt_count(ZT_STAT_UDP_DENIED);
		return SK_DROP;
	}
	judge = (void *)zt_udp_authz_socks.lookup(local);
	if (!judge) {
		zt_count(ZT_STAT_UDP_NO_AUTHORIZER);
		return SK_DROP;
	}
	failed = bpf_sk_assign((void *)ctx, judge, 0);
	bpf_sk_release(judge);
	return failed ? SK_DROP : SK_PASS;
}

int zt_sk_lookup(struct bpf_sk_lookup *ctx)
{
	struct zt_addr local = {}, remote = {};
	struct bpf_sock *listener;
	long failed;

	if (ctx->ingress_ifindex == ZT_LOOPBACK_IFINDEX ||
	    (ctx->protocol == ZT_IPPROTO_TCP && ctx->local_port == ZT_PORT_HBONE))
		return SK_PASS;
	zt_lookup_ips(ctx, &local, &remote);
	if (zt_same_ip(local.ip, remote.ip) || zt_is_local(remote.ip))
		return SK_PASS; /* inside the pod: for IPv4 the kernel reports the address' device */
	if (zt_is_nodes(ctx, &local, &remote)) {
		if (ctx->protocol == ZT_IPPROTO_TCP)
			zt_count(ZT_STAT_NODE_LOCAL_BYPASS);
		return SK_PASS;
	}
	if (ctx->protocol != ZT_IPPROTO_TCP)
		return zt_lookup_udp(ctx, &local, &remote);
	listener = (void *)zt_listeners.lookup(&local);
	if (!listener) {
		zt_count(ZT_STAT_NO_LISTENER);
		return SK_DROP;
	}
	if (zt_passes(ctx, &local, &remote)) {
		bpf_sk_release(listener);
		zt_count(ZT_STAT_SAME_NODE_BYPASS);
		return SK_PASS;
	}
	failed = bpf_sk_assign((void *)ctx, listener, 0);
	bpf_sk_release(listener);
	if (failed) {
		zt_count(ZT_STAT_NO_LISTENER);
		return SK_DROP;
	}
	zt_count(ZT_STAT_INBOUND_INTERCEPTED);
	return SK_PASS;
}
