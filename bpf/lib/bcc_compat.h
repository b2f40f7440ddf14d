/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The only file that knows which compiler front end reads the sources.
 *
 * BCC (ZT_BCC is defined by the loader) declares the helpers itself and rewrites `map.lookup()` to
 * helper calls. For every other reader (clang -fsyntax-only, gcc, an editor) this header declares
 * the same names as plain C.
 */
#ifndef ZT_BCC_COMPAT_H
#define ZT_BCC_COMPAT_H

#ifdef ZT_BCC

#ifndef ZT_PIN
#error "ZT_PIN is the pin directory: pass -DZT_PIN='\"/sys/fs/bpf/...\"'"
#endif

#include <uapi/linux/bpf.h>

#define SEC(name) /* the loader passes the attach type; BCC chooses the section */

/* An existing pinned map is reused. */
#define ZT_MAP(kind, key, value, name, size, flags) \
	BPF_TABLE_PINNED(kind, key, value, name, size, ZT_PIN "/maps/" #name, flags)

/* BCC's BPF_RINGBUF_OUTPUT cannot be pinned. */
#define ZT_RINGBUF(name, bytes)                                         \
	struct name##_table_t {                                         \
		int key;                                                \
		__u32 leaf;                                             \
		int (*ringbuf_output)(void *, __u64, __u64);            \
		__u32 max_entries;                                      \
	};                                                              \
	__attribute__((section("maps/ringbuf:" ZT_PIN "/maps/" #name))) \
	struct name##_table_t name = { .max_entries = (bytes) }

/* BCC declares the result as u32, which truncates cookies. */
#define zt_socket_cookie(ctx) (((__u64(*)(void *))BPF_FUNC_get_socket_cookie)(ctx))

#else

#include <linux/bpf.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define ZT_MAP(kind, key, value, name, size, flags)            \
	extern struct name##_table_t {                         \
		value *(*lookup)(key *);                       \
		int (*update)(key *, value *);                 \
		int (*delete)(key *);                          \
		value *(*sk_storage_get)(void *, void *, int); \
	} name

#define ZT_RINGBUF(name, bytes)                              \
	extern struct name##_table_t {                       \
		int (*ringbuf_output)(void *, __u64, __u64); \
	} name

#define bpf_htons(value) ((__be16)__builtin_bswap16((__u16)(value)))
#define bpf_ntohs(value) __builtin_bswap16((__u16)(value))
#define bpf_htonl(value) ((__be32)__builtin_bswap32((__u32)(value)))
#define bpf_ntohl(value) __builtin_bswap32((__u32)(value))

#define ZT_HELPER(result, name, ...) \
	static result (*const name)(__VA_ARGS__) __attribute__((unused)) = (void *)BPF_FUNC_##name

#define BPF_FUNC_bpf_ktime_get_ns BPF_FUNC_ktime_get_ns
#define BPF_FUNC_bpf_get_prandom_u32 BPF_FUNC_get_prandom_u32
#define BPF_FUNC_bpf_get_netns_cookie BPF_FUNC_get_netns_cookie
#define BPF_FUNC_zt_socket_cookie BPF_FUNC_get_socket_cookie
#define BPF_FUNC_bpf_set_retval BPF_FUNC_set_retval
#define BPF_FUNC_bpf_setsockopt BPF_FUNC_setsockopt
#define BPF_FUNC_bpf_sock_ops_cb_flags_set BPF_FUNC_sock_ops_cb_flags_set
#define BPF_FUNC_bpf_sk_assign BPF_FUNC_sk_assign
#define BPF_FUNC_bpf_sk_release BPF_FUNC_sk_release
#define BPF_FUNC_bpf_sk_lookup_udp BPF_FUNC_sk_lookup_udp

ZT_HELPER(__u64, bpf_ktime_get_ns, void);
ZT_HELPER(__u32, bpf_get_prandom_u32, void);
ZT_HELPER(__u64, bpf_get_netns_cookie, void *ctx);
ZT_HELPER(__u64, zt_socket_cookie, void *ctx);
ZT_HELPER(int, bpf_set_retval, int retval);
ZT_HELPER(long, bpf_setsockopt, void *ctx, int level, int name, void *value, int len);
ZT_HELPER(long, bpf_sock_ops_cb_flags_set, struct bpf_sock_ops *ops, int flags);
ZT_HELPER(long, bpf_sk_assign, void *ctx, void *sk, __u64 flags);
ZT_HELPER(long, bpf_sk_release, void *sk);
ZT_HELPER(struct bpf_sock *, bpf_sk_lookup_udp, void *ctx, struct bpf_sock_tuple *tuple,
	  __u32 tuple_size, __u64 netns, __u64 flags);

#endif

#endif
