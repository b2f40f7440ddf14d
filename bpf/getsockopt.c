/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/getsockopt: returns the original destination of a redirected connection
 * (SO_ORIGINAL_DST), the original name server of a DNS query (ZT_SOCKOPT_DNS_SERVER), and the
 * result of a token lookup (ZT_SOCKOPT_UDP_RESULT). The kernel handles every other option.
 */
#include "lib/sockopt.h"

#define ZT_SOL_IP 0
#define ZT_SOL_IPV6 41
#define ZT_SO_ORIGINAL_DST 80 /* the same number in both families */

/* Volatile: the verifier rejects the 64-bit store into which the compiler would merge these. */
static __always_inline int zt_reply(struct bpf_sockopt *ctx, __s32 optlen)
{
	*(volatile __s32 *)&ctx->optlen = optlen;
	*(volatile __s32 *)&ctx->retval = 0;
	return ZT_ALLOW;
}

static __always_inline int zt_reply_addr4(struct bpf_sockopt *ctx, const __u8 ip[16], __be16 port)
{
	struct zt_sockaddr_in *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return zt_passthrough(ctx);
	__builtin_memset(out, 0, sizeof(*out));
	out->family = ZT_AF_INET;
	out->port = port;
	out->ip = zt_word(ip, 3);
	return zt_reply(ctx, sizeof(*out));
}

static __always_inline int zt_reply_addr6(struct bpf_sockopt *ctx, const __u8 ip[16], __be16 port)
{
	struct zt_sockaddr_in6 *out = ctx->optval;

	if ((void *)(out + 1) > ctx->optval_end)
		return zt_passthrough(ctx);
	__builtin_memset(out, 0, sizeof(*out));
	out->family = ZT_AF_INET6;
	out->port = port;
	__builtin_memcpy(out->ip, ip, 16);
	return zt_reply(ctx, sizeof(*out));
}

static __always_inline int zt_reply_dns_server(struct bpf_sockopt *ctx, struct bpf_sock *sk)
{
	struct zt_sock *known = zt_sock_find(sk);
	struct zt_dns_pending_key key = {};
	struct zt_addr *server;

	if (!known || known->role != ZT_ROLE_RESOLVER)
		return zt_passthrough(ctx);
	key.netns = bpf_get_netns_cookie(ctx);
	key.port = bpf_htons((__u16)ctx->optname);
	key.server = (__u16)sk->src_port - ZT_PORT_DNS;
	key.family = sk->family == ZT_AF_INET ? ZT_V4 : ZT_V6;
	server = zt_dns_pending_find(&key);
	return server ? zt_reply_addr6(ctx, server->ip, bpf_htons(53)) : zt_passthrough(ctx);
}

static __always_inline int zt_reply_original_dst(struct bpf_sockopt *ctx, struct zt_sock *known)
{
	if (!known || known->role != ZT_ROLE_REDIRECT_ACCEPTED)
		return zt_passthrough(ctx);
	if (ctx->level == ZT_SOL_IPV6)
		return zt_reply_addr6(ctx, known->ip, known->port);
	return zt_is_mapped(known->ip) ? zt_reply_addr4(ctx, known->ip, known->port) :
					 zt_passthrough(ctx);
}

SEC("cgroup/getsockopt")
int zt_getsockopt(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_sock *known;

	if (!sk)
		return zt_passthrough(ctx);
	if (ctx->level == ZT_SOCKOPT_LEVEL && (ctx->optname & ~0xffff) == ZT_SOCKOPT_DNS_SERVER)
		return zt_reply_dns_server(ctx, sk);
	if (ctx->optname == ZT_SO_ORIGINAL_DST &&
	    (ctx->level == ZT_SOL_IP || ctx->level == ZT_SOL_IPV6))
		return zt_reply_original_dst(ctx, zt_sock_find(sk));
	if (ctx->level != ZT_SOCKOPT_LEVEL || ctx->optname != ZT_SOCKOPT_UDP_RESULT)
		return zt_passthrough(ctx);
	known = zt_sock_find(sk);
	return known && known->role == ZT_ROLE_PROXY ?
		       zt_reply_addr6(ctx, known->ip, known->port) :
		       zt_passthrough(ctx);
}
