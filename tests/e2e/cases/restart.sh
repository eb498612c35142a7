# Proves promise 2 across a restart: SIGTERM ends larder with status 0, and started again without any upstream it serves
# everything that it served before, by tag and by digest.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
larder_start
readonly PATHS=("hello/manifests/v1" "hello/manifests/$HELLO_DIGEST" "hello/blobs/$HELLO_CONFIG" "hello/blobs/$HELLO_LAYER"
  "big/manifests/v1" "big/blobs/$BIG_LAYER" "multi/manifests/v1" "multi/manifests/$MULTI_DIGEST" "hello/tags/list")

# All answers, one file each: the identifying head, then the body.
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
step "before"
serve_all "$CASE_DIR/before"

step "SIGTERM, status 0; upstream is stopped; started again"
larder_stop
registry_stop
larder_start
serve_all "$CASE_DIR/after"
same_tree "the answers before and after" "$CASE_DIR/before" "$CASE_DIR/after"

step "the same with tags that must be asked about"
larder_stop
TAG_TTL=0
larder_config "127.0.0.1:$REGISTRY_PORT"
larder_start
serve_all "$CASE_DIR/stale"
same_tree "the answers before and with every tag out of date" "$CASE_DIR/before" "$CASE_DIR/stale"
cache_is_sound

step "SIGTERM in the middle of a download that a client follows: it ends with status 0 all the same"
registry_start
# 64 MiB to a reader of 32 MiB/s: still under way when the signal comes, done well within the drain.
curl -sS --max-time "$GIVE_UP_LIMIT" --limit-rate 32M -o "$CASE_DIR/tmp/drained" "$LARDER_URL/v2/$ALIAS/demo/big/blobs/$BIG_LAYER" &
reader=$!
wait_until 15 "the first MiB" at_least_bytes "$CASE_DIR/tmp/drained" 1048576
larder_stop
wait "$reader" || fail "the answer that was under way was cut: curl $?"
same_bytes "the answer that was under way" "$CASE_DIR/before/big_blobs_$BIG_LAYER" "$CASE_DIR/tmp/drained"
