# Proves redirects to an object store: a registry with user and password redirects every GET of a blob to a store on another
# port, with a signature in the query. Images are complete, the store never gets the password, and the log never contains the
# signature. If the store is cut in the middle of a blob, larder gets a new redirect, and the client does not notice.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly CLIENT_USER=puller PASSWORD=right-h0rse
SIGNATURE=s1gned-by-the-gate
# The debug log must not contain secrets either.
LOG_LEVEL=debug

# ---- The registry, the gate in front of it, and the store --------------------------------------------------------------

registry_start
STORE_PORT=$(free_port)
GATE_PORT=$(free_port)
readonly GATE="127.0.0.1:$GATE_PORT" GATE_LOG="$LOGS/gate-access.log" STORE_LOG="$LOGS/store-access.log"

# Serves the blobs as files at RATE bytes per second. Like an object store, it requires a signature.
store_start() { # RATE
  nginx_start store "
  log_format shown '\$status authorization=<\$http_authorization> range=<\$http_range> \$request';
  server {
    listen 127.0.0.1:$STORE_PORT;
    access_log $STORE_LOG shown;
    root $REGISTRY_STORAGE;
    limit_rate $1;
    location = /ready { return 204; }
    location / {
      if (\$arg_sig !~ ^$SIGNATURE-[0-9a-f]+\$) { return 403; }
    }
  }" curl -fsS --max-time 2 "http://127.0.0.1:$STORE_PORT/ready"
}

