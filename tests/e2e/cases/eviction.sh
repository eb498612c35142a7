# Proves pruning and eviction with real clients: pinned images and images that are being pulled are kept while all others are
# pruned, unreferenced blobs are removed from the disk, the image layout stays valid, and a full cache streams images that do
# not fit, and logs that.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly HELLO=docker.io/library/hello:v1 MULTI=docker.io/demo/multi:v1 BIG=docker.io/demo/big:v1
# Slow enough that a pull of the large image takes longer than pruning.
readonly LINK_RATE=8m

larder_() { client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" "$@"; }
pull() { # IMAGE [OPTION…]
  local image=$1
  shift
  rm -rf -- "$CASE_DIR/tmp/pulled"
  copy "127.0.0.1:$LARDER_PORT/$image" tmp/pulled "$@"
}
# Makes all files old, because Larder removes neither new nor recently pulled images.
grow_old() { find "$LARDER_CACHE/blobs" "$LARDER_CACHE/refs" -exec touch -d '2 hours ago' {} +; }

registry_start
link_start "$LINK_RATE"
larder_config "127.0.0.1:$LINK_PORT"
# The link limits each response, after a first second without a limit: ranges of a blob would pass it at once.
echo 'connectionsPerBlob: 1' >>"$CASE_DIR/larder.yaml"
larder_start

step "pin one of two images"
pull "$HELLO"
pull "$MULTI" --all
larder_ pin hello:v1
larder_ list --pinned >"$CASE_DIR/tmp/pinned"
matches "larder list --pinned" "$HELLO" "$(cat "$CASE_DIR/tmp/pinned")"
equal "its lines" 2 "$(wc -l <"$CASE_DIR/tmp/pinned")"
grow_old

step "prune all images while a client pulls"
curl -fsS --max-time "$CLIENT_LIMIT" -o "$CASE_DIR/tmp/manifest" -H 'Accept: */*' \
  "$LARDER_URL/v2/demo/big/manifests/v1?ns=docker.io"
curl -fsS --max-time "$CLIENT_LIMIT" -o "$CASE_DIR/tmp/layer" "$LARDER_URL/v2/demo/big/blobs/$BIG_LAYER?ns=docker.io" &
pulling=$!
wait_until 15 "the first MiB of the layer" at_least_bytes "$CASE_DIR/tmp/layer" 1048576
larder_ prune --unused-for 1h --dry-run | tee "$CASE_DIR/tmp/dry-run"
matches "a dry run" "$MULTI" "$(cat "$CASE_DIR/tmp/dry-run")"
absent "the pinned image" "$(grep -o "$HELLO" "$CASE_DIR/tmp/dry-run" || true)"
larder_ prune --unused-for 1h | tee "$CASE_DIR/tmp/pruned"
matches "the output of prune" '1 image removed' "$(cat "$CASE_DIR/tmp/pruned")"
is_running "$pulling" || fail "the pull finished before the pruning"
wait "$pulling"
equal "the layer" "${BIG_LAYER#sha256:}" "$(sha256sum -- "$CASE_DIR/tmp/layer" | cut -d ' ' -f 1)"
cache_is_sound

step "without a registry: kept images are served, pruned ones are not"
registry_stop
pull "$HELLO"
pull "$BIG"
must_fail "a pull of the pruned image" pull "$MULTI"
absent "the directory of the pruned image" "$LARDER_CACHE/refs/docker.io/demo/multi"
skopeo_ inspect "oci:$LARDER_CACHE:$HELLO" >/dev/null
must_fail "skopeo with the pruned image" skopeo_ inspect "oci:$LARDER_CACHE:$MULTI"
larder_stop
registry_start

step "with a small cacheSize the pinned image is kept, the old one is evicted, and a new one that fits is cached"
grow_old
printf 'cacheSize: 1MB\nmanagement: {port: %s}\n' "$(free_port)" >>"$CASE_DIR/larder.yaml"
larder_start
has_evicted() { [[ ! -e $(cached_blob "$BIG_LAYER") ]]; }
wait_until 20 "the eviction of the large layer" has_evicted
larder_logged "the eviction" 'evicted images and other files images=1 '
pull "$MULTI" --all
larder_ list >"$CASE_DIR/tmp/list"
matches "the pinned image" "$HELLO.*complete.*pinned" "$(cat "$CASE_DIR/tmp/list")"
matches "the image that fits" "$MULTI.*complete" "$(cat "$CASE_DIR/tmp/list")"

step "an image that does not fit is streamed, and the log has the reason"
pull "$BIG"
absent "the large layer" "$(cached_blob "$BIG_LAYER")"
larder_logged "that it is not cached" 'cacheSize.*larger than the limit'
larder_logged "that it is streamed" 'without caching'
cache_is_sound
larder_stop
