# Proves --air-gapped: cached content is served, however old its tags are; other requests fail immediately; and larder sends
# no request to the upstream, which is running.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

TAG_TTL=0
registry_start
larder_start
readonly REPOSITORY="$LARDER_URL/v2/$ALIAS/demo/hello"
readonly CACHED=("manifests/v1" "manifests/$HELLO_DIGEST" "blobs/$HELLO_CONFIG" "blobs/$HELLO_LAYER")

step "fill the cache while there is a network"
for path in "${CACHED[@]}"; do
  get "$REPOSITORY/$path"
  expect_status "$path" 200
done
larder_stop

step "air-gapped"
requests=$(registry_requests '[A-Z]+ /v2/demo/')
larder_start --air-gapped
for path in "${CACHED[@]}"; do
  get "$REPOSITORY/$path"
  expect_status "$path" 200
done
for path in hello/manifests/v2 "hello/manifests/$HELLO_V2_DIGEST" "big/blobs/$BIG_LAYER"; do
  get "$LARDER_URL/v2/$ALIAS/demo/$path" --max-time 5
  matches "$path, not cached" '^(404|503|504)$' "$STATUS"
  matches "the body" '.+' "$(error_code)"
done
equal "requests to the upstream" "$requests" "$(registry_requests '[A-Z]+ /v2/demo/')"
larder_stop
