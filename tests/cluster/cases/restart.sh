# Proves that a download survives Larder: while two nodes start pods with a cold image, whose download takes 15 s, Larder is
# killed; then the same while its pod is replaced. Each time the download resumes after what is on the disk.
# shellcheck shell=bash

# A volume that a second pod on another node can use too.
shared_volume "$SCRATCH/images"
larder_install "${ON_SHARED_VOLUME[@]}" "$(slow 4MB)"
mirror "$NODE_URL"
image_push demo/cold:a 30 30
image_push demo/cold:b 30 30
has_partial_blob() { find "$SCRATCH/images" -type f -size +4M -print -quit | grep -q .; }
# Two layers and the config; after an interruption, requests for the rest.
resumed() {
  metrics_to "$SCRATCH/metrics"
  (($(metric "$SCRATCH/metrics" larder_download_resumes_total) > 0))
}

step "kill"
for n in "${NODES[@]}"; do pod_create "$n" "killed$n" demo/cold:a; done
wait_until 30 "the beginning of the download" has_partial_blob
larder_kill "$(node_of_larder)"
for n in "${NODES[@]}"; do pod_ready "killed$n"; done
resumed || fail "the download did not resume"

step "replace the pod"
for n in "${NODES[@]}"; do pod_create "$n" "replaced$n" demo/cold:b; done
before=$(registry_requests 'GET /v2/demo/cold/blobs/')
wait_until 30 "the beginning of the download" is_downloading
roll
for n in "${NODES[@]}"; do pod_ready "replaced$n"; done
(($(registry_requests 'GET /v2/demo/cold/blobs/') - before <= 6)) || fail "the registry sent blobs more than twice"
