/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/getpeername, getsockname: the app sees the addresses it would see without us. accept()
 * asks getpeername too, so a server learns its true client.
 */
#include "dns.h"

static __always_inline struct zt_sock *zt_app_socket(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct zt_sock *known;

	if (!sk)
		return 0;
	known = zt_socks.sk_storage_get(sk, 0, 0);
	if (!known || (known->role != ZT_ROLE_REDIRECTED && known->role != ZT_ROLE_UPSTREAM_ACCEPTED))
		return 0;
	return known;
}

int zt_getpeername4(struct bpf_sock_addr *ctx)
{
	struct zt_sock *known = zt_app_socket(ctx);

	if (known && zt_is_mapped(known->ip)) {
		ctx->user_ip4 = zt_word(known->ip, 3);
		ctx->user_port = known->port;
	} else {
		zt_dns_show4(ctx);
	}
	return ZT_ALLOW;
}

int zt_getpeername6(struct bpf_sock_addr *ctx)
{
	struct zt_sock *known = zt_app_socket(ctx);

	if (known) {
		ctx->user_ip6[0] = zt_word(known->ip, 0);
		ctx->user_ip6[1] = zt_word(known->ip, 1);
		ctx->user_ip6[2] = zt_word(known->ip, 2);
		ctx->user_ip6[3] = zt_word(known->ip, 3);
		ctx->user_port = known->port;
	} else {
		zt_dns_show6(ctx);
	}
	return ZT_ALLOW;
}

/* A UDP socket that is connected to the resolver. */
static __always_inline int zt_is_asking(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk && zt_dns_index(bpf_ntohs((__u16)sk->dst_port)) >= 0 &&
	       zt_dns_server_slots.sk_storage_get(sk, 0, 0);
}

/* A redirected socket has a loopback source; the app expects the pod's address. */
static __always_inline struct zt_pod *zt_redirected_pod(struct bpf_sock_addr *ctx)
{
	struct zt_sock *known = zt_app_socket(ctx);
	__u64 netns;

	if (!(known && known->role == ZT_ROLE_REDIRECTED) && !zt_is_asking(ctx))
		return 0;
	netns = bpf_get_netns_cookie(ctx);
	return zt_pods.lookup(&netns);
}

int zt_getsockname4(struct bpf_sock_addr *ctx)
{
	struct zt_pod *pod = zt_redirected_pod(ctx);

	if (pod && pod->ip4 && ctx->user_ip4 == bpf_htonl(0x7f000001))
		ctx->user_ip4 = pod->ip4;
	return ZT_ALLOW;
}

int zt_getsockname6(struct bpf_sock_addr *ctx)
{
	struct zt_pod *pod = zt_redirected_pod(ctx);
	__u8 ip[16];

	if (!pod)
		return ZT_ALLOW;
	zt_copy6(ip, ctx->user_ip6);
	if (!zt_is_local(ip))
		return ZT_ALLOW;
	if (zt_is_mapped(ip)) {
		if (pod->ip4)
			ctx->user_ip6[3] = pod->ip4;
		return ZT_ALLOW;
	}
	if (zt_word(pod->ip6, 0)) {
		ctx->user_ip6[0] = zt_word(pod->ip6, 0);
		ctx->user_ip6[1] = zt_word(pod->ip6, 1);
		ctx->user_ip6[2] = zt_word(pod->ip6, 2);
		ctx->user_ip6[3] = zt_word(pod->ip6, 3);
	}
	return ZT_ALLOW;
}
