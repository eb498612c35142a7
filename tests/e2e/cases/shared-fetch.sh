# Proves promise 3 and the first half of 4 over a slow link: many clients of one uncached blob, some with a Range or later than
# others, share one download and get the right bytes while it runs. If all clients disconnect, larder finishes the download.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly CLIENTS=12
registry_start
link_start 24m
larder_config "127.0.0.1:$LINK_PORT"
larder_start
readonly BLOB="$LARDER_URL/v2/$ALIAS/demo/big/blobs/$BIG_LAYER"
ORIGINAL=$(registry_blob_file "$BIG_LAYER")
readonly ORIGINAL

readonly CURL=(curl -fsS --max-time "$GIVE_UP_LIMIT")

step "the first client gets bytes long before the blob is complete"
"${CURL[@]}" -o "$CASE_DIR/tmp/1" "$BLOB" &
pids=($!)
wait_until 15 "the first MiB of a cold blob" at_least_bytes "$CASE_DIR/tmp/1" 1048576
absent "the incomplete blob" "$(cached_blob "$BIG_LAYER")"

step "$CLIENTS clients in total, and one that requests a Range far ahead"
for ((n = 2; n <= CLIENTS; n++)); do
  "${CURL[@]}" -o "$CASE_DIR/tmp/$n" "$BLOB" &
  pids+=($!)
done
"${CURL[@]}" -r 41943040-50331647 -D "$CASE_DIR/tmp/range-head" -o "$CASE_DIR/tmp/range" "$BLOB" &
pids+=($!)
for pid in "${pids[@]}"; do
  wait "$pid" || fail "a client failed with curl status $?"
done
for ((n = 1; n <= CLIENTS; n++)); do
  same_bytes "client $n" "$ORIGINAL" "$CASE_DIR/tmp/$n"
done
matches "the Range's status line" ' 206' "$(head -n 1 "$CASE_DIR/tmp/range-head")"
tail -c +41943041 "$ORIGINAL" | head -c 8388608 >"$CASE_DIR/tmp/range-expected" || true
same_bytes "the Range" "$CASE_DIR/tmp/range-expected" "$CASE_DIR/tmp/range"
equal "blob GETs at the upstream" 1 "$(registry_requests "GET /v2/demo/big/blobs/$BIG_LAYER")"
larder_logged "a client that joined" 'cache=join'
larder_stop

step "all clients disconnect: larder finishes the fetch"
rm -rf -- "$LARDER_CACHE"
larder_start
"${CURL[@]}" -o "$CASE_DIR/tmp/left" "$BLOB" &
leaving=$!
wait_until 15 "the first MiB" at_least_bytes "$CASE_DIR/tmp/left" 1048576
kill "$leaving"
wait "$leaving" 2>/dev/null || true
absent "the incomplete blob" "$(cached_blob "$BIG_LAYER")"
wait_until 30 "the blob in the cache after its only client disconnected" test -f "$(cached_blob "$BIG_LAYER")"
same_bytes "the blob in the cache" "$ORIGINAL" "$(cached_blob "$BIG_LAYER")"
equal "blob GETs at the upstream" 2 "$(registry_requests "GET /v2/demo/big/blobs/$BIG_LAYER")"
larder_stop
