/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sk_lookup, linked to each enrolled pod's netns: a connection that comes in from outside goes to
 * the proxy's inbound listener; the accepted socket keeps the pod's address and port. When the
 * listener is gone the connection is refused: no proxy, no way in. What is let through is a
 * connection by verdict: its source socket was seen to connect, and it is let through only once.
 */
#include "zt_lib.h"

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

static __always_inline int zt_same(const struct zt_addr *a, const struct zt_addr *b)
{
	return zt_word(a->ip, 0) == zt_word(b->ip, 0) && zt_word(a->ip, 1) == zt_word(b->ip, 1) &&
	       zt_word(a->ip, 2) == zt_word(b->ip, 2) && zt_word(a->ip, 3) == zt_word(b->ip, 3);
}

/* Whether the very connection was authorised; notes what becomes of it. */
static __always_inline int zt_passes(struct bpf_sk_lookup *ctx, const struct zt_addr *local,
				     const struct zt_addr *remote)
{
	struct zt_direct_key key = {};
	struct zt_direct *direct;

	__builtin_memcpy(key.src, remote->ip, 16);
	__builtin_memcpy(key.dst, local->ip, 16);
	key.sport = ctx->remote_port;
	key.dport = bpf_htons((__u16)ctx->local_port);
	direct = zt_direct.lookup(&key);
	if (!direct || direct->state == ZT_DIRECT_ACCEPTED)
		return 0;
	if (!direct->generation || direct->generation != zt_generation_now()) {
		direct->state = ZT_DIRECT_STOLEN;
		return 0;
	}
	direct->state = ZT_DIRECT_PASSED;
	return 1;
}

int zt_sk_lookup(struct bpf_sk_lookup *ctx)
{
	struct zt_addr local = {}, remote = {};
	struct bpf_sock *listener;
	long failed;

	if (ctx->protocol != ZT_IPPROTO_TCP || ctx->ingress_ifindex == ZT_LOOPBACK_IFINDEX ||
	    ctx->local_port == ZT_PORT_HBONE)
		return SK_PASS;
	zt_lookup_ips(ctx, &local, &remote);
	if (zt_same(&local, &remote))
		return SK_PASS; /* inside the pod: for IPv4 the kernel reports the address' device */
	if (zt_node_addrs.lookup(&remote)) {
		zt_count(ZT_STAT_NODE);
		return SK_PASS;
	}
	listener = (void *)zt_listeners.lookup(&local);
	if (!listener) {
		zt_count(ZT_STAT_NO_LISTENER);
		return SK_DROP;
	}
	if (zt_passes(ctx, &local, &remote)) {
		bpf_sk_release(listener);
		zt_count(ZT_STAT_DIRECT);
		return SK_PASS;
	}
	failed = bpf_sk_assign((void *)ctx, listener, 0);
	bpf_sk_release(listener);
	if (failed) {
		zt_count(ZT_STAT_NO_LISTENER);
		return SK_DROP;
	}
	zt_count(ZT_STAT_STOLEN);
	return SK_PASS;
}
