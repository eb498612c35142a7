# For the cases: installs Larder with its chart, creates pods on nodes, pulls, and checks. `test` starts a case with a cluster
# that has no Larder, no test pods, no mirror configuration, and a registry.
# shellcheck shell=bash disable=SC2034  # the cases use the names

# shellcheck source=tests/cluster/common.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=tests/cluster/node.sh
. "$HERE/node.sh"
# shellcheck source=tests/cluster/registry.sh
. "$HERE/registry.sh"
# shellcheck source=tests/kind/assertions.sh
. "$ROOT/tests/kind/assertions.sh"

# Set by `test`: an empty directory.
: "${SCRATCH:?is set by tests/cluster/test}"
readonly NAMESPACE=larder CHART=$ROOT/charts/larder
readonly METRICS_PORT=9091 NODE_URL=http://127.0.0.1:31080
readonly APP=demo/app:v1 OTHER=demo/other:v1
# In seconds.
readonly READY_LIMIT=120

# Shows which command of a case failed.
trap 'on_error "$?" "$BASH_COMMAND"' ERR

# ---- Larder ----------------------------------------------------------------------------------------------------------------

# The Pod Security level that the namespace enforces.
pod_security() { # restricted|baseline|privileged
  kubectl create namespace "$NAMESPACE" --dry-run=client --output yaml | kubectl apply --filename - >/dev/null
  kubectl label namespace "$NAMESPACE" --overwrite "pod-security.kubernetes.io/enforce=$1" >/dev/null
}
# Installs or upgrades. The notes are in SCRATCH/notes. Succeeds if all pods are ready.
helm_install() { # [OPTION OF helm upgrade…]
  helm upgrade --install larder "$CHART" --namespace "$NAMESPACE" --create-namespace --values "$HERE/values.yaml" --wait \
    --timeout "${READY_LIMIT}s" "$@" >"$SCRATCH/notes" 2>"$SCRATCH/helm-error"
}
larder_install() { # [OPTION OF helm upgrade…]
  helm_install "$@" || fail "helm: $(cat "$SCRATCH/helm-error")"
  no_former_pods
}
# Waits until updates are complete, and the pods of former versions are gone.
no_former_pods() {
  local workload
  for workload in $(kubectl --namespace "$NAMESPACE" get deployments,daemonsets --output name); do
    kubectl --namespace "$NAMESPACE" rollout status "$workload" --timeout "${READY_LIMIT}s" >/dev/null || fail "$workload is not ready"
  done
  wait_until "$READY_LIMIT" "the end of former pods" all_pods_run
}
# A pod of `helm test` stays after it has completed.
all_pods_run() { ! kubectl --namespace "$NAMESPACE" get pods --no-headers | grep -qvE ' (Running|Completed) '; }
# The JSON of the server's pods that are not being deleted.
server_pods() {
  kubectl --namespace "$NAMESPACE" get pods --selector app.kubernetes.io/component=server --output json |
    jq '[.items[] | select(.metadata.deletionTimestamp == null)]'
}
pod_names() { server_pods | jq -r '.[].metadata.name'; }
restarts() { server_pods | jq '[.[].status.containerStatuses[]?.restartCount] | add // 0'; }
# The number of the node that runs the only pod.
node_of_larder() { server_pods | jq -r '.[0].spec.nodeName | ltrimstr("node")'; }
roll() { # Replaces all pods, and waits until the update is complete.
  local workload
  workload=$(kubectl --namespace "$NAMESPACE" get deployments,daemonsets --selector app.kubernetes.io/component=server --output name)
  kubectl --namespace "$NAMESPACE" rollout restart "$workload" >/dev/null
  kubectl --namespace "$NAMESPACE" rollout status "$workload" --timeout 180s >/dev/null || fail "the update of $workload did not end"
}
# Kills the processes of Larder's servers on nodes with SIGKILL, as the kernel does when memory runs out.
larder_kill() { # N…
  local n pid killed=0
  for n in "$@"; do
    for pid in $(processes_in_pods "$n"); do
      tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q '^/larder .* serve' || continue
      kill -s KILL "$pid"
      killed=$((killed + 1))
    done
  done
  ((killed > 0)) || fail "Larder does not run on node $*"
}
# Prints an option for a registry whose content Larder fetches slowly.
slow() { # RATE
  printf -- '--set-json=serverConfig.configuration.registries=[{"name": "%s", "endpoints": ["http://%s:5000"], "rateLimit": "%s"}]\n' \
    "$PUBLIC" "$PUBLIC" "$1"
}

# A directory of the machine as a volume that all nodes can use at the same time.
readonly ON_SHARED_VOLUME=(--set "persistence.persistentVolumeClaim.enabled=true,persistence.persistentVolumeClaim.newClaimSpec.storageClassName=shared"
  --set "persistence.persistentVolumeClaim.newClaimSpec.accessModes={ReadWriteMany}")
shared_volume() { # DIRECTORY
  install -d -o 65532 -g 65532 "$1"
  kubectl create --filename - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: shared}
