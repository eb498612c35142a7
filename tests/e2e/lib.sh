# What every case of the end-to-end suite shares: the sample facts, servers that are started and stopped by pid, bounded
# waits, checks with clear texts. `run` says what a case may rely on; a case sources this file first.
# shellcheck shell=bash
#
# Must not know: what a client is to prove; one file per client stands in cases/. Here is how those are started that several
# cases use.

set -Eeuo pipefail

# ---- Limits, in seconds unless the name says otherwise -----------------------------------------------------------------

# A loopback server that has not answered by then will not.
readonly START_LIMIT=20
# Longer than a drain of idle connections needs, shorter than a reader's patience.
readonly STOP_LIMIT=20
# One client command: two orders of magnitude above what it needs when all is well.
readonly CLIENT_LIMIT=60
# How long a client of a blob whose upstream is gone for good may wait to be told: containerd's progress time-out is
# 60 s at its shortest.
readonly GIVE_UP_LIMIT=60
# What crane took at most on two busy cores, times two.
readonly BUILD_LIMIT=150
# index.json is written at most every 2 s.
# shellcheck disable=SC2034  # for the cases
readonly INDEX_LIMIT=10

# ---- Where things are ---------------------------------------------------------------------------------------------------

# `run` sets these; a case that is started by hand stops here with bash's own message.
: "${E2E_WORK:?is set by tests/e2e/run}" "${E2E_CASE:?is set by tests/e2e/run}" "${E2E_LARDER:?is set by tests/e2e/run}"
: "${E2E_TOOLS:?is set by tests/e2e/run}"

readonly SAMPLES="$E2E_WORK/samples"
readonly CASE_DIR="$E2E_WORK/cases/$E2E_CASE"
readonly LOGS="$CASE_DIR/logs"
mkdir -p "$LOGS" "$CASE_DIR/tmp"
# Clients unpack into it; nothing of theirs is to lie elsewhere.
export TMPDIR="$CASE_DIR/tmp"
export HOME="$CASE_DIR"

# The sample images' digests and sizes, once cases/samples.sh has written them.
if [[ -f $SAMPLES/facts ]]; then
  # shellcheck source=/dev/null
  . "$SAMPLES/facts"
fi

# For every process that might ask a real registry when the cache fails it: HTTPS goes to a port where nobody listens.
readonly OFFLINE=(env HTTPS_PROXY=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 "NO_PROXY=127.0.0.1,localhost")

# ---- Saying -------------------------------------------------------------------------------------------------------------

# The current step of a case; `run` shows the last ones when the case fails.
step() { printf -- '-- %s\n' "$*"; }

# A case ends here. In `$(…)` it ends the substitution, and `set -e` the case.
fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

# A case that this machine cannot run: status 77, the reason in a file.
skip() {
  printf '%s\n' "$*" >"$CASE_DIR/skipped"
  exit 77
}

# ---- Checks -------------------------------------------------------------------------------------------------------------

equal() { # WHAT EXPECTED ACTUAL
  [[ $2 == "$3" ]] || fail "$1: expected '$2', got '$3'"
}

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

# A command that is expected to fail.
refused() { # WHAT COMMAND…
  local what=$1
  shift
  if "$@"; then fail "$what: succeeded"; fi
}

# Runs a client command with CLIENT_LIMIT, without a way out to the Internet.
client() { "${OFFLINE[@]}" timeout --kill-after=5 "$CLIENT_LIMIT" "$@"; }

# ---- Waits --------------------------------------------------------------------------------------------------------------

# The one place that sleeps: a bounded wait for COMMAND to succeed.
wait_until() { # SECONDS WHAT COMMAND…
  local limit=$1 what=$2 deadline=$((SECONDS + $1))
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS <= deadline)) || fail "not within $limit s: $what"
    sleep 0.05
  done
}

at_least_bytes() { # FILE BYTES
  [[ -f $1 ]] && (($(stat -c %s -- "$1") >= $2))
}

# What a client keeps unfinished has names of its own.
holds_a_file_of() { # DIR BYTES
  [[ -n $(find "$1" -type f -size "+$2c" -print -quit) ]]
}

