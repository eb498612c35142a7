# Proves that a daemon set in the network of the nodes serves each node on loopback only, before there is a pod network, and that
# no pull fails during an update.
# shellcheck shell=bash

pod_security privileged
node_directories /var/lib/larder
larder_install --values "$CHART/ci/host-network-values.yaml" "$(slow 3MB)"
written_by_chart http://127.0.0.1:5000
! hub curl -fsS --max-time 2 "http://$(node_address 1):5000/v2/" || fail "Larder answers outside of the node"

step "each node pulls through its own Larder"
for n in "${NODES[@]}"; do
  must_pull "$n" "$APP"
  [[ -n $(node "$n" find /var/lib/larder/blobs -type f) ]] || fail "node $n has no cache"
done

step "an update, while a slow pull and a loop of pulls use the port"
has_partial_blob() { [[ -n $(node 1 find /var/lib/larder -type f -size +4M) ]]; }
image_push demo/slow:v1 60
while_pulling "$APP" roll_during_a_slow_pull has_partial_blob
no_pull_failed
echo "note: hostNetwork: $PULLS pulls, $RETRIES second attempts, $FAILURES failures"
