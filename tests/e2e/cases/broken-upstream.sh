# Proves what a client sees if the upstream fails in the middle of a blob. If the upstream comes back, the client does not notice,
# because the fetch resumes (promise 4). If not, the client gets a short read instead of a hang. Cached content is served
# immediately in the meantime (promise 5).
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
link_start 8m
larder_config "127.0.0.1:$LINK_PORT"
larder_start
readonly BLOB="$LARDER_URL/v2/$ALIAS/demo/big/blobs/$BIG_LAYER"
ORIGINAL=$(registry_blob_file "$BIG_LAYER")
readonly ORIGINAL

# Downloads in the background, so that the upstream can be cut.
DOWNLOAD=
download() { # FILE
  curl -sS --max-time "$GIVE_UP_LIMIT" -o "$1" "$BLOB" &
  DOWNLOAD=$!
  wait_until 15 "the first MiB of the blob" at_least_bytes "$1" 1048576
}

step "cache a small blob for later"
get "$LARDER_URL/v2/$ALIAS/demo/hello/blobs/$HELLO_LAYER"
expect_status "the small blob" 200

step "the upstream is cut in the middle of a blob and comes back: the client does not notice"
download "$CASE_DIR/tmp/resumed"
link_cut
link_start 64m
status=0
wait "$DOWNLOAD" || status=$?
equal "curl's exit status" 0 "$status"
same_bytes "the blob" "$ORIGINAL" "$CASE_DIR/tmp/resumed"
larder_stop

step "the upstream is cut in the middle of a blob and stays down: a short read, not a hang"
rm -f -- "$(cached_blob "$BIG_LAYER")"
link_cut
link_start 8m
larder_start
download "$CASE_DIR/tmp/short"
link_cut

step "in the meantime cached content is served"
get "$LARDER_URL/v2/$ALIAS/demo/hello/blobs/$HELLO_LAYER" --max-time 5
expect_status "the cached blob while the upstream is down" 200
get "$LARDER_URL/v2/" --max-time 5
expect_status "the ping while the upstream is down" 200

status=0
wait "$DOWNLOAD" || status=$?
equal "curl's exit status (18 is a short read, 28 a hang)" 18 "$status"
absent "the incomplete blob" "$(cached_blob "$BIG_LAYER")"

step "a pull of an uncached image fails in time while the upstream is down"
get "$LARDER_URL/v2/$ALIAS/demo/big/manifests/v1" --max-time 28
matches "the status" '^(404|502|503|504)$' "$STATUS"
equal "curl's exit status" 0 "$CURL_EXIT"
matches "the body" '.+' "$(error_code)"
cache_is_sound
larder_stop
