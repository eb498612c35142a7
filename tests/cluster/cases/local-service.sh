# Proves that an address in the cluster with `internalTrafficPolicy: Local` leads each node to its own Larder, and that no pull fails
# during an update.
# shellcheck shell=bash

pod_security privileged
node_directories /var/lib/larder
address=${SERVICE_NETWORK%.*}.50
larder_install --values "$CHART/ci/local-service-values.yaml" --set service.clusterIP="$address" "$(slow 3MB)"
mirror "http://$address:8080"

step "each node pulls through its own Larder"
for n in "${NODES[@]}"; do
  must_pull "$n" "$APP"
  [[ -n $(node "$n" find /var/lib/larder/blobs -type f) ]] || fail "node $n has no cache"
done
equal "blobs that the registry sent" 4 "$(registry_requests "GET /v2/${APP%:*}/blobs/")"

step "an update, while a slow pull and a loop of pulls use the address"
image_push demo/slow:v1 60
while_pulling "$APP" roll_during_a_slow_pull is_downloading
no_pull_failed
