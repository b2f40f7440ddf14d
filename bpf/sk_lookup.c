/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sk_lookup, attached to each enrolled pod's netns: redirects connections that arrive from outside
 * the pod to the proxy's inbound listener. The accepted socket has the pod's address and port as
 * its local address. Without a listener the connection is refused.
 *
 * Exceptions: HBONE, the pod's own traffic, the node's own connections (probes), and connections
 * that bypass the proxy: their source socket was seen to connect, and each entry admits one
 * connection. Datagrams need an admission decision, see lib/udp_conntrack.h. The kernel does not
 * run this hook for datagrams to a socket that is connected to their sender.
 *
 * Listener ports of an ingress gateway are public: connections and datagrams reach its Envoy
 * directly, which enforces policy. All other ports of the pod are captured.
 */
#include "lib/same_node.h"
#include "lib/udp_conntrack.h"

#define ZT_LOOPBACK_IFINDEX 1 /* lo is always the first interface of a netns */

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

static __always_inline void zt_lookup_tuple(struct bpf_sk_lookup *ctx, const struct zt_addr *local,
					    const struct zt_addr *remote, struct zt_four_tuple *key)
{
	zt_set_tuple(key, remote->ip, ctx->remote_port, local->ip,
		     bpf_htons((__u16)ctx->local_port));
}

/* Whether a bypass entry admits the connection; advances the state of its entry. */
static __always_inline int zt_bypass_admits(struct zt_four_tuple *key)
{
	struct zt_same_node_conn *conn = zt_same_node_conn_find(key);

	if (!conn || conn->state == ZT_SAME_NODE_ESTABLISHED)
		return 0;
	if (!conn->epoch || conn->epoch != zt_current_epoch()) {
		conn->state = ZT_SAME_NODE_INTERCEPTED;
		return 0;
	}
	conn->state = ZT_SAME_NODE_ADMITTED;
	return 1;
}

/*
 * Whether the node itself sent it, for example a probe. Traffic that the node forwards under its
 * own address, for example through a NodePort, was sent by no socket of the node.
 */
static __always_inline int zt_is_from_node(struct bpf_sk_lookup *ctx, struct zt_addr *remote,
					   struct zt_four_tuple *key)
{
	if (!zt_is_node_addr(remote))
		return 0;
	if (!zt_node_netns_cookie())
		return 1;
	if (ctx->protocol != ZT_IPPROTO_TCP)
		return zt_node_udp_is_known(key);
	return zt_node_conn_find(key) != 0;
}

/*
 * Whether it arrived at a listener port of an ingress gateway. The source of a datagram must not be
 * a token: only the proxy may send those, see lib/udp_token.h.
 */
static __always_inline int zt_is_for_gateway(struct bpf_sk_lookup *ctx, const struct zt_addr *local,
					     const struct zt_addr *remote,
					     struct zt_four_tuple *key)
{
	struct zt_gateway_port_key wanted = {};
	struct zt_gateway_port *found;

	__builtin_memcpy(wanted.ip, local->ip, 16);
	wanted.port = bpf_htons((__u16)ctx->local_port);
	wanted.protocol = ctx->protocol;
	found = zt_gateway_port_find(&wanted);
	if (!found)
		return 0;
	if (ctx->protocol == ZT_IPPROTO_TCP)
		zt_bypass_admits(key); /* a bypass entry awaits this pod's answer */
	else if (zt_is_token_ip6(remote->ip))
		return 0;
	__sync_fetch_and_add(&found->admitted, 1);
	return 1;
}

/* Whether the address is captured: the proxy or the agent has a socket for it. */
static __always_inline int zt_is_captured(struct zt_addr *local)
{
	struct bpf_sock *sock = zt_udp_authz_sock_find(local);

	if (!sock)
		sock = zt_listener_find(local);
	if (!sock)
		return 0;
	bpf_sk_release(sock);
	return 1;
}

