/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/setsockopt: the proxy sets the client address that an app is to see (ZT_SOCKOPT_CLIENT),
 * and looks up UDP tokens (ZT_SOCKOPT_UDP_REMOTE, ZT_SOCKOPT_UDP_TOKEN); getsockopt returns the
 * result. The kernel handles every other option.
 */
#include "lib/sockopt.h"
#include "lib/udp_token.h"

/* Stores the token of `in` in the socket; from now on the calling worker forwards its datagrams. */
static __always_inline int zt_lookup_token(struct bpf_sockopt *ctx, struct zt_sockaddr_in6 *in,
					   struct zt_sock *known)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_udp_pod *workers = zt_udp_pod_find(netns);
	struct zt_udp_token token = {};
	struct zt_endpoint remote = {};

	__builtin_memcpy(remote.ip, in->ip, 16);
	remote.port = in->port;
	if (!workers || !zt_token_for(netns, workers, &remote, zt_local_port(ctx->sk), &token))
		return 0;
	zt_map4(known->ip, zt_token_ip4(token.token));
	known->port = token.worker_port;
	return 1;
}

/* Stores the remote endpoint that the token in `in` represents in the socket. */
static __always_inline int zt_lookup_remote(struct bpf_sockopt *ctx, struct zt_sockaddr_in6 *in,
					    struct zt_sock *known)
{
	struct zt_endpoint *remote;
	__be32 token;

	__builtin_memcpy(&token, in->ip + 12, 4);
	remote = zt_token_remote(bpf_get_netns_cookie(ctx), bpf_ntohl(token) & ZT_TOKEN_MASK);
	if (!remote)
		return 0;
	__builtin_memcpy(known->ip, remote->ip, 16);
	known->port = remote->port;
	return 1;
}

SEC("cgroup/setsockopt")
int zt_setsockopt(struct bpf_sockopt *ctx)
{
	struct zt_sockaddr_in6 *in = ctx->optval;
	struct bpf_sock *sk = ctx->sk;
	__s32 option = ctx->optname;
	struct zt_sock *known;

	if (ctx->level != ZT_SOCKOPT_LEVEL || !sk || option < ZT_SOCKOPT_CLIENT ||
	    option > ZT_SOCKOPT_UDP_TOKEN)
		return zt_passthrough(ctx);
	if ((void *)(in + 1) > ctx->optval_end || in->family != ZT_AF_INET6)
		return ZT_DENY;
	known = zt_sock_find(sk);
	if (!known || known->role != ZT_ROLE_PROXY)
		return ZT_DENY; /* an app must not impersonate a client */
	if (option == ZT_SOCKOPT_UDP_REMOTE) {
		if (!zt_lookup_token(ctx, in, known))
			return ZT_DENY;
	} else if (option == ZT_SOCKOPT_UDP_TOKEN) {
		if (!zt_lookup_remote(ctx, in, known))
			return ZT_DENY;
	} else {
		__builtin_memcpy(known->ip, in->ip, 16);
		known->port = in->port;
	}
	ctx->optlen = -1; /* handled: the kernel must not process it */
	return ZT_ALLOW;
}