# False for a zombie too: what has ended but is not yet waited for.
is_running() { # PID
  local state
  state=$(sed -n 's/^State:\s*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
  [[ -n $state && $state != Z ]]
}

# ---- Servers ------------------------------------------------------------------------------------------------------------

declare -A SERVER_PID=()
SERVER_ORDER=()
# The exit status of the server that stop_server stopped last.
STOPPED_WITH=

# A port on which nobody listens and that no other call has got. Below the range of outgoing connections.
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

# Starts COMMAND (no shell around it, so that the pid is the server's own). Its output is appended to NAME.log.
start_server() { # NAME COMMAND…
  local name=$1
  shift
  printf '== %s\n' "$*" >>"$LOGS/$name.log"
  "$@" >>"$LOGS/$name.log" 2>&1 </dev/null &
  SERVER_PID[$name]=$!
  SERVER_ORDER+=("$name")
}

# Waits until COMMAND succeeds, and says so at once if the server ends instead.
wait_for_server() { # NAME COMMAND…
  local name=$1 deadline=$((SECONDS + START_LIMIT))
  shift
  until "$@" >/dev/null 2>&1; do
    is_running "${SERVER_PID[$name]}" || fail "$name ended while it started: $(tail -n 3 "$LOGS/$name.log")"
    ((SECONDS <= deadline)) || fail "$name does not answer after $START_LIMIT s: $*"
    sleep 0.05
  done
}

# Stops a server by its pid and leaves its exit status in STOPPED_WITH. One that does not end is killed, and the case fails.
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
  [[ -z $late ]] || fail "$name did not end within $STOP_LIMIT s of SIG$signal and was killed"
}

