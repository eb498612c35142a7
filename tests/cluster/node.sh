# The nodes: a network, mount and host name namespace each, with containerd, a kubelet and kube-proxy. Sourced after common.sh.
# Node 1 has containerd 2.x, node 2 Debian's 1.6.
# shellcheck shell=bash

# Creates the namespaces of a node, and connects it to the hub. What leaves the pods' and nodes' networks is refused by the hub
# immediately, so nothing reaches the Internet.
node_create() { # N
  local n=$1 dir=$STATE/node$1 other controller
  mkdir -p "$dir"/{etc,etc.work,var/{lib,log,cache,tmp,lib/{kubelet,containerd,cni}}}
  ln -sfn /run "$dir/var/run"
  ln -sfn /run/lock "$dir/var/lock"
  # The kubelet wants these values, and would set them for the machine.
  printf '1' >"$dir/one"
  printf '10' >"$dir/ten"
  setsid unshare --net --mount --uts --propagation private sleep infinity </dev/null >/dev/null 2>&1 &
  echo $! >"$RUN/node$n.pid"
  wait_for_namespaces "node$n" net mnt uts
  # /etc is that of the machine, with changes of its own. hostPath volumes, mirror configuration and sockets are the node's own.
  # shellcheck disable=SC2016  # expanded by the inner shell
  node "$n" bash -euc '
    hostname "$2"
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/etc.work" /etc
    mount --bind "$1/var" /var
    mount -t tmpfs tmpfs /run
    mkdir -p /run/lock /run/netns
    mount --bind "$1/one" /proc/sys/vm/overcommit_memory
    mount --bind "$1/ten" /proc/sys/kernel/panic
    mount --bind "$1/one" /proc/sys/kernel/panic_on_oops
    mount --make-rshared /
    ip link set lo up
    sysctl -qw net.ipv4.ip_forward=1
    # A client that uses a port again gets the connection tracking entry of its former connection, which led to a pod that is gone,
    # or nowhere before there was a pod. The loops of pulls use all ports within two minutes, which is how long such entries last.
    sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_syn_sent=5 net.netfilter.nf_conntrack_tcp_timeout_time_wait=5' - "$dir" "node$n"
  node_connect "$n"
  for other in "${NODES[@]}"; do
    [[ $other == "$n" ]] || node "$n" ip route add "10.78.$other.0/24" via "$(node_address "$other")"
  done
  # With cgroup v1, the groups of all pods of a node are below a group of the node in every hierarchy.
  for controller in /sys/fs/cgroup/*/; do
    [[ $controller != */unified/ ]] || continue
    mkdir -p "$controller/$GROUP-node$n"
    if [[ -e $controller/cpuset.cpus ]]; then
      cat "$controller/cpuset.cpus" >"$controller/$GROUP-node$n/cpuset.cpus"
      cat "$controller/cpuset.mems" >"$controller/$GROUP-node$n/cpuset.mems"
    fi
  done
  node_files "$n"
}

node_connect() { # N
  ip link add "larder-node$1" netns "$(<"$RUN/hub.pid")" type veth peer name eth0 netns "$(<"$RUN/node$1.pid")"
  hub ip link set "larder-node$1" master br0 up
  node "$1" ip address add "$(node_address "$1")/24" dev eth0
  node "$1" ip link set eth0 up
  node "$1" ip route add default via "$HUB"
  hub ip route replace "10.78.$1.0/24" via "$(node_address "$1")"
}

# Writes a file of the node from standard input.
node_file() { # N PATH
  # shellcheck disable=SC2016  # expanded by the inner shell
  node "$1" bash -euc 'mkdir -p "$(dirname -- "$1")"; cat >"$1"' - "$2"
}

