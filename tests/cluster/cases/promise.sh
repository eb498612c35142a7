# Proves the promise to a cluster, with the chart's defaults in a namespace that enforces the restricted Pod Security level: a
# node starts a pod through Larder, the registry is removed, and a node that never pulled starts the pod too, also after Larder
# was killed and after the tag has expired. An image that was never pulled does not start.
# shellcheck shell=bash

step "install"
pod_security restricted
larder_install
grep -qF "[host.\"$NODE_URL\"]" "$SCRATCH/notes" || fail "the notes do not name $NODE_URL: $(cat "$SCRATCH/notes")"
mirror "$NODE_URL"

step "node 1 starts a pod and pulls through Larder"
first_node_pulls 1 one "$PUBLIC/${APP%:*}"
wait_until 30 "the end of all downloads" is_idle
# The config and one layer.
equal "blobs that the registry sent" 2 "$(registry_requests "GET /v2/${APP%:*}/blobs/")"

step "node 2, which has never pulled, starts the pod without the registry"
registry_stop
other_node_starts 2 two "$PUBLIC/${APP%:*}"

step "node 1 removes the image, Larder is killed, and the pod starts again"
pods_delete
forget 1 "$APP"
larder_kill "$(node_of_larder)"
mirror_answers "$NODE_URL"
other_node_starts 1 again "$PUBLIC/${APP%:*}"
some_line "the expired tag" ' cache=stale' "$(lines_of "$SCRATCH/log" "$PUBLIC" "${APP%:*}" manifests)"

step "an image that was never pulled does not start"
pod_create 2 never "$OTHER"
wait_until "$READY_LIMIT" "the failed pull" waits_for_its_image never
