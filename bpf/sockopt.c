/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/getsockopt answers SO_ORIGINAL_DST, and of a query that the resolver has read which name
 * server was asked (ZT_SOCKOPT_DNS_SERVER); cgroup/setsockopt takes the true client's address from the
 * proxy (ZT_SOCKOPT_CLIENT), and the proxy asks here what a UDP token stands for. Every other
 * option goes through untouched.
 */
#include "udp.h"

#define ZT_SOL_IP 0
#define ZT_SOL_IPV6 41
#define ZT_SO_ORIGINAL_DST 80 /* the same number in both families */
#define ZT_MAX_OPTLEN 4096    /* beyond a page the kernel wants optlen 0 from us, or fails */

struct zt_sockaddr_in {
	__u16 family;
	__be16 port;
	__be32 ip;
	__u8 zero[8];
};

struct zt_sockaddr_in6 {
	__u16 family;
	__be16 port;
	__be32 flowinfo;
	__u8 ip[16];
	__u32 scope;
};

static __always_inline int zt_passthrough(struct bpf_sockopt *ctx)
{
	if (ctx->optlen > ZT_MAX_OPTLEN)
		ctx->optlen = 0;
	return ZT_ALLOW;
}

/* Volatile: as one 64-bit store, which the compiler would make of the two, the verifier refuses. */
static __always_inline int zt_answered(struct bpf_sockopt *ctx, __s32 optlen)
{
	*(volatile __s32 *)&ctx->optlen = optlen;
	*(volatile __s32 *)&ctx->retval = 0;
	return ZT_ALLOW;
}

static __always_inline int zt_answer4(struct bpf_sockopt *ctx, struct zt_sock *known)
{
	struct zt_sockaddr_in *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return zt_passthrough(ctx);
	__builtin_memset(out, 0, sizeof(*out));
	out->family = ZT_AF_INET;
	out->port = known->port;
	out->ip = zt_word(known->ip, 3);
	return zt_answered(ctx, sizeof(*out));
}

static __always_inline int zt_answer6(struct bpf_sockopt *ctx, struct zt_sock *known)
{
	struct zt_sockaddr_in6 *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return zt_passthrough(ctx);
	__builtin_memset(out, 0, sizeof(*out));
	out->family = ZT_AF_INET6;
	out->port = known->port;
	__builtin_memcpy(out->ip, known->ip, 16);
	return zt_answered(ctx, sizeof(*out));
}

static __always_inline int zt_answer_asked(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct zt_dns_pending_key key = {};
	struct zt_sock server = {};
	struct zt_addr *asked;
	struct zt_sock *known = zt_socks.sk_storage_get(sk, 0, 0);

	if (!known || known->role != ZT_ROLE_RESOLVER)
		return zt_passthrough(ctx);
	key.netns = bpf_get_netns_cookie(ctx);
	key.port = bpf_htons((__u16)ctx->optname);
	key.server = (__u16)sk->src_port - ZT_PORT_DNS;
	key.family = sk->family == ZT_AF_INET ? 4 : 6;
	asked = zt_dns_pending.lookup(&key);
	if (!asked)
		return zt_passthrough(ctx);
	__builtin_memcpy(server.ip, asked->ip, 16);
	server.port = bpf_htons(53);
	return zt_answer6(ctx, &server);
}

static __always_inline int zt_original_dst(struct bpf_sockopt *ctx, struct zt_sock *known)
{
	if (!known || known->role != ZT_ROLE_REDIRECT_ACCEPTED)
		return zt_passthrough(ctx);
	if (ctx->level == ZT_SOL_IPV6)
		return zt_answer6(ctx, known);
	return zt_is_mapped(known->ip) ? zt_answer4(ctx, known) : zt_passthrough(ctx);
}

int zt_getsockopt(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_sock *known;

	if (!sk)
		return zt_passthrough(ctx);
	if (ctx->level == ZT_SOCKOPT_LEVEL && (ctx->optname & ~0xffff) == ZT_SOCKOPT_DNS_SERVER)
		return zt_answer_asked(ctx, sk);
	if (ctx->optname == ZT_SO_ORIGINAL_DST &&
	    (ctx->level == ZT_SOL_IP || ctx->level == ZT_SOL_IPV6))
		return zt_original_dst(ctx, zt_socks.sk_storage_get(sk, 0, 0));
	if (ctx->level != ZT_SOCKOPT_LEVEL || ctx->optname != ZT_SOCKOPT_UDP_RESULT)
		return zt_passthrough(ctx);
	known = zt_socks.sk_storage_get(sk, 0, 0);
	return known && known->role == ZT_ROLE_PROXY ? zt_answer6(ctx, known) : zt_passthrough(ctx);
}

/* A token for `in`, carried from now on by the worker that asks; the answer is kept with its socket. */
static __always_inline int zt_ask_token(struct bpf_sockopt *ctx, struct zt_sockaddr_in6 *in,
					struct zt_sock *known)
{
	__u64 netns = bpf_get_netns_cookie(ctx);
	struct zt_udp_remote remote = {};
	struct zt_udp_token peer = {};
	struct zt_udp_pod *pod = zt_udp_pods.lookup(&netns);

	__builtin_memcpy(remote.ip, in->ip, 16);
	remote.port = in->port;
	if (!pod || !zt_peer_of(netns, pod, &remote, bpf_htons((__u16)ctx->sk->src_port), &peer))
		return 0;
	zt_map4(known->ip, zt_token_ip4(peer.token));
	known->port = peer.worker_port;
	return 1;
}

static __always_inline int zt_ask_remote(struct bpf_sockopt *ctx, struct zt_sockaddr_in6 *in,
					 struct zt_sock *known)
{
	struct zt_udp_remote *remote;
	__be32 token;

	__builtin_memcpy(&token, in->ip + 12, 4);
	remote = zt_remote_of(bpf_get_netns_cookie(ctx), bpf_ntohl(token) & ZT_TOKEN_MASK);
	if (!remote)
		return 0;
	__builtin_memcpy(known->ip, remote->ip, 16);
	known->port = remote->port;
	return 1;
}

int zt_setsockopt(struct bpf_sockopt *ctx)
{
	struct zt_sockaddr_in6 *in = ctx->optval;
	struct bpf_sock *sk = ctx->sk;
	__s32 asked = ctx->optname;
	struct zt_sock *known;

	if (ctx->level != ZT_SOCKOPT_LEVEL || !sk || asked < ZT_SOCKOPT_CLIENT ||
	    asked > ZT_SOCKOPT_UDP_TOKEN)
		return zt_passthrough(ctx);
	if ((void *)(in + 1) > ctx->optval_end || in->family != ZT_AF_INET6)
		return ZT_DENY;
	known = zt_socks.sk_storage_get(sk, 0, 0);
	if (!known || known->role != ZT_ROLE_PROXY)
		return ZT_DENY; /* only the proxy's sockets may speak for a client, or ask */
	if (asked == ZT_SOCKOPT_UDP_REMOTE) {
		if (!zt_ask_token(ctx, in, known))
			return ZT_DENY;
	} else if (asked == ZT_SOCKOPT_UDP_TOKEN) {
		if (!zt_ask_remote(ctx, in, known))
			return ZT_DENY;
	} else {
		__builtin_memcpy(known->ip, in->ip, 16);
		known->port = in->port;
	}
	ctx->optlen = -1; /* done: the kernel's own handler must not see it */
	return ZT_ALLOW;
}
