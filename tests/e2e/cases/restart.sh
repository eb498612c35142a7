# Proves promise 2 across a restart: SIGTERM stops larder with exit status 0, and after a start without any upstream it serves
# everything that it served before, by tag and by digest.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
larder_start
readonly PATHS=("hello/manifests/v1" "hello/manifests/$HELLO_DIGEST" "hello/blobs/$HELLO_CONFIG" "hello/blobs/$HELLO_LAYER"
  "big/manifests/v1" "big/blobs/$BIG_LAYER" "multi/manifests/v1" "multi/manifests/$MULTI_DIGEST" "hello/tags/list")

# Requests all paths, and writes the identifying headers and the body of each response to files.
serve_all() { # DIR
  local path
  mkdir -p "$1"
  for path in "${PATHS[@]}"; do
    get "$LARDER_URL/v2/$ALIAS/demo/$path"
    expect_status "$path" 200
    tr -d '\r' <"$HEAD_FILE" | grep -iE '^(content-(type|length)|docker-content-digest|etag):' | LC_ALL=C sort -f >"$1/${path//\//_}.head"
    mv -- "$BODY_FILE" "$1/${path//\//_}"
  done
}
step "before the restart"
serve_all "$CASE_DIR/before"

step "stop larder and the upstream, and start larder again"
larder_stop
registry_stop
larder_start
serve_all "$CASE_DIR/after"
same_tree "the responses before and after" "$CASE_DIR/before" "$CASE_DIR/after"

step "restart with expired tags"
larder_stop
TAG_TTL=0
larder_config "127.0.0.1:$REGISTRY_PORT"
larder_start
serve_all "$CASE_DIR/stale"
same_tree "the responses before and with expired tags" "$CASE_DIR/before" "$CASE_DIR/stale"
cache_is_sound

step "SIGTERM during a download for a client: larder drains and exits with status 0"
registry_start
# 64 MiB to a client that reads 32 MiB/s: still in progress when the signal is sent, and finished before the drain ends.
curl -sS --max-time "$GIVE_UP_LIMIT" --limit-rate 32M -o "$CASE_DIR/tmp/drained" "$LARDER_URL/v2/$ALIAS/demo/big/blobs/$BIG_LAYER" &
reader=$!
wait_until 15 "the first MiB" at_least_bytes "$CASE_DIR/tmp/drained" 1048576
larder_stop
wait "$reader" || fail "the response in progress was cut: curl status $?"
same_bytes "the response in progress" "$CASE_DIR/before/big_blobs_$BIG_LAYER" "$CASE_DIR/tmp/drained"
