# Proves that files in blobs/ are complete and verified: kill -9 in the middle of a fetch leaves no file named by the digest,
# and the next larder on the same directory serves the right bytes and completes the blob.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

registry_start
link_start 8m
larder_config "127.0.0.1:$LINK_PORT"
# The link limits each response, after a first second without a limit: ranges of a blob would pass it at once.
echo 'connectionsPerBlob: 1' >>"$CASE_DIR/larder.yaml"
readonly BLOB="$LARDER_URL/v2/$ALIAS/demo/big/blobs/$BIG_LAYER"

for round in first second; do
  step "kill -9 in the middle of a blob, the $round time"
  larder_start
  rm -f "$CASE_DIR/tmp/killed"
  curl -sS --max-time "$GIVE_UP_LIMIT" -o "$CASE_DIR/tmp/killed" "$BLOB" &
  reader=$!
  wait_until 15 "the first MiB of the blob" at_least_bytes "$CASE_DIR/tmp/killed" 1048576
  stop_server larder KILL
  status=0
  wait "$reader" || status=$?
  [[ $status != 0 ]] || fail "the download finished before larder was killed"
  equal "files in the cache under the digest" "" "$(find "$LARDER_CACHE/blobs" -name "${BIG_LAYER#sha256:}*" 2>/dev/null)"
  cache_is_sound
done

step "the next start serves it"
link_cut
link_start 64m
larder_start
get "$BLOB"
expect_status "the blob" 200
same_bytes "the blob" "$(registry_blob_file "$BIG_LAYER")" "$BODY_FILE"
wait_until 5 "the blob in the cache" test -f "$(cached_blob "$BIG_LAYER")"
cache_is_sound
no_partial() { [[ -z $(find "$LARDER_CACHE/partials" -type f -name "*${BIG_LAYER#sha256:}*" 2>/dev/null) ]]; }
wait_until 5 "the partial download is gone" no_partial
larder_stop
