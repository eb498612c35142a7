# Functions for all cases of the end-to-end suite: facts about the samples, servers that are started and stopped by pid, waits
# with a limit, and checks with clear messages. `run` describes the environment of a case. A case sources this file first.
# shellcheck shell=bash
#
# This file does not contain what the cases prove. It starts the clients and servers that several cases use.

set -Eeuo pipefail

# ---- Limits in seconds, unless the name says otherwise -----------------------------------------------------------------

# A server on loopback that has not answered after this time will not.
readonly START_LIMIT=20
# Longer than draining idle connections takes.
readonly STOP_LIMIT=20
# For one client command: a hundred times what it normally takes.
readonly CLIENT_LIMIT=60
# For the error response to a blob whose upstream is down permanently: the shortest progress time-out of containerd is 60 s.
readonly GIVE_UP_LIMIT=60
# Twice the longest build of crane on two busy cores.
readonly BUILD_LIMIT=150
# The next write of index.json waits for a hundred times as long as the last one took.
# shellcheck disable=SC2034  # for the cases
readonly INDEX_LIMIT=60

# ---- Paths --------------------------------------------------------------------------------------------------------------

# A case that is not started by `run` fails here.
: "${E2E_WORK:?is set by tests/e2e/run}" "${E2E_CASE:?is set by tests/e2e/run}" "${E2E_LARDER:?is set by tests/e2e/run}"
: "${E2E_TOOLS:?is set by tests/e2e/run}"

readonly SAMPLES="$E2E_WORK/samples"
readonly CASE_DIR="$E2E_WORK/cases/$E2E_CASE"
readonly LOGS="$CASE_DIR/logs"
mkdir -p "$LOGS" "$CASE_DIR/tmp"
# Keeps the temporary files of clients in the case's directory.
export TMPDIR="$CASE_DIR/tmp"
export HOME="$CASE_DIR"

# The digests and sizes of the sample images, which cases/samples.sh writes.
if [[ -f $SAMPLES/facts ]]; then
  # shellcheck source=/dev/null
  . "$SAMPLES/facts"
fi

# Keeps processes from contacting a real registry if the cache fails: HTTPS requests go to a closed port.
readonly OFFLINE=(env HTTPS_PROXY=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 "NO_PROXY=127.0.0.1,localhost")

# ---- Messages -----------------------------------------------------------------------------------------------------------

# Names the current step of a case. `run` shows the last steps if the case fails.
step() { printf -- '-- %s\n' "$*"; }

# Ends the case. In `$(…)` it ends the substitution, and then `set -e` ends the case.
fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

# Skips a case that this machine cannot run: status 77, with the reason in a file.
skip() {
  printf '%s\n' "$*" >"$CASE_DIR/skipped"
  exit 77
}

# ---- Checks -------------------------------------------------------------------------------------------------------------

CHECK_PAUSE=0.05
# shellcheck source=tests/checks.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../checks.sh"

matches() { # WHAT REGEX ACTUAL
  [[ $3 =~ $2 ]] || fail "$1: expected to match '$2', got '$3'"
}

same_bytes() { # WHAT EXPECTED_FILE ACTUAL_FILE
  cmp -- "$2" "$3" || fail "$1: the bytes differ"
}

same_tree() { # WHAT EXPECTED_DIR ACTUAL_DIR
  diff -rq -- "$2" "$3" || fail "$1: the directories differ"
}

absent() { # WHAT PATH
  [[ ! -e $2 ]] || fail "$1: $2 exists"
}

# Runs a command that must fail.
must_fail() { # WHAT COMMAND…
  local what=$1
  shift
  if "$@"; then fail "$what: succeeded"; fi
}

# Runs a client command with CLIENT_LIMIT and without access to the Internet.
client() { "${OFFLINE[@]}" timeout --kill-after=5 "$CLIENT_LIMIT" "$@"; }

# ---- Waits --------------------------------------------------------------------------------------------------------------

at_least_bytes() { # FILE BYTES
  [[ -f $1 ]] && (($(stat -c %s -- "$1") >= $2))
}

# Looks for a file by size, because clients choose the names of their partial files.
holds_a_file_of() { # DIR BYTES
  [[ -n $(find "$1" -type f -size "+$2c" -print -quit) ]]
}

