/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * cgroup/getsockname4, cgroup/getsockname6: the source of a redirected socket is loopback; the app
 * sees the pod's address instead.
 */
#include "lib/dns.h"

/* Whether the socket is connected to the proxy: redirected, or to the resolver. */
static __always_inline int zt_is_connected_to_proxy(struct bpf_sock *sk)
{
	struct zt_sock *known = zt_sock_find(sk);

	if (known && known->role == ZT_ROLE_REDIRECTED)
		return 1;
	return zt_dns_index(bpf_ntohs((__u16)sk->dst_port)) >= 0 && zt_dns_slots_find(sk);
}

static __always_inline int zt_getsockname(struct bpf_sock_addr *ctx, const int family)
{
	struct zt_endpoint local = {};
	struct zt_pod *pod;
	__u8 ip[16];

	if (!ctx->sk || !zt_is_connected_to_proxy(ctx->sk))
		return ZT_ALLOW;
	pod = zt_pod_find(bpf_get_netns_cookie(ctx));
	if (!pod)
		return ZT_ALLOW;
	zt_get_addr(ctx, family, &local);
	if (family == ZT_V4 ? zt_word(local.ip, 3) != bpf_htonl(ZT_LOOPBACK4) :
			      !zt_is_local(local.ip))
		return ZT_ALLOW;
	if (zt_pod_ip(pod, local.ip, ip))
		zt_set_ip(ctx, family, ip);
	return ZT_ALLOW;
}

SEC("cgroup/getsockname4")
int zt_getsockname4(struct bpf_sock_addr *ctx)
{
	return zt_getsockname(ctx, ZT_V4);
}

SEC("cgroup/getsockname6")
int zt_getsockname6(struct bpf_sock_addr *ctx)
{
	return zt_getsockname(ctx, ZT_V6);
}
