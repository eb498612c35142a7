# Proves the freshness of tags: within tagTtl larder does not contact the upstream, after it a moved tag is detected
# immediately, and a tag is served from the cache if the upstream has deleted it or is down.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

REGISTRY_STORAGE=$(own_storage)
registry_start
readonly UPSTREAM_MANIFESTS="http://127.0.0.1:$REGISTRY_PORT/v2/demo/hello/manifests"
readonly TYPE=application/vnd.oci.image.manifest.v1+json

move_tag() { # TAG DIGEST
  curl -fsS --max-time 10 -H "Accept: $TYPE" -o "$CASE_DIR/tmp/manifest" "$UPSTREAM_MANIFESTS/$2"
  curl -fsS --max-time 10 -X PUT -H "Content-Type: $TYPE" --data-binary "@$CASE_DIR/tmp/manifest" "$UPSTREAM_MANIFESTS/$1"
}
moving_is() { # DIGEST
  get "$LARDER_URL/v2/$ALIAS/demo/hello/manifests/moving"
  expect_status "demo/hello:moving" 200
  equal "the digest of demo/hello:moving" "$1" "$(header Docker-Content-Digest)"
}

step "tagTtl 5m: the cached tag is served"
move_tag moving "$HELLO_DIGEST"
TAG_TTL=5m
larder_config "127.0.0.1:$REGISTRY_PORT"
larder_start
moving_is "$HELLO_DIGEST"
move_tag moving "$HELLO_V2_DIGEST"
requests=$(registry_requests '(GET|HEAD) /v2/demo/hello/manifests/moving')
moving_is "$HELLO_DIGEST"
equal "requests for the tag at the upstream" "$requests" "$(registry_requests '(GET|HEAD) /v2/demo/hello/manifests/moving')"
larder_stop

step "tagTtl 0: each move of the tag is detected"
TAG_TTL=0
larder_config "127.0.0.1:$REGISTRY_PORT"
larder_start
moving_is "$HELLO_V2_DIGEST"
move_tag moving "$HELLO_DIGEST"
moving_is "$HELLO_DIGEST"

step "hold: a tag that moves is held until it is accepted, and skopeo sees the previous manifest"
larder_stop
larder_config "127.0.0.1:$REGISTRY_PORT"
printf "tags: [{pattern: moving, hold: 72h}]\n" >>"$CASE_DIR/larder.yaml"
larder_start
move_tag moving "$HELLO_V2_DIGEST"
moving_is "$HELLO_DIGEST"
matches "Warning" '^199' "$(header Warning)"
served_is() { # DIGEST
  get "$LARDER_URL/v2/$ALIAS/demo/hello/manifests/moving"
  [[ $(header Docker-Content-Digest) == "$1" ]]
}
larder() { "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" "$@"; }
matches "larder tags list --held" "demo/hello:moving .* waiting" "$(larder tags list --held)"
equal "the digest that skopeo sees" "$HELLO_DIGEST" \
  "$(skopeo inspect --tls-verify=false --format '{{.Digest}}' "docker://127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello:moving")"
larder tags accept "$ALIAS/demo/hello:moving"
wait_until 5 "the accepted manifest" served_is "$HELLO_V2_DIGEST"
move_tag moving "$HELLO_DIGEST"
moving_is "$HELLO_V2_DIGEST"
larder tags accept "$ALIAS/demo/hello:moving"
wait_until 5 "the accepted manifest" served_is "$HELLO_DIGEST"

step "the upstream deletes the manifest: the cached one is served"
curl -fsS --max-time 10 -X DELETE "$UPSTREAM_MANIFESTS/$HELLO_DIGEST"
get "$UPSTREAM_MANIFESTS/moving" -H "Accept: $TYPE"
expect_status "the deleted tag at the upstream" 404
moving_is "$HELLO_DIGEST"

step "the upstream is stopped: the cached one is served as stale"
registry_stop
moving_is "$HELLO_DIGEST"
matches "Warning" '^110' "$(header Warning)"
larder_stop
