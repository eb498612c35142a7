# Proves that draining a node interrupts no pull: with two pods on a shared volume no pull fails, and with a single pod no pull
# fails twice. A disruption budget allows both.
# shellcheck shell=bash

shared_volume "$SCRATCH/images"
drain() { # N
  kubectl drain "node$1" --ignore-daemonsets --delete-emptydir-data --timeout "${READY_LIMIT}s" >/dev/null || fail "the drain of node $1"
  no_former_pods
  [[ -z $(server_pods | jq -r --arg node "node$1" '.[] | select(.spec.nodeName == $node) | .metadata.name') ]] || fail "Larder still runs on node $1"
}

step "two pods"
larder_install "${ON_SHARED_VOLUME[@]}" "${SPREAD[@]}" --set podDisruptionBudget.enabled=true
mirror "$NODE_URL"
for n in "${NODES[@]}"; do must_pull "$n" "$APP"; done
while_pulling "$APP" drain 1
no_pull_failed
kubectl uncordon node1 >/dev/null

step "one pod"
larder_install "${ON_SHARED_VOLUME[@]}" --set podDisruptionBudget.enabled=true
while_pulling "$APP" drain "$(node_of_larder)"
no_second_attempt_failed
echo "note: drain of the node of the only pod: $PULLS pulls, $RETRIES second attempts"