/*
 * From the pod's own address to itself. Another host can send this too: the kernel rejects such
 * datagrams of IPv4 only, and IPV6_FREEBIND permits any source. A forged TCP connection is never
 * established, because the answer stays in the pod.
 */
static __always_inline int zt_lookup_own(struct bpf_sk_lookup *ctx, struct zt_addr *local,
					 struct zt_four_tuple *key)
{
	if (ctx->protocol == ZT_IPPROTO_TCP || ctx->family == ZT_AF_INET)
		return SK_PASS;
	if (zt_udp_from_self(key) || !zt_is_captured(local))
		return SK_PASS;
	zt_count(ZT_STAT_UDP_FORGED);
	return SK_DROP;
}

static __always_inline int zt_lookup_udp(struct bpf_sk_lookup *ctx, struct zt_addr *local,
					 const struct zt_addr *remote, struct zt_four_tuple *key)
{
	enum zt_udp_admission admission;
	struct bpf_sock *authorizer;
	long error;

	if (zt_is_token_ip6(remote->ip) &&
	    zt_udp_from_proxy(remote->ip, ctx->remote_port, local->ip))
		return SK_PASS;
	admission = zt_udp_admit(key);
	if (admission == ZT_UDP_ADMIT)
		return SK_PASS;
	if (admission == ZT_UDP_DENY) {
		zt_count(ZT_STAT_UDP_DENIED);
		return SK_DROP;
	}
	authorizer = zt_udp_authz_sock_find(local);
	if (!authorizer) { /* the socket closes with the agent */
		zt_count(ZT_STAT_UDP_NO_AUTHORIZER);
		return SK_DROP;
	}
	error = bpf_sk_assign((void *)ctx, authorizer, 0);
	bpf_sk_release(authorizer);
	return error ? SK_DROP : SK_PASS;
}

static __always_inline int zt_lookup_tcp(struct bpf_sk_lookup *ctx, struct zt_addr *local,
					 struct zt_four_tuple *key)
{
	struct bpf_sock *listener = zt_listener_find(local);
	long error;

	if (!listener) {
		zt_count(ZT_STAT_NO_LISTENER);
		return SK_DROP;
	}
	if (zt_bypass_admits(key)) {
		bpf_sk_release(listener);
		zt_count(ZT_STAT_SAME_NODE_BYPASS);
		return SK_PASS;
	}
	error = bpf_sk_assign((void *)ctx, listener, 0);
	bpf_sk_release(listener);
	if (error) {
		zt_count(ZT_STAT_NO_LISTENER);
		return SK_DROP;
	}
	zt_count(ZT_STAT_INBOUND_INTERCEPTED);
	return SK_PASS;
}

SEC("sk_lookup")
int zt_sk_lookup(struct bpf_sk_lookup *ctx)
{
	struct zt_addr local = {}, remote = {};
	struct zt_four_tuple key = {};

	if (ctx->ingress_ifindex == ZT_LOOPBACK_IFINDEX ||
	    (ctx->protocol == ZT_IPPROTO_TCP && ctx->local_port == ZT_PORT_HBONE))
		return SK_PASS;
	zt_lookup_ips(ctx, &local, &remote);
	if (zt_is_local(remote.ip))
		return SK_PASS; /* inside the pod: the kernel accepts such a source only from loopback */
	zt_lookup_tuple(ctx, &local, &remote, &key);
	if (zt_same_ip(local.ip, remote.ip))
		return zt_lookup_own(ctx, &local, &key);
	if (zt_is_from_node(ctx, &remote, &key)) {
		if (ctx->protocol == ZT_IPPROTO_TCP)
			zt_count(ZT_STAT_NODE_LOCAL_BYPASS);
		return SK_PASS;
	}
	if (zt_is_for_gateway(ctx, &local, &remote, &key))
		return SK_PASS;
	if (ctx->protocol != ZT_IPPROTO_TCP)
		return zt_lookup_udp(ctx, &local, &remote, &key);
	return zt_lookup_tcp(ctx, &local, &key);
}