# Each redirect has its own signature. The gate checks the password before it redirects.
htpasswd -Bbc "$CASE_DIR/htpasswd" "$CLIENT_USER" "$PASSWORD" 2>/dev/null
# shellcheck disable=SC2016  # expanded by nginx
nginx_start gate '
  log_format shown "$status authorization=<$http_authorization> $request";
  server {
    listen '"$GATE"';
    access_log '"$GATE_LOG"' shown;
    auth_basic e2e;
    auth_basic_user_file '"$CASE_DIR/htpasswd"';
    location / { proxy_pass http://127.0.0.1:'"$REGISTRY_PORT"'; }
    location ~ "^/v2/.+/blobs/sha256:(?<two>..)(?<rest>.+)$" {
      # `return` here would skip the password check, so redirect through try_files.
      try_files /nothing @store;
    }
    location @store {
      set $file /docker/registry/v2/blobs/sha256/$two/$two$rest/data;
      return 307 http://127.0.0.1:'"$STORE_PORT"'$file?sig='"$SIGNATURE"'-$request_id;
    }
  }' curl -fsS --max-time 2 -u "$CLIENT_USER:$PASSWORD" "http://$GATE/v2/"
store_start 64m

step "the store requires a signature, and the gate the password"
readonly FILE="docker/registry/v2/blobs/sha256/${HELLO_LAYER:7:2}/${HELLO_LAYER:7}/data"
get "http://127.0.0.1:$STORE_PORT/$FILE"
expect_status "the store, without a signature" 403
get "http://$GATE/v2/demo/hello/blobs/$HELLO_LAYER"
expect_status "the gate, without the password" 401
get "http://$GATE/v2/demo/hello/blobs/$HELLO_LAYER" -u "$CLIENT_USER:$PASSWORD"
expect_status "the gate" 307
matches "the redirect" "^http://127\.0\.0\.1:$STORE_PORT/$FILE\?sig=$SIGNATURE-" "$(header Location)"
: >"$GATE_LOG"
: >"$STORE_LOG"

# ---- Larder ------------------------------------------------------------------------------------------------------------

printf '%s\n' "$PASSWORD" >"$CASE_DIR/password"
cat >"$CASE_DIR/larder.yaml" <<YAML
# The case follows one request per blob.
connectionsPerBlob: 1
registries:
  - name: gate.test
    endpoints: ["http://$GATE"]
    auth: {user: $CLIENT_USER, passwordFile: $CASE_DIR/password}
YAML
larder_start

readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT" THROUGH="127.0.0.1:$LARDER_PORT/gate.test"

step "pull complete images, with all blobs from the store"
copy "$UPSTREAM/demo/hello:v1" direct-hello
copy "$UPSTREAM/demo/multi:v1" direct-multi --all
copy "$UPSTREAM/demo/big:v1" direct-big
: >"$LOGS/registry.log"
copy "$THROUGH/demo/hello:v1" through-hello
same_tree "demo/hello" "$CASE_DIR/direct-hello" "$CASE_DIR/through-hello"
copy "$THROUGH/demo/multi:v1" through-multi --all
same_tree "demo/multi" "$CASE_DIR/direct-multi" "$CASE_DIR/through-multi"
equal "blobs from the registry itself" 0 "$(registry_requests 'GET /v2/.*/blobs/')"

# ---- The store is cut --------------------------------------------------------------------------------------------------

# Prints larder's requests to the store as `STATUS range=<…> signature` lines.
store_gets() { # DIGEST
  sed -nE "s,^([0-9]+) .*(range=<[^>]*>) GET /.*/${1#sha256:}/data\?sig=([^ ]*) .*,\1 \2 \3,p" "$STORE_LOG"
}
step "the store is cut in the middle of a blob and comes back: a new redirect, and the client does not notice"
stop_server store
store_start 8m
copy "$THROUGH/demo/big:v1" through-big &
copying=$!
wait_until 15 "the first MiB of the blob" holds_a_file_of "$CASE_DIR/through-big" 1048576
stop_server store KILL
wait_until 5 "larder's retry" grep -qE "WARN  download interrupted; it is resumed digest=$BIG_LAYER received=[1-9][0-9.]*(bytes?|[kMG]B) " "$LARDER_LOG"
store_start 64m
wait "$copying" || fail "skopeo failed"
same_tree "demo/big" "$CASE_DIR/direct-big" "$CASE_DIR/through-big"
# A killed store logs no line for the response that it was sending.
matches "the store's response after the cut" "^206 range=<bytes=[1-9][0-9]*-> $SIGNATURE-[0-9a-f]+\$" \
  "$(store_gets "$BIG_LAYER")"
redirects=$(grep -cE "^307 .* GET /v2/demo/big/blobs/$BIG_LAYER " "$GATE_LOG" || true)
((redirects >= 2)) || fail "only $redirects redirects for the interrupted blob"

# ---- The store is unavailable ------------------------------------------------------------------------------------------

readonly RESPONSES="$CASE_DIR/responses"
# Manifests from the registry succeed, blobs from the store fail, and the log names the store.
without_store() { # WHAT REGEX
  get "$LARDER_URL/v2/gate.test/demo/hello/manifests/v2"
  expect_status "a manifest, $1" 200
  get "$LARDER_URL/v2/gate.test/demo/hello/blobs/$HELLO_V2_LAYER" --max-time 5
  matches "a blob, $1" '^(404|503)$' "$STATUS"
  cat -- "$HEAD_FILE" "$BODY_FILE" >>"$RESPONSES"
  larder_logged "the store, $1" "GET http://127\.0\.0\.1:$STORE_PORT/docker/registry/[^ ?]*/data: $2"
}
step "errors of the store are logged without the signature"
stop_server store
without_store "the store is down" 'cannot be reached'
larder_stop
SIGNATURE=another store_start 64m
larder_start
without_store "the signature is rejected" '.*403'
cache_is_sound
larder_stop

# ---- Secrets -----------------------------------------------------------------------------------------------------------

step "the gate got the password with each blob, the store never did"
ENCODED=$(printf '%s' "$CLIENT_USER:$PASSWORD" | base64 -w 0)
equal "redirects without the password" 0 "$(grep '^307 ' "$GATE_LOG" | grep -vcF "authorization=<Basic $ENCODED>" || true)"
(($(grep -c '^20[06] ' "$STORE_LOG") >= 6)) || fail "the store got too few requests"
must_fail "authorization at the store" grep -v ' authorization=<-> ' "$STORE_LOG"

step "no signature and no password is in the log, in a response or in the cache"
printf '%s\n' "$SIGNATURE" "$PASSWORD" "$ENCODED" >"$CASE_DIR/secrets"
must_fail "a secret in larder's log" grep -naFf "$CASE_DIR/secrets" "$LARDER_LOG"
[[ -s $RESPONSES ]] || fail "no responses were kept"
must_fail "a secret in a response" grep -naFf "$CASE_DIR/secrets" "$RESPONSES"
must_fail "a secret in the cache" grep -rlFf "$CASE_DIR/secrets" "$LARDER_CACHE"