node_files() { # N
  printf '127.0.0.1 localhost\n%s node%s\n' "$(node_address "$1")" "$1" | node_file "$1" /etc/hosts
  # Pods resolve PUBLIC, nodes resolve nothing: without Larder they cannot pull.
  printf 'nameserver 127.0.0.1\n' | node_file "$1" /etc/resolv.conf
  printf 'nameserver %s\n' "$HUB" | node_file "$1" /etc/kubernetes/resolv.conf
  printf 'node%s\n' "$1" | node_file "$1" /etc/hostname
  printf 'runtime-endpoint: unix:///run/containerd/containerd.sock\ntimeout: 120\n' | node_file "$1" /etc/crictl.yaml
  node_file "$1" /etc/cni/net.d/10-bridge.conflist <<JSON
{"cniVersion": "1.0.0", "name": "bridge", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.78.$1.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
JSON
  # Without CAP_SYS_RESOURCE, runc cannot set a negative oom_score_adj, and reports only that a pipe was closed. Therefore
  # `restrict_oom_score_adj` is set.
  if [[ $1 == 1 ]]; then
    node_file "$1" /etc/containerd/config.toml <<TOML
version = 3
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "registry.k8s.io/pause:$PAUSE_VERSION"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
TOML
  else
    node_file "$1" /etc/containerd/config.toml <<TOML
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "registry.k8s.io/pause:$PAUSE_VERSION"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
TOML
  fi
}

containerd_start() { # N
  local n=$1 bin=/usr/bin
  [[ $n != 1 ]] || bin=$CONTAINERD_BIN
  start "containerd$n" "node$n" env "PATH=$bin:/usr/sbin:/usr/bin:/sbin:/bin" "$bin/containerd" --config /etc/containerd/config.toml
  wait_until 60 "containerd of node $n" ctr "$n" version
}

# A containerd 2.x that has just started ends the first import with EOF sometimes, so it is tried again. Version 1.6 has no
# transfer service, which --local does without.
image_import() { # N FILE
  wait_until 30 "the import of $2 on node $1" ctr "$1" images import --local "$2"
}

# What a node needs for a credential provider; the case `service-accounts` writes it.
readonly PROVIDERS=/etc/kubernetes/credential-providers
kubelet_start() { # N
  local n=$1 options=()
  if node "$n" test -e "$PROVIDERS.yaml"; then
    options=(--image-credential-provider-config "$PROVIDERS.yaml" --image-credential-provider-bin-dir "$PROVIDERS")
  fi
  # cgroupRoot needs cgroupDriver cgroupfs; protectKernelDefaults: see node_create. The kubelet updates mounted secrets and
  # ConfigMaps at its next sync of the pod; once a minute would make the tests wait.
  cat >"$WORK/kubelet$n.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $PKI/ca.crt}}
authorization: {mode: Webhook}
address: $(node_address "$n")
cgroupDriver: cgroupfs
cgroupRoot: /$GROUP-node$n
failCgroupV1: false
failSwapOn: false
protectKernelDefaults: true
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDomain: cluster.local
clusterDNS: [$HUB]
resolvConf: /etc/kubernetes/resolv.conf
healthzBindAddress: 127.0.0.1
evictionHard: {memory.available: 100Mi, nodefs.available: 2%, imagefs.available: 2%}
imageGCHighThresholdPercent: 98
imageGCLowThresholdPercent: 97
registryPullQPS: 0
syncFrequency: 10s
YAML
  start "kubelet$n" "node$n" env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$KUBE_BIN/kubelet" --config "$WORK/kubelet$n.yaml" \
    --kubeconfig "$PKI/node$n.conf" --hostname-override "node$n" --node-ip "$(node_address "$n")" --root-dir /var/lib/kubelet \
    --cert-dir /var/lib/kubelet/pki "${options[@]}"
}
kubelet_restart() { # N
  stop "kubelet$1"
  kubelet_start "$1"
  wait_until 60 "the kubelet of node $1" node "$1" curl -fsS --max-time 2 http://127.0.0.1:10248/healthz
}

kube_proxy_start() { # N
  local n=$1
  # The limits of connection tracking cannot be set in a network namespace.
  cat >"$WORK/proxy$n.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $PKI/proxy.conf}
mode: ${LARDER_CLUSTER_PROXY:-iptables}
clusterCIDR: $POD_NETWORK
hostnameOverride: node$n
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML
  start "kube-proxy$n" "node$n" env PATH=/usr/sbin:/usr/bin:/sbin:/bin "$KUBE_BIN/kube-proxy" --config "$WORK/proxy$n.yaml"
}

# Stops the servers of a node and everything in its pods. With KILL this is the loss of a machine.
node_stop() { # N [SIGNAL]
  local n=$1 left _
  for name in kubelet kube-proxy containerd; do stop "$name$n" "${2:-TERM}"; done
  for _ in {1..30}; do
    mapfile -t left < <({ processes_of "node$n"; processes_in_pods "$n"; } | sort -u)
    ((${#left[@]} > 0)) || break
    kill -s KILL "${left[@]}" 2>/dev/null || true
    sleep 0.3
  done
}

# A node without power: everything ends without notice, and nothing of /run remains.
node_lose() { # N
  node_stop "$1" KILL
  stop "node$1" KILL
}
node_is_lost() { [[ ! -s $RUN/node$1.pid ]]; } # N
node_boot() { # N
  node_create "$1"
  containerd_start "$1"
  kubelet_start "$1"
  kube_proxy_start "$1"
}
