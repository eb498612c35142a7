# Proves that the loss of the node that runs the only pod is repaired without an operator: Kubernetes starts the pod on the other
# node, which pulls from the same volume without a registry. Shows how long that takes. The lost node returns and pulls too.
# shellcheck shell=bash

shared_volume "$SCRATCH/images"
larder_install "${ON_SHARED_VOLUME[@]}" --set tolerationSeconds.notReady=10,tolerationSeconds.unreachable=10
mirror "$NODE_URL"
for n in "${NODES[@]}"; do must_pull "$n" "$APP"; done
registry_stop
lost=$(node_of_larder) other=$((3 - $(node_of_larder)))

step "node $lost is lost"
began=$SECONDS
node_lose "$lost"
forget "$other" "$APP"
pulls_again() { pull "$other" "$APP"; }
wait_until 300 "a pull on node $other" pulls_again
echo "note: node $other pulls again $((SECONDS - began)) s after the loss of the node that ran Larder"

step "node $lost returns"
node_boot "$lost"
kubectl wait --for=condition=Ready "node/node$lost" --timeout "${READY_LIMIT}s" >/dev/null
wait_until 60 "a response on node $lost" answers "$lost" "$NODE_URL"
forget "$lost" "$APP"
must_pull "$lost" "$APP"
