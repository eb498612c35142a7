# Proves bearer tokens with docker-registry and a token server that signs them: with user and password, and without them for
# public images. With a wrong password pulls fail immediately, and the log has one line. Expired tokens are renewed, also in the
# middle of a blob. Cached content is served without the registry and the token server, and no secret is exposed.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# The time limit for an error response when the token server rejects larder's credentials.
readonly ERROR_LIMIT=3
readonly CLIENT_USER=puller
readonly PASSWORD='right-h0rse battery#staple'
readonly WRONG='wr0ng-h0rse battery#staple'

# Every pull by tag checks the upstream, so content that is served without the upstream comes from the cache.
TAG_TTL=0
# The debug log must not contain secrets either.
LOG_LEVEL=debug

# ---- The token server and the registry ---------------------------------------------------------------------------------

readonly TOKENS="$CASE_DIR/tokens"
mkdir -p "$TOKENS"
openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 2 -subj '/CN=e2e-tokens' \
  -keyout "$TOKENS/key.pem" -out "$TOKENS/cert.pem" 2>/dev/null
printf '%s\n' "$CLIENT_USER:$PASSWORD:demo/hello demo/multi demo/big library/hello" '::library/hello' >"$TOKENS/users"
# Sets how many seconds tokens are valid.
token_life() {
  printf '%s\n' "$1" >"$TOKENS/life.new"
  mv "$TOKENS/life.new" "$TOKENS/life"
}
token_life 300
TOKEN_PORT=$(free_port)
readonly REALM="http://127.0.0.1:$TOKEN_PORT/token"
start_server tokens python3 "${BASH_SOURCE[0]%/*}/../token-server.py" \
  "$TOKEN_PORT" "$TOKENS/key.pem" "$TOKENS/cert.pem" "$TOKENS"
wait_for_server tokens curl -fsS --max-time 2 "$REALM?service=e2e"
# Counts the responses of the token server by status and user.
tokens() { # STATUS USER
  grep -cE "^$1 $2( |$)" "$LOGS/tokens.log" || true
}

REGISTRY_PORT=$(free_port)
cat >"$CASE_DIR/registry.yml" <<YAML
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $SAMPLES/registry}
http: {addr: "127.0.0.1:$REGISTRY_PORT", secret: e2e}
auth:
  token: {realm: "$REALM", service: e2e, issuer: e2e-tokens, rootcertbundle: $TOKENS/cert.pem}