# Runs at the end of every case, however it ends: the last server started is the first to be stopped.
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
# An unexpected failure, with the lines that led to it, the innermost first.
on_error() { # STATUS COMMAND
  local frame
  printf 'FAILED: status %s of: %s\n' "$1" "$2" >&2
  for ((frame = 0; frame < ${#BASH_LINENO[@]} - 1; frame++)); do
    printf '   at %s:%s\n' "${BASH_SOURCE[frame + 1]##*/}" "${BASH_LINENO[frame]}" >&2
  done
}
trap 'on_error "$?" "$BASH_COMMAND"' ERR

# ---- The upstream: docker-registry --------------------------------------------------------------------------------------

REGISTRY_PORT=
REGISTRY_STORAGE=

# Starts docker-registry over the samples, or over DIR: a case that changes something changes a copy (own_storage).
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

# A copy of the samples' storage, for a case that writes to it or damages it.
own_storage() {
  cp -a --reflink=auto "$SAMPLES/registry" "$CASE_DIR/storage"
  printf '%s\n' "$CASE_DIR/storage"
}

# The file in which docker-registry keeps a blob; it serves its bytes without checking them.
registry_blob_file() { # DIGEST [STORAGE]
  local hex=${1#sha256:}
  printf '%s\n' "${2:-$REGISTRY_STORAGE}/docker/registry/v2/blobs/sha256/${hex:0:2}/$hex/data"
}

# How many requests that match REGEX ("GET /v2/…") have reached the registry.
registry_requests() { # REGEX
  grep -cE "\"$1" "$LOGS/registry.log" || true
}

# ---- nginx, in front of it or instead of it ------------------------------------------------------------------------------

# nginx in one process, so that its pid is the whole of it. HTTP is what stands in its http block beside the paths that it
# wants to know; READY… is a command that succeeds once it serves.
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

# ---- The upstream behind a slow link that can be cut: nginx -------------------------------------------------------------

LINK_PORT=

# RATE as in `limit_rate`, per connection: 4m is 4 MiB/s.
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

# How many bytes of a path went over the link, in all requests that have ended.
link_bytes() { # PATH
  awk -v path="$1" '$7 == path { bytes += $10 } END { print bytes + 0 }' "$LOGS/link-access.log"
}

# Cuts every connection in the middle of whatever it carries.
link_cut() { stop_server link KILL; }

# ---- Larder -------------------------------------------------------------------------------------------------------------

LARDER_PORT=$(free_port)
readonly LARDER_PORT
readonly LARDER_URL="http://127.0.0.1:$LARDER_PORT"
readonly LARDER_CACHE="$CASE_DIR/cache"
readonly LARDER_LOG="$LOGS/larder.log"
# The alias under which the upstream can be named in a path: `:` is not allowed in the name of an image.
readonly ALIAS=up.test
# Seconds, or a text such as 5m; '0' asks the upstream for every pull of a tag.
TAG_TTL=5m
LOG_LEVEL=info

# Succeeds once larder serves; a case whose larder wants TLS or a password says more.
LARDER_READY=(curl -fsS --max-time 2 "$LARDER_URL/v2/")

# Names the upstream three ways: by its own address, by the alias, and as docker.io. ADDRESS may be the slow link's.
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

# An orderly end: SIGTERM, drained, status 0.
larder_stop() {
  stop_server larder
  equal "larder's exit status after SIGTERM" 0 "$STOPPED_WITH"
}

# How many lines of larder's log match REGEX.
larder_lines() { # REGEX
  grep -cE -- "$1" "$LARDER_LOG" || true
}

# The access line follows the answer, so it is waited for.
larder_logged() { # WHAT REGEX
  wait_until 5 "$1 in larder's log" grep -qE -- "$2" "$LARDER_LOG"
}

# Where the cache keeps a blob once it is complete and verified.
cached_blob() { # DIGEST
  printf '%s\n' "$LARDER_CACHE/blobs/${1%%:*}/${1#*:}"
}

# No blob under a name that its bytes do not have.
cache_is_sound() {
  local file
  while IFS= read -r file; do
    equal "the content of $file" "${file##*/}" "$(sha256sum -- "$file" | cut -d ' ' -f 1)"
  done < <(find "$LARDER_CACHE/blobs/sha256" -type f 2>/dev/null)
}

# ---- containerd, which mirrors every registry ---------------------------------------------------------------------------

# Short: a socket's path has at most 107 bytes.
readonly CONTAINERD_DIR="$CASE_DIR/c"

# Starts containerd with the mirrors that `larder hosts-toml` writes: SERVER for all registries.
containerd_start() { # SERVER [OPTION OF hosts-toml…]
  mkdir -p "$CONTAINERD_DIR"
  # Without a fallback: a failed pull would go to registry-1.docker.io.
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
# By way of the mirror.
ctr_pull() { # [OPTION…] IMAGE
  local how=()
  # Since version 2 the server pulls unless it is told otherwise, and unpacks for snapshotters of its configuration only.
  [[ $(ctr images pull --help) != *--local* ]] || how=(--local)
  # Version 2 takes all of an index if nothing is said.
  [[ " $* " == *" --all-platforms "* ]] || how+=(--platform linux/amd64)
  ctr_ images pull "${how[@]}" --snapshotter native --hosts-dir "$CONTAINERD_DIR/certs.d" "$@"
}
digest_in_ctr() { ctr_ images ls "name==$1" | awk 'NR == 2 { print $3 }'; }

# ---- Nodes: containerd with the CRI plugin, driven by crictl as a kubelet would -------------------------------------------

NODES=()

# Starts a node whose images all come by way of larder, as `larder hosts-toml` tells it: that of its pods' sandboxes, SANDBOX,
# included. What larder does not have is asked of a registry by HTTPS, and that leads nowhere here (OFFLINE). A case has crictl in
# TOOL before (need_tool).
node_start() { # NAME SANDBOX
  local dir="$CASE_DIR/$1"
  mkdir -p "$dir/cni"
  "$E2E_LARDER" hosts-toml "$LARDER_URL" --write "$dir/certs.d"
  # Pods have the node's network, so there is no CNI. The last two lines of `cri` are for machines whose root may less than
  # root: neither is what is shown here.
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

# The digest under which NODE has IMAGE, named by tag. Images with the same configuration are one to the CRI.
digest_on() { # NODE IMAGE
  crictl_ "$1" images --output json | jq -r --arg image "$2" --arg repository "${2%:*}@" '.images[] |
    select(any(.repoTags[]?; . == $image)) | .repoDigests[] | select(startswith($repository)) | split("@")[1]'
}

# A pod on the node's own network with one container of IMAGE, in the order in which a kubelet goes about it. Leaves the
# container's id in CONTAINER.
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

container_says() { # NODE CONTAINER TEXT
  [[ $(crictl_ "$1" logs "$2") == "$3" ]]
}

pods_remove() { # NODE
  crictl_ "$1" rmp --all --force
}

# Ends what outlives a containerd that ended before its pods: the shims, and the containers below them.
pods_kill() { # NODE
  local process bundle id
  for process in /proc/[0-9]*; do
    [[ $(tr '\0' ' ' <"$process/cmdline") != *" $CASE_DIR/$1/"* ]] || kill -s KILL "${process#/proc/}"
  done
  for bundle in "$CASE_DIR/$1/state/io.containerd.runtime.v2.task/k8s.io"/*/; do
    [[ -d $bundle ]] || continue
    id=$(basename "$bundle")
    runc --root /run/containerd/runc/k8s.io delete --force "$id"
    # What an interrupted `runc create` and a killed shim leave.
    rm -rf -- "/run/containerd/runc/k8s.io/$id" "$(sed 's#^unix://##' "$bundle/address")"
    rmdir /sys/fs/cgroup/*/"$id" /sys/fs/cgroup/"$id"
  done
}

# For the end of a case with nodes, instead of stop_servers. When `run` is interrupted, so are the containerds.
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

# ---- podman and Docker, each with a store of the case's own ---------------------------------------------------------------

# Podman has no signatures to go by. Pulls and loads take it by `--signature-policy "$PODMAN_POLICY"`.
readonly PODMAN_POLICY="$CASE_DIR/policy.json"
printf '{"default": [{"type": "insecureAcceptAnything"}]}\n' >"$PODMAN_POLICY"
podman_() {
  client podman --storage-driver vfs --root "$CASE_DIR/root" --runroot "$CASE_DIR/run" --tmpdir "$CASE_DIR/tmp/podman" \
    --cgroup-manager cgroupfs --events-backend none "$@"
}

# Short, as containerd's.
readonly DOCKER_DIR="$CASE_DIR/d"
# Starts dockerd with the daemon.json that is in DOCKER_DIR, if there is one. No bridge and no iptables: it only pulls, and the
# machine's network is to stay as it is.
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

# An image into a directory of the case.
copy() { # FROM TO [OPTION…]
  local from=$1 to=$2
  shift 2
  skopeo_ copy --quiet --src-tls-verify=false "$@" "docker://$from" "dir:$CASE_DIR/$to"
}

# Puts standard input into a layout as a blob and prints its descriptor.
blob_of() { # LAYOUT MEDIA_TYPE
  cat >"$CASE_DIR/tmp/blob"
  local hex
  hex=$(sha256sum <"$CASE_DIR/tmp/blob" | cut -d ' ' -f 1)
  cp -- "$CASE_DIR/tmp/blob" "$1/blobs/sha256/$hex"
  jq -nc --arg type "$2" --arg digest "sha256:$hex" --argjson size "$(stat -c %s "$CASE_DIR/tmp/blob")" \
    '{mediaType: $type, digest: $digest, size: $size}'
}

# ---- curl ---------------------------------------------------------------------------------------------------------------

# After `get`: the status, curl's own exit status, and the files with head and body.
STATUS=
CURL_EXIT=
readonly HEAD_FILE="$CASE_DIR/tmp/head"
readonly BODY_FILE="$CASE_DIR/tmp/body"

# Any answer is an answer; the caller says which one it expects.
get() { # URL [CURL OPTION…]
  local url=$1
  shift
  rm -f "$HEAD_FILE" "$BODY_FILE"
  : >"$BODY_FILE"
  CURL_EXIT=0
  STATUS=$(curl -sS --path-as-is --max-time "$GIVE_UP_LIMIT" -D "$HEAD_FILE" -o "$BODY_FILE" -w '%{http_code}' "$@" "$url") ||
    CURL_EXIT=$?
}

# A header of the last answer, without regard to the case of its name; empty if absent.
header() { # NAME
  tr -d '\r' <"$HEAD_FILE" | sed -n "s/^$1:[[:space:]]*//Ip" | head -n 1
}

# The OCI error code of the last answer.
error_code() { jq -r '.errors[0].code' "$BODY_FILE"; }

expect_status() { # WHAT STATUS
  [[ $STATUS == "$2" && $CURL_EXIT == 0 ]] ||
    fail "$1: expected $2, got $STATUS (curl $CURL_EXIT): $(head -c 300 "$BODY_FILE" | tr -d '\0')"
}

# ---- Tools that Debian does not have ------------------------------------------------------------------------------------

# Leaves the path of a Go tool in TOOL: from PATH, or as `run` builds it in the background meanwhile, for which it waits.
# Without it the case is skipped.
TOOL=
tool_is_decided() { [[ -x $TOOL ]] || ! is_running "$E2E_TOOLS_PID"; }
need_tool() { # NAME [HINT]
  if TOOL=$(type -P "$1"); then return; fi
  TOOL="$E2E_TOOLS/$1"
  if [[ -n ${E2E_TOOLS_PID:-} ]]; then
    step "waiting for the build of $1"
    (wait_until "$BUILD_LIMIT" "the build of $1" tool_is_decided) || skip "$1 was not built within $BUILD_LIMIT s"
  fi
  [[ -x $TOOL ]] || skip "$1 is not in PATH, and was not built${2:+: $2}"
}