spec: {capacity: {storage: 10Gi}, accessModes: [ReadWriteMany], storageClassName: shared, hostPath: {path: $1}}
YAML
}
# Two pods on two nodes.
readonly SPREAD=(--set replicaCount=2 --set-json 'topologySpreadConstraints=[{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
  "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app.kubernetes.io/component": "server"}}}]')
# An empty directory of each node for the cache of a daemon set.
node_directories() { # PATH
  local n
  for n in "${NODES[@]}"; do node "$n" install -d -o 65532 -g 65532 "$1"; done
}

# log_to writes the log of all server pods since the last log_from_here to a file.
declare -A LOGGED=()
log_of() { kubectl --namespace "$NAMESPACE" logs "$1" --container larder; } # POD
log_from_here() {
  local pod
  LOGGED=()
  for pod in $(pod_names); do LOGGED[$pod]=$(log_of "$pod" | wc -l); done
}
log_to() { # FILE
  local pod
  for pod in $(pod_names); do log_of "$pod" | tail -n "+$((${LOGGED[$pod]:-0} + 1))"; done >"$1"
}
# Writes the metrics of all server pods to a file; `metric` adds them up.
metrics_to() { # FILE
  local pod
  for pod in $(pod_names); do
    kubectl get --raw "/api/v1/namespaces/$NAMESPACE/pods/$pod:$METRICS_PORT/proxy/metrics"
  done >"$1"
}
# Layers that no client waits for may still be downloading.
is_idle() { flights -eq 0; }
is_downloading() { flights -gt 0; }
flights() { # OPERATOR NUMBER
  metrics_to "$SCRATCH/flights"
  test "$(metric "$SCRATCH/flights" larder_flights)" "$@"
}

# ---- Nodes and pods --------------------------------------------------------------------------------------------------------

# Writes the file that the chart's notes print, for URL, on all nodes.
hosts_toml() { # URL [LINE…]
  local n
  for n in "${NODES[@]}"; do
    { printf '[host."%s"]\n  capabilities = ["pull", "resolve"]\n  dial_timeout = "2s"\n' "$1"
      printf '  %s\n' "${@:2}"; } | node_file "$n" /etc/containerd/certs.d/_default/hosts.toml
  done
}
mirror() { # URL
  hosts_toml "$1"
  mirror_answers "$1"
}
# kube-proxy applies changes after a moment.
answers() { node "$1" curl -fsS --max-time 2 "$2/v2/"; } # N URL
mirror_answers() { # URL
  local n
  for n in "${NODES[@]}"; do wait_until 30 "a response from $1 on node $n" answers "$n" "$1"; done
}
# With configureNodes, the chart writes the file.
written_by_chart() { # URL
  local n
  for n in "${NODES[@]}"; do
    wait_until 60 "hosts.toml with $1 on node $n" node "$n" grep -qF "$1" /etc/containerd/certs.d/_default/hosts.toml
  done
  mirror_answers "$1"
}

pull() { # N REPOSITORY:TAG
  crictl "$1" pull "$PUBLIC/$2" >"$SCRATCH/pull$1" 2>&1
}
must_pull() { pull "$@" || fail "the pull of $2 on node $1: $(tail -n 1 "$SCRATCH/pull$1")"; }
forget() { crictl "$1" rmi "$PUBLIC/$2" >/dev/null 2>&1 || true; } # N REPOSITORY:TAG

# Removes and pulls an image until a file exists. A failed pull is tried again once, after RETRY_AFTER seconds, as a kubelet would
# after 10 s. Writes the numbers of pulls, of second attempts and of failures to SCRATCH/loopN.
RETRY_AFTER=2
pull_loop() { # N REPOSITORY:TAG STOP_FILE
  local pulls=0 retries=0 failures=0
  until [[ -e $3 ]]; do
    forget "$1" "$2"
    pulls=$((pulls + 1))
    if ! pull "$1" "$2"; then
      printf '%(%T)T pull %s on node %s: %s\n' -1 "$pulls" "$1" "$(tail -n 1 "$SCRATCH/pull$1")" >>"$SCRATCH/loop$1.errors"
      retries=$((retries + 1))
      sleep "$RETRY_AFTER"
      if ! pull "$1" "$2"; then
        printf '%(%T)T second attempt: %s\n' -1 "$(tail -n 1 "$SCRATCH/pull$1")" >>"$SCRATCH/loop$1.errors"
        failures=$((failures + 1))
      fi
    fi
  done
  printf '%s %s %s\n' "$pulls" "$retries" "$failures" >"$SCRATCH/loop$1"
}
# Runs a command while nodes pull in a loop. Afterwards PULLS, RETRIES and FAILURES are the sums of all nodes.
while_pulling() { # REPOSITORY:TAG COMMAND…
  local image=$1 n pids=() pulls retries failures
  shift
  rm -f "$SCRATCH"/loop* "$SCRATCH/stop"
  for n in "${NODES[@]}"; do
    pull_loop "$n" "$image" "$SCRATCH/stop" &
    pids+=($!)
  done
  sleep 2
  "$@"
  sleep 2
  touch "$SCRATCH/stop"
  wait "${pids[@]}"
  PULLS=0 RETRIES=0 FAILURES=0
  for n in "${NODES[@]}"; do
    read -r pulls retries failures <"$SCRATCH/loop$n"
    PULLS=$((PULLS + pulls)) RETRIES=$((RETRIES + retries)) FAILURES=$((FAILURES + failures))
  done
  echo "$PULLS pulls, $RETRIES second attempts, $FAILURES failures"
  ((PULLS >= 10)) || fail "there were only $PULLS pulls"
}
# Replaces all pods while node 1 pulls demo/slow:v1 through one of them. COMMAND succeeds once that pull is under way.
roll_during_a_slow_pull() { # COMMAND
  local pid
  crictl 1 pull "$PUBLIC/demo/slow:v1" >"$SCRATCH/slow" 2>&1 &
  pid=$!
  wait_until 30 "the download" "$1"
  roll
  wait "$pid" || fail "the slow pull: $(tail -n 1 "$SCRATCH/slow")"
}
loop_errors() { cat "$SCRATCH"/loop*.errors 2>/dev/null | head -n 5; }
no_pull_failed() { ((RETRIES == 0)) || fail "$RETRIES of $PULLS pulls failed: $(loop_errors)"; }
no_second_attempt_failed() { ((FAILURES == 0)) || fail "$FAILURES of $PULLS pulls failed twice: $(loop_errors)"; }