# False for a zombie too.
is_running() { # PID
  local state
  state=$(sed -n 's/^State:\s*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
  [[ -n $state && $state != Z ]]
}

# ---- Servers ------------------------------------------------------------------------------------------------------------

declare -A SERVER_PID=()
SERVER_ORDER=()
# The exit status of the last server that stop_server stopped.
STOPPED_WITH=

# Prints a free port that no other call has returned, below the range for outgoing connections.
free_port() {
  local port
  for _ in {1..200}; do
    port=$((20000 + RANDOM % 12000))
    if ! grep -qx "$port" "$E2E_WORK/ports" 2>/dev/null && [[ -z $(ss -Hltn "sport = :$port") ]]; then
      printf '%s\n' "$port" | tee -a "$E2E_WORK/ports"
      return
    fi
  done
  fail "no free port found between 20000 and 31999"
}

# Starts COMMAND without a shell, so that the pid is that of the server. Appends its output to NAME.log.
start_server() { # NAME COMMAND…
  local name=$1
  shift
  printf '== %s\n' "$*" >>"$LOGS/$name.log"
  "$@" >>"$LOGS/$name.log" 2>&1 </dev/null &
  SERVER_PID[$name]=$!
  SERVER_ORDER+=("$name")
}

# Waits until COMMAND succeeds. Fails immediately if the server exits.
wait_for_server() { # NAME COMMAND…
  local name=$1 deadline=$((SECONDS + START_LIMIT))
  shift
  until "$@" >/dev/null 2>&1; do
    is_running "${SERVER_PID[$name]}" || fail "$name exited during startup: $(tail -n 3 "$LOGS/$name.log")"
    ((SECONDS <= deadline)) || fail "$name does not answer after $START_LIMIT s: $*"
    sleep 0.05
  done
}

# Stops a server by its pid and sets STOPPED_WITH to its exit status. If the server does not exit, kills it and fails.
stop_server() { # NAME [SIGNAL]
  local name=$1 signal=${2:-TERM} pid=${SERVER_PID[$1]:-}
  STOPPED_WITH=
  [[ -n $pid ]] || return 0
  unset "SERVER_PID[$name]"
  kill -s "$signal" "$pid" 2>/dev/null || true
  local deadline=$((SECONDS + STOP_LIMIT)) late=
  while is_running "$pid"; do
    if ((SECONDS > deadline)); then
      kill -s KILL "$pid" 2>/dev/null || true
      late=yes
      break
    fi
    sleep 0.05
  done
  STOPPED_WITH=0
  wait "$pid" 2>/dev/null || STOPPED_WITH=$?
  [[ -z $late ]] || fail "$name did not exit within $STOP_LIMIT s after SIG$signal and was killed"
}

# Runs at the end of every case, even a failed one. Stops the servers in reverse order.
stop_servers() {
  local status=$? index
  trap - ERR
  set +e
  for ((index = ${#SERVER_ORDER[@]} - 1; index >= 0; index--)); do
    (stop_server "${SERVER_ORDER[$index]}")
  done
  exit "$status"
}
trap stop_servers EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
# Reports an unexpected failure with its call stack, innermost first.
trap 'on_error "$?" "$BASH_COMMAND"' ERR

# ---- The upstream: docker-registry --------------------------------------------------------------------------------------

REGISTRY_PORT=
REGISTRY_STORAGE=

# Starts docker-registry with the samples, or with DIR. A case that changes the storage uses a copy (own_storage).
registry_start() { # [DIR]
  REGISTRY_STORAGE=${1:-${REGISTRY_STORAGE:-$SAMPLES/registry}}
  REGISTRY_PORT=${REGISTRY_PORT:-$(free_port)}
  cat >"$CASE_DIR/registry.yml" <<YAML
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $REGISTRY_STORAGE}
  delete: {enabled: true}
http: {addr: "127.0.0.1:$REGISTRY_PORT", secret: e2e}
YAML
  start_server registry env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/registry.yml"
  wait_for_server registry curl -fsS --max-time 2 "http://127.0.0.1:$REGISTRY_PORT/v2/"
}

registry_stop() { stop_server registry; }

# Copies the storage of the samples, for a case that writes to it or damages it.
own_storage() {
  cp -a --reflink=auto "$SAMPLES/registry" "$CASE_DIR/storage"
  printf '%s\n' "$CASE_DIR/storage"
}

# Prints the file of a blob in the storage of docker-registry, which serves it without verification.
registry_blob_file() { # DIGEST [STORAGE]
  local hex=${1#sha256:}
  printf '%s\n' "${2:-$REGISTRY_STORAGE}/docker/registry/v2/blobs/sha256/${hex:0:2}/$hex/data"
}

# Counts the requests to the registry that match REGEX ("GET /v2/…").
registry_requests() { # REGEX
  grep -cE "\"$1" "$LOGS/registry.log" || true
}

# ---- nginx, in front of the registry or instead of it --------------------------------------------------------------------

# Starts nginx in one process, so that stopping its pid stops it completely. HTTP is added to the http block of its
# configuration. READY… is a command that succeeds once nginx serves.
nginx_start() { # NAME HTTP READY…
  local name=$1 directives=$2 dir="$CASE_DIR/nginx-$1"
  shift 2
  mkdir -p "$dir"
  cat >"$dir/nginx.conf" <<NGINX
daemon off;
master_process off;
pid $dir/pid;
error_log stderr warn;
events { worker_connections 256; }
http {
  access_log $LOGS/$name-access.log;
  client_body_temp_path $dir/body;
  proxy_temp_path $dir/proxy;
  fastcgi_temp_path $dir/fastcgi;
  uwsgi_temp_path $dir/uwsgi;
  scgi_temp_path $dir/scgi;
  $directives
}
NGINX
  start_server "$name" nginx -e stderr -c "$dir/nginx.conf"
  wait_for_server "$name" "$@"
}

# ---- nginx as a slow link to the upstream that can be cut ---------------------------------------------------------------

LINK_PORT=

# RATE is a `limit_rate` per connection: 4m is 4 MiB/s.
link_start() { # RATE
  LINK_PORT=${LINK_PORT:-$(free_port)}
  nginx_start link "server {
    listen 127.0.0.1:$LINK_PORT;
    location / {
      proxy_pass http://127.0.0.1:$REGISTRY_PORT;
      proxy_http_version 1.1;
      proxy_max_temp_file_size 0;
      limit_rate $1;
    }
  }" curl -fsS --max-time 2 "http://127.0.0.1:$LINK_PORT/v2/"
}

# Prints how many bytes of a path went over the link in finished requests.
link_bytes() { # PATH
  awk -v path="$1" '$7 == path { bytes += $10 } END { print bytes + 0 }' "$LOGS/link-access.log"
}

# Cuts all connections, also in the middle of a response.
link_cut() { stop_server link KILL; }

# ---- Larder -------------------------------------------------------------------------------------------------------------

LARDER_PORT=$(free_port)
readonly LARDER_PORT
readonly LARDER_URL="http://127.0.0.1:$LARDER_PORT"
readonly LARDER_CACHE="$CASE_DIR/cache"
readonly LARDER_LOG="$LOGS/larder.log"
# An alias for the upstream in paths, because the name of an image cannot contain `:`.
readonly ALIAS=up.test
# Seconds, or a duration such as 5m. With '0', every pull of a tag checks the upstream.
TAG_TTL=5m
LOG_LEVEL=info

# Succeeds once larder serves. Cases with TLS or passwords for clients override it.
LARDER_READY=(curl -fsS --max-time 2 "$LARDER_URL/v2/")

# Configures the upstream under three names: its address, the alias, and docker.io. ADDRESS may be that of the slow link.
larder_config() { # ADDRESS
  local address=$1
  cat >"$CASE_DIR/larder.yaml" <<YAML
registries:
  - name: "$address"
    scheme: http
    aliases: [$ALIAS]
  - name: docker.io
    endpoints: ["http://$address"]
tagTtl: '$TAG_TTL'
revalidateTimeout: 2s
YAML
}

larder_start() { # [FLAG OF serve…]
  [[ -f $CASE_DIR/larder.yaml ]] || larder_config "127.0.0.1:$REGISTRY_PORT"
  start_server larder "${OFFLINE[@]}" RUST_BACKTRACE=1 "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" \
    --image-path "$LARDER_CACHE" --log-level "$LOG_LEVEL" serve --host 127.0.0.1 --port "$LARDER_PORT" "$@"
  wait_for_server larder "${LARDER_READY[@]}"
}

# Stops larder with SIGTERM, and expects exit status 0.
larder_stop() {
  stop_server larder
  equal "larder's exit status after SIGTERM" 0 "$STOPPED_WITH"
}

# Counts the lines of larder's log that match REGEX.
larder_lines() { # REGEX
  grep -cE -- "$1" "$LARDER_LOG" || true
}

# Waits for the line, because larder writes its access log after the response.
larder_logged() { # WHAT REGEX
  wait_until 5 "$1 in larder's log" grep -qE -- "$2" "$LARDER_LOG"
}

# Prints the file of a complete and verified blob in the cache.
cached_blob() { # DIGEST
  printf '%s\n' "$LARDER_CACHE/blobs/${1%%:*}/${1#*:}"
}

# Checks that all blobs in the cache match their digests.
cache_is_sound() {
  local file
  while IFS= read -r file; do
    equal "the content of $file" "${file##*/}" "$(sha256sum -- "$file" | cut -d ' ' -f 1)"
  done < <(find "$LARDER_CACHE/blobs/sha256" -type f 2>/dev/null)
}

# ---- Certificates -------------------------------------------------------------------------------------------------------

readonly PKI="$CASE_DIR/pki"

authority() { # NAME
  mkdir -p "$PKI"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 -days 2 -subj "/CN=$1" \
    -keyout "$PKI/$1.key" -out "$PKI/$1.pem" 2>/dev/null
}
# Creates a key and a certificate for it from AUTHORITY.
certificate() { # NAME AUTHORITY EXTENSIONS
  printf '%s\n' "$3" >"$PKI/extensions"
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$PKI/$1.key"
  openssl req -new -key "$PKI/$1.key" -subj "/CN=$1" -out "$PKI/request"
  openssl x509 -req -sha256 -days 2 -in "$PKI/request" -CA "$PKI/$2.pem" -CAkey "$PKI/$2.key" -CAcreateserial \
    -extfile "$PKI/extensions" -out "$PKI/$1.pem" 2>/dev/null
}

# ---- Larder for clients that `larder hosts-toml` configures ---------------------------------------------------------------

# Configures quay.io too, but not in clients.yaml, the file for hosts-toml: clients get an entry for it without being told.
mirror_config() { # [MORE]
  larder_config "127.0.0.1:$REGISTRY_PORT"
  cp "$CASE_DIR/larder.yaml" "$CASE_DIR/clients.yaml"
  sed -i "s#^registries:#&\n  - name: quay.io\n    endpoints: [\"http://127.0.0.1:$REGISTRY_PORT\"]#" "$CASE_DIR/larder.yaml"
  printf '%s\n' "${1:-}" >>"$CASE_DIR/larder.yaml"
}
# Starts larder with TLS, empty log and required client certificates: node.pem is one, ca.pem its CA and that of larder.
# shellcheck disable=SC2034  # for the cases
readonly MIRROR_TLS_URL="https://127.0.0.1:$LARDER_PORT"
tls_mirror_start() {
  authority ca
  certificate server ca $'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth'
  certificate node ca 'extendedKeyUsage=clientAuth'
  mirror_config "serverTlsConfig: {cert: $PKI/server.pem, key: $PKI/server.key, ca: $PKI/ca.pem, clientAuth: verify}"
  LARDER_READY=(curl -fsS --max-time 2 --cacert "$PKI/ca.pem" --cert "$PKI/node.pem" --key "$PKI/node.key" "$MIRROR_TLS_URL/v2/")
  : >"$LARDER_LOG"
  larder_start
}

# ---- containerd -----------------------------------------------------------------------------------------------------------

# Puts the containerd of tests/cluster/versions.sh first in PATH once `run` has built it. A case that `run` calls NAME-debian
# keeps that of Debian.
need_containerd() {
  [[ $E2E_CASE != *-debian ]] || return 0
  if [[ -n ${E2E_TOOLS_PID:-} && ! -d $E2E_CONTAINERD ]]; then
    step "waiting for the build of containerd"
    (wait_until "$BUILD_LIMIT" "the build of containerd" containerd_build_has_ended) ||
      skip "containerd was not built within $BUILD_LIMIT s"
  fi
  [[ -d $E2E_CONTAINERD ]] || skip "$(basename -- "$E2E_CONTAINERD") was not built"
  PATH=$E2E_CONTAINERD:$PATH
}
containerd_build_has_ended() { [[ -d $E2E_CONTAINERD ]] || ! is_running "$E2E_TOOLS_PID"; }
# Prints those options of `ctr images COMMAND` that this version has. From version 2 on:
#   --local: the client pulls and imports. The server would unpack only for the snapshotters in its configuration.
#   --skip-metadata: without it, ctr pulls the manifests and configs of all platforms, which a mirror of one platform lacks.
ctr_options() { # COMMAND OPTION…
  local option help
  help=$(ctr images "$1" --help)
  for option in "${@:2}"; do
    [[ $help != *"$option "* ]] || printf '%s\n' "$option"
  done
}

# ---- containerd with a mirror for all registries ------------------------------------------------------------------------

# Short, because the path of a socket has at most 107 bytes.
readonly CONTAINERD_DIR="$CASE_DIR/c"

# Starts containerd with the configuration that `larder hosts-toml` writes: SERVER for all registries.
containerd_start() { # SERVER [OPTION OF hosts-toml…]
  mkdir -p "$CONTAINERD_DIR"
  # Without fallback, because a failed pull would go to registry-1.docker.io.
  "$E2E_LARDER" hosts-toml "$1" --no-fallback --write "$CONTAINERD_DIR/certs.d" "${@:2}"
  cat >"$CONTAINERD_DIR/config.toml" <<TOML
version = 2
root = "$CONTAINERD_DIR/root"
state = "$CONTAINERD_DIR/state"
# ctr needs no CRI plugin, and without it containerd listens on its socket only.
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$CONTAINERD_DIR/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$CONTAINERD_DIR/opt"
TOML
  start_server containerd "${OFFLINE[@]}" containerd --config "$CONTAINERD_DIR/config.toml"
  wait_for_server containerd ctr_ version
}
ctr_() { client ctr --address "$CONTAINERD_DIR/c.sock" "$@"; }
# Pulls through the mirror.
ctr_pull() { # [OPTION…] IMAGE
  local how
  mapfile -t how < <(ctr_options pull --local)
  # Version 2 pulls all platforms of an index by default.
  if [[ " $* " != *" --all-platforms "* ]]; then
    mapfile -t -O "${#how[@]}" how < <(ctr_options pull --skip-metadata)
    how+=(--platform linux/amd64)
  fi
  ctr_ images pull "${how[@]}" --snapshotter native --hosts-dir "$CONTAINERD_DIR/certs.d" "$@"
}
ctr_import() { # [OPTION…] FILE
  local how
  mapfile -t how < <(ctr_options import --local)
  ctr_ images import "${how[@]}" --snapshotter native "$@"
}
digest_in_ctr() { ctr_ images ls "name==$1" | awk 'NR == 2 { print $3 }'; }

# ---- Nodes: containerd with the CRI plugin, and crictl instead of a kubelet -----------------------------------------------

NODES=()

# Starts a node that pulls all images through larder, including SANDBOX, the image of pod sandboxes. `larder hosts-toml` writes
# its configuration. If larder does not have an image, containerd contacts the registry by HTTPS, which fails here (OFFLINE).
# TOOL must be crictl (need_tool).
node_start() { # NAME SANDBOX
  local dir="$CASE_DIR/$1"
  mkdir -p "$dir/cni"
  "$E2E_LARDER" hosts-toml "$LARDER_URL" --write "$dir/certs.d"
  # Pods use the network of the node, so there is no CNI. `disable_cgroup` and `restrict_oom_score_adj` are for machines with a
  # restricted root.
  cat >"$dir/config.toml" <<TOML
version = 2
root = "$dir/root"
state = "$dir/state"
[grpc]
  address = "$dir/c.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$dir/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$2"
  disable_cgroup = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "$dir/cni"
  conf_dir = "$dir/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "$dir/certs.d"
TOML
  : >"$CASE_DIR/crictl.yaml"
  start_server "$1" "${OFFLINE[@]}" containerd --config "$dir/config.toml"
  wait_for_server "$1" crictl_ "$1" version
  [[ " ${NODES[*]} " == *" $1 "* ]] || NODES+=("$1")
}

crictl_() { # NODE ARGUMENT…
  local socket="unix://$CASE_DIR/$1/c.sock"
  client "$TOOL" --config "$CASE_DIR/crictl.yaml" --runtime-endpoint "$socket" --image-endpoint "$socket" \
    --timeout "${CLIENT_LIMIT}s" "${@:2}"
}

# Prints the digest of IMAGE, named by tag, on NODE. The CRI treats images with the same config as one image.
digest_on() { # NODE IMAGE
  crictl_ "$1" images --output json | jq -r --arg image "$2" --arg repository "${2%:*}@" '.images[] |
    select(any(.repoTags[]?; . == $image)) | .repoDigests[] | select(startswith($repository)) | split("@")[1]'
}

# Starts a pod on the node's network with one container of IMAGE, in the order of a kubelet. Sets CONTAINER to the id of the
# container.
CONTAINER=
pod_start() { # NODE POD IMAGE
  local pod
  jq -n --arg name "$2" --arg logs "$CASE_DIR/$1/logs" '{metadata: {name: $name, namespace: "e2e", uid: $name},
    log_directory: $logs, linux: {security_context: {namespace_options: {network: 2}}}}' >"$CASE_DIR/tmp/pod.json"
  jq -n --arg name "$2" --arg image "$3" '{metadata: {name: $name}, image: {image: $image}, log_path: ($name + ".log"),
    linux: {security_context: {namespace_options: {network: 2}}}}' >"$CASE_DIR/tmp/container.json"
  pod=$(crictl_ "$1" runp "$CASE_DIR/tmp/pod.json")
  crictl_ "$1" pull "$3"
  CONTAINER=$(crictl_ "$1" create --no-pull "$pod" "$CASE_DIR/tmp/container.json" "$CASE_DIR/tmp/pod.json")
  crictl_ "$1" start "$CONTAINER"
}

container_logged() { # NODE CONTAINER TEXT
  [[ $(crictl_ "$1" logs "$2") == "$3" ]]
}

pods_remove() { # NODE
  crictl_ "$1" rmp --all --force
}

# Kills the shims and containers that remain if containerd exited before its pods.
pods_kill() { # NODE
  local process bundle id
  for process in /proc/[0-9]*; do
    [[ $(tr '\0' ' ' <"$process/cmdline") != *" $CASE_DIR/$1/"* ]] || kill -s KILL "${process#/proc/}"
  done
  for bundle in "$CASE_DIR/$1/state/io.containerd.runtime.v2.task/k8s.io"/*/; do
    [[ -d $bundle ]] || continue
    id=$(basename "$bundle")
    runc --root /run/containerd/runc/k8s.io delete --force "$id"
    # Remove the files of an interrupted `runc create` and of a killed shim.
    rm -rf -- "/run/containerd/runc/k8s.io/$id" "$(sed 's#^unix://##' "$bundle/address")"
    rmdir /sys/fs/cgroup/*/"$id" /sys/fs/cgroup/"$id"
  done
}

# Runs at the end of a case with nodes, instead of stop_servers. If `run` is interrupted, so are the containerds.
stop_nodes() {
  local status=$? node
  trap - ERR
  set +e
  for node in "${NODES[@]}"; do
    ! is_running "${SERVER_PID[$node]:-}" || pods_remove "$node"
    (stop_server "$node")
    pods_kill "$node" 2>/dev/null
  done
  (exit "$status")
  stop_servers
}

# ---- podman and Docker, with separate stores for each case ----------------------------------------------------------------

# Accepts unsigned images. Pass it to pulls and loads as `--signature-policy "$PODMAN_POLICY"`.
readonly PODMAN_POLICY="$CASE_DIR/policy.json"
printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' >"$PODMAN_POLICY"
podman_() {
  client podman --storage-driver vfs --root "$CASE_DIR/root" --runroot "$CASE_DIR/run" --tmpdir "$CASE_DIR/tmp/podman" \
    --cgroup-manager cgroupfs --events-backend none "$@"
}

# Short, like CONTAINERD_DIR.
readonly DOCKER_DIR="$CASE_DIR/d"
# Starts dockerd with the daemon.json in DOCKER_DIR, if any. Without iptables, because it only pulls, and must not change the
# network of the machine.
docker_start() { # [OPTION…]
  mkdir -p "$DOCKER_DIR"
  [[ -f $DOCKER_DIR/daemon.json ]] || printf '{}\n' >"$DOCKER_DIR/daemon.json"
  start_server dockerd "${OFFLINE[@]}" dockerd --config-file "$DOCKER_DIR/daemon.json" --data-root "$DOCKER_DIR/data" \
    --exec-root "$DOCKER_DIR/exec" --pidfile "$DOCKER_DIR/pid" --host "unix://$DOCKER_DIR/d.sock" --storage-driver vfs \
    --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false "$@"
  wait_for_server dockerd docker_ version
}
docker_() { client docker --config "$DOCKER_DIR" --host "unix://$DOCKER_DIR/d.sock" "$@"; }

# ---- skopeo -----------------------------------------------------------------------------------------------------------

skopeo_() { client skopeo --insecure-policy --tmpdir "$TMPDIR" "$@"; }

# Copies an image into a directory of the case.
copy() { # FROM TO [OPTION…]
  local from=$1 to=$2
  shift 2
  skopeo_ copy --quiet --src-tls-verify=false "$@" "docker://$from" "dir:$CASE_DIR/$to"
}

# Adds standard input to an image layout as a blob, and prints its descriptor.
blob_of() { # LAYOUT MEDIA_TYPE
  cat >"$CASE_DIR/tmp/blob"
  local hex
  hex=$(sha256sum <"$CASE_DIR/tmp/blob" | cut -d ' ' -f 1)
  cp -- "$CASE_DIR/tmp/blob" "$1/blobs/sha256/$hex"
  jq -nc --arg type "$2" --arg digest "sha256:$hex" --argjson size "$(stat -c %s "$CASE_DIR/tmp/blob")" \
    '{mediaType: $type, digest: $digest, size: $size}'
}

# ---- curl ---------------------------------------------------------------------------------------------------------------

# Results of `get`: the HTTP status, the exit status of curl, and the files with head and body.
STATUS=
CURL_EXIT=
readonly HEAD_FILE="$CASE_DIR/tmp/head"
readonly BODY_FILE="$CASE_DIR/tmp/body"

# Sends a request. The caller checks the status.
get() { # URL [CURL OPTION…]
  local url=$1
  shift
  rm -f "$HEAD_FILE" "$BODY_FILE"
  : >"$BODY_FILE"
  CURL_EXIT=0
  STATUS=$(curl -sS --path-as-is --max-time "$GIVE_UP_LIMIT" -D "$HEAD_FILE" -o "$BODY_FILE" -w '%{http_code}' "$@" "$url") ||
    CURL_EXIT=$?
}

# Prints a header of the last response, empty if absent. Ignores the case of the name.
header() { # NAME
  tr -d '\r' <"$HEAD_FILE" | sed -n "s/^$1:[[:space:]]*//Ip" | head -n 1
}

# Prints the OCI error code of the last response.
error_code() { jq -r '.errors[0].code' "$BODY_FILE"; }

expect_status() { # WHAT STATUS
  [[ $STATUS == "$2" && $CURL_EXIT == 0 ]] ||
    fail "$1: expected $2, got $STATUS (curl $CURL_EXIT): $(head -c 300 "$BODY_FILE" | tr -d '\0')"
}

# ---- Tools that Debian does not package ---------------------------------------------------------------------------------

# Sets TOOL to the path of a tool in PATH, or waits until `run` has built it in the background. Skips the case if there is
# no such tool.
TOOL=
need_tool() { # NAME [HINT [SECONDS]]
  if TOOL=$(type -P "$1"); then return; fi
  TOOL="$E2E_TOOLS/$1"
  await_build "$1" "${3:-$BUILD_LIMIT}"
  [[ -x $TOOL ]] || skip "$1 is not in PATH and was not built${2:+: $2}"
}
# The same for a program in pullers/.
need_puller() { # NAME
  TOOL="$E2E_WORK/pullers/$1"
  await_build "pullers/$1"
  [[ -x $TOOL ]] || skip "pullers/$1 was not built: it needs Go, and its modules"
}
build_has_ended() { [[ -x $TOOL ]] || ! is_running "$E2E_TOOLS_PID"; }
await_build() { # WHAT [SECONDS]
  local limit=${2:-$BUILD_LIMIT}
  [[ -n ${E2E_TOOLS_PID:-} ]] || return 0
  step "waiting for the build of $1"
  (wait_until "$limit" "the build of $1" build_has_ended) || skip "$1 was not built within $limit s"
}
