/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/recvmsg4, cgroup/recvmsg6: the app sees the remote endpoint or the name server instead of
 * the proxy; the proxy learns the original destination of a datagram.
 */
#include "lib/dns.h"
#include "lib/udp_route.h"

/* Replaces a token in the context with the remote endpoint that it represents. */
static __always_inline void zt_restore_remote(struct bpf_sock_addr *ctx, const int family,
					      const struct zt_endpoint *token)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_endpoint *remote = zt_token_remote(netns, zt_token_of(token->ip));

	if (!remote || zt_is_mapped(remote->ip) != zt_is_mapped(token->ip))
		return;
	zt_udp_touch(netns, remote);
	zt_set_addr(ctx, family, remote->ip, remote->port);
}

/* The destination that the app's connected socket dialed; returns 0 if there is none. */
static __always_inline int zt_dialed_by(struct bpf_sock_addr *ctx, const struct zt_endpoint *app,
					struct zt_endpoint *dst)
{
	struct zt_sock *known;
	struct bpf_sock *sk;
	int is_found = 0;

	sk = zt_lookup_app_udp(ctx, ZT_V6, zt_local_port(ctx->sk), app);
	if (!sk)
		return 0;
	known = zt_sock_find(sk);
	if (known && known->role == ZT_ROLE_REDIRECTED) {
		__builtin_memcpy(dst->ip, known->ip, 16);
		dst->port = known->port;
		is_found = 1;
	}
	bpf_sk_release(sk);
	return is_found;
}

/* The proxy reads from a connected IPv6 socket: shows it the token of the dialed destination. */
static __always_inline void zt_show_token6(struct bpf_sock_addr *ctx, const struct zt_endpoint *app)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_udp_pod *workers = zt_udp_pod_find(netns);
	struct zt_udp_token token = {};
	struct zt_endpoint dst = {};

	if (!workers || !zt_dialed_by(ctx, app, &dst) ||
	    !zt_token_for(netns, workers, &dst, 0, &token))
		return;
	ctx->user_ip6[0] = bpf_htonl(ZT_TOKEN_NET6);
	ctx->user_ip6[1] = 0;
	ctx->user_ip6[2] =
		bpf_htonl(zt_is_local(app->ip) ? ZT_TOKEN_FROM_LOOPBACK : ZT_TOKEN_FROM_POD);
	ctx->user_ip6[3] = zt_token_ip4(token.token);
}

/* The source is a native IPv6 address: a token, or the proxy's own address, from which connected
 * sockets receive their replies. */
static __always_inline void zt_recvmsg_native6(struct bpf_sock_addr *ctx,
					       const struct zt_endpoint *from)
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_sock *known = sk ? zt_sock_find(sk) : 0;
	int is_proxy = known && known->role == ZT_ROLE_PROXY;

	if (zt_is_token_ip6(from->ip)) {
		if (!is_proxy)
			zt_restore_remote(ctx, ZT_V6, from);
		return;
	}
	if (is_proxy)
		zt_show_token6(ctx, from);
	else if (known && known->role == ZT_ROLE_REDIRECTED && zt_is_local(from->ip) &&
		 (__be16)sk->dst_port == from->port)
		zt_set_addr(ctx, ZT_V6, known->ip, known->port);
}

static __always_inline void zt_udp_recvmsg(struct bpf_sock_addr *ctx, const int family)
{
	struct zt_endpoint from = {};

	zt_get_addr(ctx, family, &from);
	if (family == ZT_V6 && !zt_is_mapped(from.ip))
		zt_recvmsg_native6(ctx, &from);
	else if (zt_is_token_ip4(zt_word(from.ip, 3)))
		zt_restore_remote(ctx, family, &from);
}

static __always_inline int zt_recvmsg(struct bpf_sock_addr *ctx, const int family)
{
	int resolver = zt_dns_resolver_index(ctx);

	if (resolver >= 0)
		zt_dns_read_query(ctx, family, resolver);
	else if (!zt_dns_restore_server(ctx, family))
		zt_udp_recvmsg(ctx, family);
	return ZT_ALLOW;
}

SEC("cgroup/recvmsg4")
int zt_recvmsg4(struct bpf_sock_addr *ctx)
{
	return zt_recvmsg(ctx, ZT_V4);
}

SEC("cgroup/recvmsg6")
int zt_recvmsg6(struct bpf_sock_addr *ctx)
{
	return zt_recvmsg(ctx, ZT_V6);
}
