# Proves pulls by containerd with the hosts.toml of the README (one `_default` mirror for all registries): the pull names its
# registry with ?ns=, works cold, warm and without the upstream after the image and its content were removed, and the image
# runs.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_containerd
registry_start
larder_start

readonly IMAGE=docker.io/library/hello:v1
containerd_start "$LARDER_URL"

pull() { ctr_pull "$IMAGE"; }
digest_of_image() { digest_in_ctr "$IMAGE"; }
no_content() { [[ -z $(ctr_ content ls -q) ]]; }
forget() {
  ctr_ images rm --sync "$IMAGE"
  wait_until 20 "containerd drops the image's content" no_content
}

step "cold"
pull
equal "the image's digest" "$HELLO_DIGEST" "$(digest_of_image)"
larder_logged "a request with ?ns=docker.io" 'GET:/v2/library/hello/.*ns=docker\.io'
blob_gets=$(registry_requests 'GET /v2/library/hello/blobs/')

step "warm, after image and content were removed"
forget
hits=$(larder_lines 'blobs/.*cache=hit')
pull
equal "the image's digest" "$HELLO_DIGEST" "$(digest_of_image)"
equal "blob GETs at the upstream" "$blob_gets" "$(registry_requests 'GET /v2/library/hello/blobs/')"
larder_logged "a hit" 'blobs/.*cache=hit'
(($(larder_lines 'blobs/.*cache=hit') > hits)) || fail "the warm pull made no hit in larder's log"

step "upstream stopped, image and content removed"
registry_stop
forget
pull
equal "the image's digest" "$HELLO_DIGEST" "$(digest_of_image)"

step "the image runs"
output=$(ctr_ run --rm --snapshotter native --net-host "$IMAGE" larder-e2e-hello)
equal "the container's output" "hello from the larder" "$output"
larder_stop
