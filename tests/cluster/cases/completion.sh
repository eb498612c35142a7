# Proves that an image that a node has already reaches a cache that lost it. The kubelet sends only HEAD for this image, so
# Larder completes it in the background; when the registry is gone, another node starts the pod.
# shellcheck shell=bash

larder_install
mirror "$NODE_URL"
image_push demo/completion:v1 5

step "node 1 starts a pod"
pod_create 1 one demo/completion:v1
pod_ready one
wait_until 30 "the end of all downloads" is_idle
# A config and two layers.
equal "blobs that the registry sent" 3 "$(registry_requests 'GET /v2/demo/completion/blobs/')"

step "Larder's pod is replaced, and its cache is lost with the emptyDir"
roll
no_former_pods
mirror_answers "$NODE_URL"
pods_delete
log_from_here
pod_create 1 again demo/completion:v1
pod_ready again
log_to "$SCRATCH/log"
requests=$(lines_of "$SCRATCH/log" "$PUBLIC" demo/completion manifests)
every_line "the requests of node 1" 'HEAD:' "$requests"
equal "requests of node 1 for blobs" "" "$(lines_of "$SCRATCH/log" "$PUBLIC" demo/completion blobs)"

step "Larder completes the image"
has_all_blobs() { (($(registry_requests 'GET /v2/demo/completion/blobs/') == 6)) && is_idle; }
wait_until 60 "the blobs of the image in the cache" has_all_blobs

step "the registry is removed, and node 2 starts the pod"
registry_stop
pod_create 2 two demo/completion:v1
pod_ready two