# The namespace of the pods of a case.
POD_NAMESPACE=default
# Creates a pod that is ready once its program responds.
pod_create() { # NODE POD REPOSITORY:TAG [PULL_POLICY]
  kubectl --namespace "$POD_NAMESPACE" create --filename - >/dev/null <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $2, labels: {larder: test}}
spec:
  nodeName: node$1
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 0
  containers:
    - name: app
      image: $PUBLIC/$3
      imagePullPolicy: ${4:-Always}
      readinessProbe: {httpGet: {path: /name, port: 5000}, periodSeconds: 1}
YAML
}
pod_ready() { # POD
  kubectl --namespace "$POD_NAMESPACE" wait --for=condition=Ready "pod/$1" --timeout "${READY_LIMIT}s" >/dev/null ||
    fail "$1 is not ready: $(kubectl --namespace "$POD_NAMESPACE" describe pod "$1" | tail -n 5)"
}
pods_delete() { kubectl delete pods --all-namespaces --selector larder=test --grace-period 0 --force >/dev/null 2>&1; }
# The kubelet tried to pull the image of the pod, and failed.
failed_pulls() { # POD
  kubectl --namespace "$POD_NAMESPACE" get events --field-selector "involvedObject.name=$1,reason=Failed" --output json | jq '[.items[].count // 1] | add // 0'
}
waits_for_its_image() { # POD
  kubectl --namespace "$POD_NAMESPACE" get pod "$1" --output json |
    jq -e '.status.containerStatuses[0].state.waiting.reason | IN("ErrImagePull", "ImagePullBackOff")'
}
# For tests/kind/assertions.sh.
pod_runs() { # NODE POD
  pod_create "$1" "$2" "$APP"
  pod_ready "$2"
}
has_no_image() { # NODE
  ! crictl "$1" images --output json | jq -r '.images[].repoTags[]?' | grep -qxF "$PUBLIC/$APP" || fail "node $1 has $APP already"
}

# ---- The state before a case -----------------------------------------------------------------------------------------------

reset_cluster() {
  local n image
  name_hosts </dev/null
  for n in "${NODES[@]}"; do
    node_is_lost "$n" || continue
    node_boot "$n"
    wait_until 60 "node $n" kubectl wait --for=condition=Ready "node/node$n" --timeout 50s
  done
  kubectl uncordon node1 node2 >/dev/null
  pods_delete || true
  if helm status larder --namespace "$NAMESPACE" >/dev/null 2>&1; then helm uninstall larder --namespace "$NAMESPACE" --wait >/dev/null; fi
  # Larder's pods have nothing to finish when a case has ended.
  kubectl --namespace "$NAMESPACE" delete pods --all --grace-period 0 --force >/dev/null 2>&1 || true
  kubectl delete namespace "$NAMESPACE" --ignore-not-found >/dev/null
  # Those of the case `service-accounts`.
  kubectl delete namespaces,clusterroles,clusterrolebindings --selector larder=test >/dev/null
  kubectl delete persistentvolumes --all >/dev/null
  registry_stop
  # registry_requests counts from here.
  : >"$LOGS/registry.log"
  registry_start
  for n in "${NODES[@]}"; do
    node "$n" bash -c 'rm -rf /etc/containerd/certs.d /var/lib/larder'
    if node "$n" test -e "$PROVIDERS.yaml"; then
      node "$n" rm -rf "$PROVIDERS.yaml" "$PROVIDERS"
      kubelet_restart "$n"
    fi
    for image in $(crictl "$n" images --output json | jq -r --arg public "$PUBLIC/" '.images[].repoTags[]? | select(startswith($public))'); do
      crictl "$n" rmi "$image" >/dev/null 2>&1 || true
    done
  done
}
