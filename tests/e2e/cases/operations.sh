# Proves statements in docs/operations.md: two servers on one directory fetch a blob once for the clients of both; a new server
# listens on the port while the old one drains; and a backup that copies the names before the content is complete, despite
# concurrent pulls. In the other order it is not.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly HELLO=docker.io/library/hello:v1 HELLO_V2=docker.io/demo/hello:v2 MULTI=docker.io/demo/multi:v1
larder_() { client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --log-level error "$@"; }

registry_start
link_start 16m
larder_config "127.0.0.1:$LINK_PORT"
readonly CONTENT="/v2/demo/big/blobs/$BIG_LAYER?ns=docker.io"

# Starts another server on the same directory.
another() { # NAME PORT
  start_server "$1" "${OFFLINE[@]}" "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$LARDER_CACHE" \
    serve --host 127.0.0.1 --port "$2"
  wait_for_server "$1" curl -fsS --max-time 2 "http://127.0.0.1:$2/v2/"
}

# ---- Two servers ---------------------------------------------------------------------------------------------------------

step "two servers on one directory: one download for the clients of both"
larder_start
SECOND_PORT=$(free_port)
another second "$SECOND_PORT"
pulls=()
for port in "$LARDER_PORT" "$SECOND_PORT"; do
  curl -fsS --max-time "$CLIENT_LIMIT" -o "$CASE_DIR/tmp/by-$port" "http://127.0.0.1:$port$CONTENT" &
  pulls+=("$!")
done
for pull in "${pulls[@]}"; do wait "$pull" || fail "a client failed with curl status $?"; done
for port in "$LARDER_PORT" "$SECOND_PORT"; do
  same_bytes "the layer from port $port" "$(registry_blob_file "$BIG_LAYER")" "$CASE_DIR/tmp/by-$port"
done
# Both servers may send a request at the same time. The second one to get a response reads what the first writes, and closes
# its connection.
size=$(stat -c %s "$(registry_blob_file "$BIG_LAYER")")
sent=$(link_bytes "/v2/demo/big/blobs/$BIG_LAYER")
((sent >= size && sent < size + size / 8)) || fail "the registry sent $sent bytes of a layer of $size bytes"
stop_server second
equal "the second server's exit status" 0 "$STOPPED_WITH"

# ---- Replacement of a server ---------------------------------------------------------------------------------------------

step "a new server listens on the port while the old one drains"
curl -fsS --max-time "$CLIENT_LIMIT" --limit-rate 10M -o "$CASE_DIR/tmp/drained" "$LARDER_URL$CONTENT" &
reader=$!
wait_until 15 "the first MiB" at_least_bytes "$CASE_DIR/tmp/drained" 1048576
kill -TERM "${SERVER_PID[larder]}"
larder_logged "that it drains" 'draining; .* signal=SIGTERM'
refuses() { ! curl -fsS --max-time 2 "$LARDER_URL/v2/"; }
wait_until 5 "the port is free" refuses
another successor "$LARDER_PORT"
is_running "${SERVER_PID[larder]}" || fail "the old server exited before the new one served"
status=0
wait "$reader" || status=$?
equal "curl's exit status for the old server" 0 "$status"
same_bytes "the layer that was being sent" "$(registry_blob_file "$BIG_LAYER")" "$CASE_DIR/tmp/drained"
larder_stop
stop_server successor

# ---- Commands run by root -------------------------------------------------------------------------------------------------

step "files that root loads into another user's cache belong to that user"
readonly THEIRS="$CASE_DIR/theirs"
chmod a+x "$E2E_WORK" "$CASE_DIR"
install -d -o 65532 -g 65532 -m 750 "$THEIRS"
larder_ --image-path "$THEIRS" load "$HELLO"
client "$E2E_LARDER" --image-path "$THEIRS" pin "$HELLO"
cp "$E2E_LARDER" "$CASE_DIR/larder"
chmod a+rx "$CASE_DIR/larder" "$CASE_DIR/larder.yaml"
start_server theirs "${OFFLINE[@]}" setpriv --reuid 65532 --regid 65532 --clear-groups "$CASE_DIR/larder" \
  --config-file "$CASE_DIR/larder.yaml" --image-path "$THEIRS" serve --host 127.0.0.1 --port "$LARDER_PORT"
wait_for_server theirs curl -fsS --max-time 2 "$LARDER_URL/v2/"
copy "127.0.0.1:$LARDER_PORT/$HELLO" theirs-v1
larder_ --image-path "$THEIRS" load "$HELLO_V2"
copy "127.0.0.1:$LARDER_PORT/$MULTI" theirs-multi
stop_server theirs
equal "files that do not belong to the user" "" "$(find "$THEIRS" ! -user 65532 -o ! -group 65532)"
must_fail "a warning in the log" grep -qE 'WARN|ERROR|denied' "$LOGS/theirs.log"

# ---- Backups -------------------------------------------------------------------------------------------------------------

readonly GOOD="$CASE_DIR/names-first" BAD="$CASE_DIR/content-first"
mkdir "$GOOD" "$BAD"
copy_to() { # TO ENTRY…
  local to=$1
  shift
  (cd "$LARDER_CACHE" && tar -cf - "$@") | tar -C "$to" -xf -
}

step "names, then content: an image pulled in between is not named, and all named images are complete"
larder_ --image-path "$LARDER_CACHE" load "$HELLO"
copy_to "$GOOD" oci-layout index.json refs
larder_ --image-path "$LARDER_CACHE" load "$HELLO_V2"
copy_to "$GOOD" blobs
client "$E2E_LARDER" --log-level error --image-path "$GOOD" verify >"$CASE_DIR/output"
grep -qE '^1 image, 0 incomplete; 0 damaged blobs$' "$CASE_DIR/output" || fail "verify printed: $(cat "$CASE_DIR/output")"

step "content, then names: an image pulled in between has no manifest"
copy_to "$BAD" blobs
larder_ --image-path "$LARDER_CACHE" load "$MULTI"
copy_to "$BAD" oci-layout index.json refs
status=0
client "$E2E_LARDER" --log-level error --image-path "$BAD" verify >"$CASE_DIR/output" || status=$?
equal "the exit code of verify" 1 "$status"
grep -qE "^$MULTI: manifest $MULTI_DIGEST is missing$" "$CASE_DIR/output" || fail "verify printed: $(cat "$CASE_DIR/output")"

step "larder serves the good copy without a registry"
link_cut
registry_stop
start_server larder "${OFFLINE[@]}" "$E2E_LARDER" --image-path "$GOOD" serve --air-gapped --host 127.0.0.1 --port "$LARDER_PORT"
wait_for_server larder curl -fsS --max-time 2 "$LARDER_URL/v2/"
copy "127.0.0.1:$LARDER_PORT/$HELLO" hello
equal "the digest" "$HELLO_DIGEST" "sha256:$(sha256sum <"$CASE_DIR/hello/manifest.json" | cut -d ' ' -f 1)"
larder_stop
