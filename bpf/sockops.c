/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * sockops: carries what we know of a connecting socket over to the socket that is accepted.
 *
 *   app connects (REDIRECTED)  ──▶ zt_flows ──▶ the proxy's accepted socket (ACCEPTED)
 *   proxy connects (OWN)       ──▶ zt_flows ──▶ the app's accepted socket   (SERVED)
 *
 * The entry is written when the SYN leaves and deleted when the connecting socket closes, by its
 * owner only. The accepted socket has its own copy, so a port used again finds nothing old.
 */
#include "zt_lib.h"

static __always_inline void zt_local_ip(struct bpf_sock_ops *ops, __u8 ip[16])
{
	if (ops->family == ZT_AF_INET)
		zt_map4(ip, ops->local_ip4);
	else
		zt_copy6(ip, ops->local_ip6);
}

static __always_inline void zt_remote_ip(struct bpf_sock_ops *ops, __u8 ip[16])
{
	if (ops->family == ZT_AF_INET)
		zt_map4(ip, ops->remote_ip4);
	else
		zt_copy6(ip, ops->remote_ip6);
}

/* The key as the connecting side sees it. */
static __always_inline void zt_key_out(struct bpf_sock_ops *ops, struct zt_flow_key *key)
{
	key->netns = bpf_get_netns_cookie(ops);
	zt_local_ip(ops, key->ip);
	key->sport = bpf_htons((__u16)ops->local_port);
	key->dport = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
}

/* The same key as the accepting side sees it. */
static __always_inline void zt_key_in(struct bpf_sock_ops *ops, struct zt_flow_key *key)
{
	key->netns = bpf_get_netns_cookie(ops);
	zt_remote_ip(ops, key->ip);
	key->sport = bpf_htons((__u16)bpf_ntohl(ops->remote_port));
	key->dport = bpf_htons((__u16)ops->local_port);
}

static __always_inline struct zt_sock *zt_known(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;

	return sk ? zt_socks.sk_storage_get(sk, 0, 0) : 0;
}

static __always_inline int zt_has_news(struct zt_sock *known)
{
	return known->role == ZT_ROLE_REDIRECTED || (known->role == ZT_ROLE_OWN && known->port);
}

static __always_inline void zt_on_connect(struct bpf_sock_ops *ops)
{
	struct zt_flow_key key = {};
	struct zt_flow flow = {};
	struct zt_sock *known = zt_known(ops);

	if (!known || !zt_has_news(known))
		return;
	zt_key_out(ops, &key);
	flow.owner = zt_socket_cookie(ops);
	flow.born_ns = bpf_ktime_get_ns();
	flow.note = *known;
	if (zt_flows.update(&key, &flow))
		zt_count(ZT_STAT_FLOW_FULL);
	else
		bpf_sock_ops_cb_flags_set(ops,
					  ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline void zt_on_accept(struct bpf_sock_ops *ops)
{
	struct zt_flow_key key = {};
	struct zt_flow *flow;
	struct zt_sock *mine;
	struct bpf_sock *sk;

	zt_key_in(ops, &key);
	flow = zt_flows.lookup(&key);
	if (!flow) {
		if (key.dport == bpf_htons(ZT_PORT_OUTBOUND))
			zt_count(ZT_STAT_NO_NOTE);
		return;
	}
	sk = ops->sk;
	if (!sk)
		return;
	mine = zt_socks.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!mine)
		return;
	*mine = flow->note;
	mine->role = flow->note.role == ZT_ROLE_REDIRECTED ? ZT_ROLE_ACCEPTED : ZT_ROLE_SERVED;
}

static __always_inline void zt_on_close(struct bpf_sock_ops *ops)
{
	struct zt_flow_key key = {};
	struct zt_flow *flow;

	zt_key_out(ops, &key);
	flow = zt_flows.lookup(&key);
	if (flow && flow->owner == zt_socket_cookie(ops))
		zt_flows.delete(&key);
}

int zt_sockops(struct bpf_sock_ops *ops)
{
	if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		zt_on_connect(ops);
	else if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		zt_on_accept(ops);
	else if (ops->op == BPF_SOCK_OPS_STATE_CB && ops->args[1] == BPF_TCP_CLOSE)
		zt_on_close(ops);
	return 1;
}
