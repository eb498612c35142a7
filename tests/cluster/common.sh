# Shared by the scripts in this directory: names, addresses, and commands that run in the network of the hub or in a node.
# shellcheck shell=bash disable=SC2034  # the scripts use the names

set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
HERE=$ROOT/tests/cluster
# The script that sourced this file, for messages.
SELF=tests/cluster/$(basename -- "$0")
readonly ROOT HERE SELF
# shellcheck source=tests/cluster/versions.sh
. "$HERE/versions.sh"

# The state of the cluster: the nodes' file systems, logs, pids, certificates. Not below /etc, /run or /var, because every node
# has its own.
STATE=${LARDER_CLUSTER:-/tmp/larder-cluster}
# Built tools, each in a directory named after its version.
CACHE=${LARDER_CLUSTER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/larder-cluster}
readonly STATE CACHE
readonly RUN=$STATE/run LOGS=$STATE/logs PKI=$STATE/pki WORK=$STATE/work
readonly IMAGE_TAR=$ROOT/target/larder-image.tar

readonly KUBE_BIN=$CACHE/kubernetes-$KUBERNETES_VERSION-etcd-$ETCD_VERSION
readonly CONTAINERD_BIN=$CACHE/containerd-$CONTAINERD_VERSION
readonly CRICTL_BIN=$CACHE/crictl-$CRICTL_VERSION
readonly HELM_BIN=$CACHE/helm-$HELM_VERSION
# ip, iptables and dnsmasq are in sbin.
PATH=$CONTAINERD_BIN:$CRICTL_BIN:$HELM_BIN:$KUBE_BIN:$PATH:/usr/sbin:/sbin
export PATH KUBECONFIG=$PKI/admin.conf

# These addresses exist in the network namespaces of the hub and of the nodes only.
readonly HUB=10.77.0.1 POD_NETWORK=10.78.0.0/16 SERVICE_NETWORK=10.96.0.0/16 API_SERVICE=10.96.0.1
readonly NODES=(1 2)
# `.test` does not exist on the Internet, and nodes cannot resolve the name. Only pods can.
readonly PUBLIC=public.test
# The name of the control groups, one for each node.
readonly GROUP=larder-cluster

step() { printf -- '-- %s\n' "$*"; }

fail() {
  printf '%s: FAILED: %s\n' "$SELF" "$*" >&2
  exit 1
}

missing() {
  printf '%s: %s\n' "$SELF" "$*" >&2
  exit 3
}
# shellcheck source=tests/checks.sh
. "$ROOT/tests/checks.sh"

# Writes the names that pods can resolve, with those from standard input ("ADDRESS NAME"). There is no service discovery.
name_hosts() {
  { printf '%s %s\n' "$HUB" "$PUBLIC" "$API_SERVICE" kubernetes.default.svc; cat; } >"$WORK/names"
  [[ ! -s $RUN/dnsmasq.pid ]] || kill -s HUP "$(<"$RUN/dnsmasq.pid")"
}

node_address() { printf '10.77.0.1%s\n' "$1"; } # N

# ---- Commands in the network of the hub, and in the network, mounts and host name of a node --------------------------------

# Waits until a process has its own namespaces of these kinds. Entered before, the namespaces would be those of the machine, and
# a node would change the machine's /etc, mounts and host name. Pid 1 is no reference: it may be inaccessible.
wait_for_namespaces() { # NAME KIND…
  local pid kind
  pid=$(<"$RUN/$1.pid")
  for kind in "${@:2}"; do
    wait_until 10 "the $kind namespace of $1" has_own_namespace "$pid" "$kind"
  done
}
has_own_namespace() { # PID KIND
  local own
  own=$(readlink "/proc/$1/ns/$2") && [[ -n $own && $own != "$(readlink "/proc/self/ns/$2")" ]]
}

# `ip netns exec` would hide /sys/fs/cgroup, which the kubelet needs, so namespaces are entered by the pid of their holder.
hub() { nsenter --target "$(<"$RUN/hub.pid")" --net -- "$@"; }
node() { # N COMMAND…
  local n=$1
  shift
  nsenter --target "$(<"$RUN/node$n.pid")" --net --mount --uts -- "$@"
}
kubectl() { hub "$KUBE_BIN/kubectl" "$@"; }
helm() { hub "$HELM_BIN/helm" "$@"; }
# /etc/crictl.yaml of the node names the socket.
crictl() { # N ARGUMENT…
  node "$1" "$CRICTL_BIN/crictl" "${@:2}"
}
ctr() { # N ARGUMENT…
  node "$1" env CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1 "$CONTAINERD_BIN/ctr" --namespace k8s.io "${@:2}"
}

# ---- Servers ---------------------------------------------------------------------------------------------------------------

# Starts a server, by exec, so that the pid in RUN/NAME.pid is that of the server. In a session of its own it survives the end of
# the case that started it.
start() { # NAME hub|nodeN COMMAND…
  local name=$1 where=$2 namespaces=(--net)
  shift 2
  [[ $where == hub ]] || namespaces+=(--mount --uts)
  (exec setsid nsenter --target "$(<"$RUN/$where.pid")" "${namespaces[@]}" -- "$@") >>"$LOGS/$name.log" 2>&1 </dev/null &
  echo $! >"$RUN/$name.pid"
}

# False for a zombie too.
is_running() { # PID
  local state
  state=$(sed -n 's/^State:\s*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
  [[ -n $state && $state != Z ]]
}

stop() { # NAME [SIGNAL]
  local pid tries
  [[ -s $RUN/$1.pid ]] || return 0
  pid=$(<"$RUN/$1.pid")
  kill -s "${2:-TERM}" "$pid" 2>/dev/null || true
  for ((tries = 0; tries < 150; tries++)); do
    is_running "$pid" || break
    sleep 0.1
  done
  kill -s KILL "$pid" 2>/dev/null || true
  rm -f "$RUN/$1.pid"
}

# Prints the pids of all processes in the network of the hub or of a node, except the one that holds the namespace. They can
# only be the cluster's.
processes_of() { # hub|nodeN
  local holder network pid
  holder=$(<"$RUN/$1.pid")
  network=$(readlink "/proc/$holder/ns/net") || return 0
  for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    [[ $pid == "$holder" || $(readlink "/proc/$pid/ns/net" 2>/dev/null) != "$network" ]] || printf '%s\n' "$pid"
  done
}

# Prints the pids of all processes in the pods of a node, which have networks of their own.
processes_in_pods() { # N
  find "/sys/fs/cgroup/pids/$GROUP-node$1" -name cgroup.procs -exec cat {} + 2>/dev/null || true
}

is_up() { [[ -s $RUN/up ]]; }
