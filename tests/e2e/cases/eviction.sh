# Proves that the cache keeps itself beside real clients: what is pinned and what is being pulled stays while all the rest is
# pruned, what no image needs is gone from the disk, the image layout is still one, and a cache that may not grow streams what
# does not fit and says so.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly HELLO=docker.io/library/hello:v1 MULTI=docker.io/demo/multi:v1 BIG=docker.io/demo/big:v1
# So that a pull of the large image lasts as long as the pruning.
readonly LINK_RATE=8m

larder_() { client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" "$@"; }
pull() { # IMAGE [OPTION…]
  local image=$1
  shift
  rm -rf -- "$CASE_DIR/tmp/pulled"
  copy "127.0.0.1:$LARDER_PORT/$image" tmp/pulled "$@"
}
# Nothing that is young, or was pulled a moment ago, is removed.
grow_old() { find "$LARDER_CACHE/blobs" "$LARDER_CACHE/refs" -exec touch -d '2 hours ago' {} +; }

registry_start
link_start "$LINK_RATE"
larder_config "127.0.0.1:$LINK_PORT"
larder_start

step "what is pinned, and what is not"
pull "$HELLO"
pull "$MULTI" --all
larder_ pin hello:v1
larder_ list --pinned >"$CASE_DIR/tmp/pinned"
matches "larder list --pinned" "$HELLO" "$(cat "$CASE_DIR/tmp/pinned")"
equal "its lines" 2 "$(wc -l <"$CASE_DIR/tmp/pinned")"
grow_old

step "everything is pruned while a client pulls"
curl -fsS --max-time "$CLIENT_LIMIT" -o "$CASE_DIR/tmp/manifest" -H 'Accept: */*' \
  "$LARDER_URL/v2/demo/big/manifests/v1?ns=docker.io"
curl -fsS --max-time "$CLIENT_LIMIT" -o "$CASE_DIR/tmp/layer" "$LARDER_URL/v2/demo/big/blobs/$BIG_LAYER?ns=docker.io" &
pulling=$!
wait_until 15 "the first MiB of the layer" at_least_bytes "$CASE_DIR/tmp/layer" 1048576
larder_ prune --unused-for 1h --dry-run | tee "$CASE_DIR/tmp/would"
matches "a dry run" "$MULTI" "$(cat "$CASE_DIR/tmp/would")"
absent "the image that is pinned" "$(grep -o "$HELLO" "$CASE_DIR/tmp/would" || true)"
larder_ prune --unused-for 1h | tee "$CASE_DIR/tmp/pruned"
matches "what was pruned" '1 image removed' "$(cat "$CASE_DIR/tmp/pruned")"
is_running "$pulling" || fail "the pull was over before the pruning"
wait "$pulling"
equal "the layer" "${BIG_LAYER#sha256:}" "$(sha256sum -- "$CASE_DIR/tmp/layer" | cut -d ' ' -f 1)"
cache_is_sound

step "without a registry: what stayed is served, and what went is gone"
registry_stop
pull "$HELLO"
pull "$BIG"
must_fail "a pull of what was pruned" pull "$MULTI"
absent "a directory of what was pruned" "$LARDER_CACHE/refs/docker.io/demo/multi"
skopeo_ inspect "oci:$LARDER_CACHE:$HELLO" >/dev/null
must_fail "skopeo of what was pruned" skopeo_ inspect "oci:$LARDER_CACHE:$MULTI"
larder_stop
registry_start

step "a cache that may not grow: the pinned stays, the old goes, what fits is kept"
grow_old
printf 'cacheSize: 1MB\nmanagement: {port: %s}\n' "$(free_port)" >>"$CASE_DIR/larder.yaml"
larder_start
has_evicted() { [[ ! -e $(cached_blob "$BIG_LAYER") ]]; }
wait_until 20 "the large layer to be evicted" has_evicted
larder_logged "what was evicted" 'evicted 1 images'
pull "$MULTI" --all
larder_ list >"$CASE_DIR/tmp/list"
matches "what is pinned" "$HELLO.*complete.*pinned" "$(cat "$CASE_DIR/tmp/list")"
matches "what fits" "$MULTI.*complete" "$(cat "$CASE_DIR/tmp/list")"

step "what does not fit is pulled all the same, and it is said why it is not kept"
pull "$BIG"
absent "the large layer" "$(cached_blob "$BIG_LAYER")"
larder_logged "that it is not kept" 'cacheSize.*larger than the limit'
larder_logged "that it is streamed" 'without caching'
cache_is_sound
larder_stop