YAML
# Succeeds if the registry answers that it requires a token.
wants_token() { # PORT
  [[ $(curl -sS --max-time 2 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$1/v2/") == 401 ]]
}
start_server registry env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/registry.yml"
wait_for_server registry wants_token "$REGISTRY_PORT"
readonly REGISTRY="127.0.0.1:$REGISTRY_PORT"

# Starts a slow link to the registry, for downloads that take longer than a token is valid.
LINK_PORT=$(free_port)
slow_link_start() {
  nginx_start link "server {
    listen 127.0.0.1:$LINK_PORT;
    location / {
      proxy_pass http://127.0.0.1:$REGISTRY_PORT;
      proxy_http_version 1.1;
      proxy_max_temp_file_size 0;
      limit_rate $1;
    }
  }" wants_token "$LINK_PORT"
}

# ---- Larder ------------------------------------------------------------------------------------------------------------

readonly PASSWORD_FILE="$CASE_DIR/password" WRONG_FILE="$CASE_DIR/wrong"
printf '%s\n' "$PASSWORD" >"$PASSWORD_FILE"
printf '%s\n' "$WRONG" >"$WRONG_FILE"
cat >"$CASE_DIR/larder.yaml" <<YAML
# The case follows one request per blob.
connectionsPerBlob: 1
registries:
  - name: none.test
    endpoints: ["http://$REGISTRY"]
  - name: password.test
    endpoints: ["http://$REGISTRY"]
    auth: {user: $CLIENT_USER, passwordFile: $PASSWORD_FILE}
  - name: wrong.test
    endpoints: ["http://$REGISTRY"]
    auth: {user: $CLIENT_USER, passwordFile: $WRONG_FILE}
  - name: slow.test
    endpoints: ["http://127.0.0.1:$LINK_PORT"]
    auth: {user: $CLIENT_USER, passwordFile: $PASSWORD_FILE}
tagTtl: '$TAG_TTL'
revalidateTimeout: 2s
YAML
larder_start

# Sends a request to larder, and keeps the response for the search for secrets.
readonly RESPONSES="$CASE_DIR/responses"
ask() { # PATH
  get "$LARDER_URL/v2/$1" --max-time "$ERROR_LIMIT"
  cat -- "$HEAD_FILE" "$BODY_FILE" >>"$RESPONSES"
}
readonly THROUGH="127.0.0.1:$LARDER_PORT"

step "the registry requires a token, and skopeo copies with one"
get "http://$REGISTRY/v2/demo/hello/manifests/v1"
expect_status "the registry, without a token" 401
matches "its challenge" "^Bearer realm=\"$REALM\"" "$(header WWW-Authenticate)"
for image in hello:v1 multi:v1 big:v1; do
  copy "$REGISTRY/demo/$image" "direct-$image" --all --src-creds "$CLIENT_USER:$PASSWORD"
done
copy "$REGISTRY/library/hello:v1" direct-library --src-no-creds
must_fail "skopeo without credentials" copy "$REGISTRY/demo/hello:v1" nothing --src-no-creds

# ---- Without credentials -----------------------------------------------------------------------------------------------

step "without credentials only public images can be pulled"
: >"$LOGS/tokens.log"
copy "$THROUGH/none.test/library/hello:v1" public
same_tree "a public image" "$CASE_DIR/direct-library" "$CASE_DIR/public"
equal "tokens for one image" 1 "$(tokens 200 -)"
ask none.test/demo/hello/manifests/v1
matches "an image that is not public" '^(403|404)$' "$STATUS"
# A token server may also require a password for all requests.
sed -i '/^::/d' "$TOKENS/users"
ask none.test/demo/multi/manifests/v1
expect_status "a token server that always requires a password" 403
equal "the code" DENIED "$(error_code)"
printf '::library/hello\n' >>"$TOKENS/users"

# ---- User and password -------------------------------------------------------------------------------------------------

step "with a wrong password pulls fail immediately, and the log has one line"
for _ in {1..3}; do
  ask wrong.test/demo/hello/manifests/v1
  expect_status "a manifest" 403
  equal "the code" DENIED "$(error_code)"
  ask "wrong.test/demo/big/blobs/$BIG_CONFIG"
  expect_status "a blob" 404
done
equal "log lines that the credentials are rejected" 1 \
  "$(larder_lines 'WARN  the credentials for an endpoint are refused upstream=wrong\.test ')"
equal "all warnings" 1 "$(larder_lines ' (WARN|ERROR) ')"
(($(tokens 401 "$CLIENT_USER") > 0)) || fail "the token server has not rejected a request"
must_fail "skopeo with the wrong password" copy "$THROUGH/wrong.test/demo/hello:v1" nothing

step "with the right password: complete images, and one token for each repository"
: >"$LOGS/tokens.log"
for image in hello:v1 multi:v1 big:v1; do
  copy "$THROUGH/password.test/demo/$image" "through-$image" --all
  same_tree "$image" "$CASE_DIR/direct-$image" "$CASE_DIR/through-$image"
done
equal "tokens for three repositories" 3 "$(tokens 200 "$CLIENT_USER")"
equal "requests for the scope of demo/multi" 1 "$(grep -c "^200 $CLIENT_USER repository:demo/multi:pull$" "$LOGS/tokens.log")"

# ---- Tokens that expire ------------------------------------------------------------------------------------------------

step "an expired token is renewed, and the client does not notice"
token_life 2
larder_stop
larder_start
: >"$LOGS/tokens.log"
has_renewed() {
  ask password.test/demo/hello/manifests/v1
  expect_status "a manifest" 200
  equal "the Warning of a stale response" '' "$(header Warning)"
  (($(tokens 200 "$CLIENT_USER") >= 3))
}
wait_until 15 "two renewals" has_renewed

step "a token expires during a download, and the link is cut: the download continues with a new token"
rm -f -- "$(cached_blob "$BIG_LAYER")"
slow_link_start 8m
: >"$LOGS/tokens.log"
: >"$LOGS/registry.log"
copy "$THROUGH/slow.test/demo/big:v1" slow-big &
copying=$!
# This takes three seconds.
wait_until 15 "24 MiB of the blob" holds_a_file_of "$CASE_DIR/slow-big" $((24 * 1024 * 1024))
before=$(tokens 200 "$CLIENT_USER")
stop_server link KILL
slow_link_start 64m
wait "$copying" || fail "skopeo failed"
same_tree "the image" "$CASE_DIR/direct-big:v1" "$CASE_DIR/slow-big"
(($(tokens 200 "$CLIENT_USER") > before)) || fail "no new token was fetched"
equal "resumed GETs of the blob" 1 "$(registry_requests "GET /v2/demo/big/blobs/$BIG_LAYER HTTP/1.1\" 206 ")"

# ---- Without token server and registry ---------------------------------------------------------------------------------

step "the token server stops, then the registry: cached content is served"
stop_server tokens
copy "$THROUGH/password.test/demo/hello:v1" no-tokens
same_tree "without the token server" "$CASE_DIR/direct-hello:v1" "$CASE_DIR/no-tokens"
registry_stop
copy "$THROUGH/password.test/demo/multi:v1" no-registry --all
same_tree "without the registry" "$CASE_DIR/direct-multi:v1" "$CASE_DIR/no-registry"
cache_is_sound
larder_stop

encoded() { printf '%s' "$CLIENT_USER:$1" | base64 -w 0; }
step "no password and no token is in the log, in a response or in the cache"
# All tokens start with the same bytes, because the JSON before the certificate is the same.
printf '%s\n' "$PASSWORD" "$WRONG" "$(encoded "$PASSWORD")" "$(encoded "$WRONG")" \
  "$(printf '{"typ": "JWT", "alg": "RS256"' | base64 -w 0 | head -c 32)" >"$CASE_DIR/secrets"
[[ -s $RESPONSES ]] || fail "no responses were kept"
must_fail "a secret in larder's log" grep -nFf "$CASE_DIR/secrets" "$LARDER_LOG"
must_fail "a secret in a response" grep -naFf "$CASE_DIR/secrets" "$RESPONSES"
must_fail "a secret in the cache" grep -rlFf "$CASE_DIR/secrets" "$LARDER_CACHE"
