# Proves that a daemon set with a port and a directory of each node serves each node from its own cache, and that an update under
# a pull loop makes no pull fail twice, although a slow pull keeps the old pod busy. Kubernetes takes 2 to 4 s to replace the pod,
# in which nothing can listen on the port.
# shellcheck shell=bash

pod_security privileged
node_directories /var/lib/larder
larder_install --values "$CHART/ci/daemonset-values.yaml" --set persistence.hostPath.path=/var/lib/larder "$(slow 3MB)"
written_by_chart http://127.0.0.1:5000

step "each node pulls through its own Larder"
for n in "${NODES[@]}"; do
  must_pull "$n" "$APP"
  [[ -n $(node "$n" find /var/lib/larder/blobs -type f) ]] || fail "node $n has no cache"
done
# Each fetched the config and a layer.
equal "blobs that the registry sent" 4 "$(registry_requests "GET /v2/${APP%:*}/blobs/")"

step "an update, while a slow pull and a loop of pulls use the port"
image_push demo/slow:v1 60
# shellcheck disable=SC2034  # for the loop
RETRY_AFTER=5
while_pulling "$APP" roll_during_a_slow_pull is_downloading
no_second_attempt_failed
echo "note: hostPort: $PULLS pulls, $RETRIES second attempts, $FAILURES failures"
