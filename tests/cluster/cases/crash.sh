# Proves that clients continue after the only pod was killed: the kubelet restarts it with the same cache. Shows how long that
# takes, and where the time goes.
# shellcheck shell=bash

larder_install
mirror "$NODE_URL"
for n in "${NODES[@]}"; do must_pull "$n" "$APP"; done
registry_stop

restarted_and_ready() {
  server_pods | jq -e --argjson count "$1" '.[0].status.containerStatuses[0] | .ready and .restartCount == $count'
}
seconds_since() { jq -nr --argjson from "$1" --argjson to "$EPOCHREALTIME" '($to - $from) * 10 | round / 10'; }
for round in 1 2; do
  step "kill $round"
  killed=$EPOCHREALTIME
  larder_kill "$(node_of_larder)"
  wait_until "$READY_LIMIT" "a restarted pod" restarted_and_ready "$round"
  ready=$(seconds_since "$killed")
  mirror_answers "$NODE_URL"
  echo "note: kill $round: ready after $ready s, the node port answers after $(seconds_since "$killed") s"
  for n in "${NODES[@]}"; do
    forget "$n" "$APP"
    must_pull "$n" "$APP"
  done
done
