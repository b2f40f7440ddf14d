#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A node like those of kind, for record_layouts.py: entrypoint, units and files of kind, packages of
# Debian, in a container of Debian's Docker.
#   kind.sh fetch DIRECTORY          on a machine with a network: Docker's packages, the node's image
#   kind.sh start DIRECTORY SCRATCH KUBELET on a disposable virtual machine
#   kind.sh stop
set -euo pipefail
readonly KIND=sigs.k8s.io/kind@v0.30.0
readonly DOCKER=(docker.io tini)
# those of images/base/Dockerfile that may affect cgroups; containerd, runc and CNI from Debian
readonly PACKAGES=systemd,systemd-sysv,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod,jq,procps,containerd,runc,containernetworking-plugins

# The same steps as images/base/Dockerfile.
customize() {
  local root=$1 source=$2
  cp -r "$source/usr/local/bin/." "$root/usr/local/bin/"
  cp -r "$source/kind" "$root/"
  cp -r "$source/etc/." "$root/etc/"
  chmod -R u+w "$root/etc" "$root/kind" "$root/usr/local"
  chmod 755 "$root/kind" "$root"/kind/bin/* "$root"/usr/local/bin/*
  find "$root/lib/systemd/system/sysinit.target.wants/" -name systemd-tmpfiles-setup.service -delete
  rm -f "$root"/lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* \
    "$root"/etc/systemd/system/*.wants/* \
    "$root"/lib/systemd/system/sockets.target.wants/*{udev,initctl}*
  echo ReadKMsg=no >>"$root/etc/systemd/journald.conf"
  chroot "$root" systemctl enable kubelet.service containerd.service undo-mount-hacks.service
  chroot "$root" systemctl mask systemd-binfmt.service
  # the paths of the binaries that kind builds
  ln -s /usr/bin/containerd "$root/usr/local/bin/containerd"
  mkdir -p "$root/opt/cni" "$root/etc/cni/net.d"
  ln -s /usr/lib/cni "$root/opt/cni/bin"
  chroot "$root" sh -c "ctr oci spec |
    jq '.hooks.createContainer[.hooks.createContainer| length] |= . + {\"path\": \"/kind/bin/mount-product-files.sh\"}' |
    jq 'del(.process.rlimits)' >/etc/containerd/cri-base.json"
}

fetch() {
  local source
  mkdir -p "$1"
  (cd "$1" && apt-get download -q -o APT::Sandbox::User=root "${DOCKER[@]}")
  source=$(go mod download -json "$KIND" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/images/base/files
  mmdebstrap --quiet --variant=minbase --aptopt='APT::Install-Recommends "false"' \
    --include=$PACKAGES --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook="$SELF customize \"\$1\" $source" bookworm "$1/root.tar"
}

# The flags are those of kind's pkg/cluster/internal/providers/docker/provision.go.
start() {
  local fetched=$1 scratch=$2 kubelet=$3
  if ! command -v dockerd >/dev/null; then dpkg -i "$fetched"/*.deb; fi
  mkdir -p /etc/docker
  echo '{"bridge": "none", "iptables": false, "ip6tables": false}' >/etc/docker/daemon.json
  systemctl start containerd docker
  docker import --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' \
    "$fetched/root.tar" kindest/node:debian
  docker run --detach --tty --name node --hostname node \
    --label io.x-k8s.kind.role=control-plane --privileged --security-opt seccomp=unconfined \
    --security-opt apparmor=unconfined --tmpfs /tmp --tmpfs /run --volume /var \
    --volume /lib/modules:/lib/modules:ro --init=false --cgroupns=private --network none \
    --volume "$scratch:/scratch:ro" --volume "$kubelet:/usr/bin/kubelet:ro" kindest/node:debian
  docker exec node sh -ec '
    until systemctl is-active containerd; do sleep 1; done
    for image in /scratch/images/*.tar; do ctr --namespace k8s.io images import "$image"; done
    ip link add eth0 type bridge; ip addr add 10.99.0.11/24 dev eth0
    ip link set eth0 up; ip route add default via 10.99.0.1
    cp /scratch/node/cni/10-pods.conflist /etc/cni/net.d/
    mkdir -p /etc/kubernetes/manifests; cp /scratch/node/manifests/* /etc/kubernetes/manifests/
    mkdir -p /var/lib/kubelet; cp /scratch/node/kubelet.yaml /var/lib/kubelet/config.yaml
    cp /scratch/node/kubeadm-flags.env /var/lib/kubelet/
    systemctl restart kubelet'
}

SELF=$(realpath "$0")
case $1 in
  fetch) fetch "$2" ;;
  customize) customize "$2" "$3" ;;
  start) start "${@:2}" ;;
  stop) docker rm --force --volumes node ;;
esac
