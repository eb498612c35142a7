# Proves bearer tokens with docker-registry and a token server that signs them: with user and password, without where the
# token server lets everybody pull, refused at once and said once with a wrong password, renewed when they have expired, in
# the middle of a blob as well. What was pulled is served without either, and no secret is told.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# How long a client waits to hear that larder's credentials are refused.
readonly REFUSAL_LIMIT=3
readonly CLIENT_USER=puller
readonly PASSWORD='right-h0rse battery#staple'
readonly WRONG='wr0ng-h0rse battery#staple'

# Every pull by tag asks upstream, so that what is served without it is served *because* it is gone.
TAG_TTL=0
# What larder says of itself at its most talkative is to be no secret either.
LOG_LEVEL=debug

# ---- The token server and the registry ---------------------------------------------------------------------------------

readonly TOKENS="$CASE_DIR/tokens"
mkdir -p "$TOKENS"
openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 2 -subj '/CN=e2e-tokens' \
  -keyout "$TOKENS/key.pem" -out "$TOKENS/cert.pem" 2>/dev/null
printf '%s\n' "$CLIENT_USER:$PASSWORD:demo/hello demo/multi demo/big library/hello" '::library/hello' >"$TOKENS/users"
# For how many seconds a token is good.
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
# How many tokens were given to whom, or refused.
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
# It answers, if only that a token is wanted.
wants_token() { # PORT
  [[ $(curl -sS --max-time 2 -o /dev/null -w '%{http_code}' "http://127.0.0.1:$1/v2/") == 401 ]]
}
start_server registry env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/registry.yml"
wait_for_server registry wants_token "$REGISTRY_PORT"
readonly REGISTRY="127.0.0.1:$REGISTRY_PORT"

# The registry behind a slow link, for what takes longer than a token is good.
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

# Every answer of larder's is kept for a look at what it tells.
readonly ANSWERS="$CASE_DIR/answers"
ask() { # PATH
  get "$LARDER_URL/v2/$1" --max-time "$REFUSAL_LIMIT"
  cat -- "$HEAD_FILE" "$BODY_FILE" >>"$ANSWERS"
}
readonly THROUGH="127.0.0.1:$LARDER_PORT"

step "the registry gives nothing without a token, and skopeo everything with one"
get "http://$REGISTRY/v2/demo/hello/manifests/v1"
expect_status "the registry, without a token" 401
matches "its challenge" "^Bearer realm=\"$REALM\"" "$(header WWW-Authenticate)"
for image in hello:v1 multi:v1 big:v1; do
  copy "$REGISTRY/demo/$image" "direct-$image" --all --src-creds "$CLIENT_USER:$PASSWORD"
done
copy "$REGISTRY/library/hello:v1" direct-library --src-no-creds
must_fail "skopeo without credentials" copy "$REGISTRY/demo/hello:v1" nothing --src-no-creds

# ---- Nobody in particular ----------------------------------------------------------------------------------------------

step "without credentials: what is public is pulled, and nothing else"
: >"$LOGS/tokens.log"
copy "$THROUGH/none.test/library/hello:v1" public
same_tree "a public image" "$CASE_DIR/direct-library" "$CASE_DIR/public"
equal "tokens for one image" 1 "$(tokens 200 -)"
ask none.test/demo/hello/manifests/v1
matches "an image that is not public" '^(403|404)$' "$STATUS"
# The token server may as well want a password from everybody.
sed -i '/^::/d' "$TOKENS/users"
ask none.test/demo/multi/manifests/v1
expect_status "a token server that lets nobody in without a password" 403
equal "the code" DENIED "$(error_code)"
printf '::library/hello\n' >>"$TOKENS/users"

# ---- User and password -------------------------------------------------------------------------------------------------

step "a wrong password is refused at once, and that is said once"
for _ in {1..3}; do
  ask wrong.test/demo/hello/manifests/v1
  expect_status "a manifest" 403
  equal "the code" DENIED "$(error_code)"
  ask "wrong.test/demo/big/blobs/$BIG_CONFIG"
  expect_status "a blob" 404
done
equal "lines that the credentials are refused" 1 \
  "$(larder_lines '\[WARN\] wrong\.test: the credentials in registries\[\]\.auth are refused')"
equal "warnings in all" 1 "$(larder_lines '\[(WARN|ERROR)\]')"
(($(tokens 401 "$CLIENT_USER") > 0)) || fail "the token server has not refused anything"
must_fail "skopeo" copy "$THROUGH/wrong.test/demo/hello:v1" nothing

step "the right one: whole images, and one token for each repository"
: >"$LOGS/tokens.log"
for image in hello:v1 multi:v1 big:v1; do
  copy "$THROUGH/password.test/demo/$image" "through-$image" --all
  same_tree "$image" "$CASE_DIR/direct-$image" "$CASE_DIR/through-$image"
done
equal "tokens for three repositories" 3 "$(tokens 200 "$CLIENT_USER")"
equal "what the token server is asked for" 1 "$(grep -c "^200 $CLIENT_USER repository:demo/multi:pull$" "$LOGS/tokens.log")"

# ---- Tokens that expire ------------------------------------------------------------------------------------------------

step "a token that has expired is replaced, and nobody notices"
token_life 2
larder_stop
larder_start
: >"$LOGS/tokens.log"
asked() {
  ask password.test/demo/hello/manifests/v1
  expect_status "a manifest" 200
  equal "a warning that it is unconfirmed" '' "$(header Warning)"
  (($(tokens 200 "$CLIENT_USER") >= 3))
}
wait_until 15 "two renewals" asked

step "a token expires while a blob arrives, and its link is cut: the download goes on with a new one"
rm -f -- "$(cached_blob "$BIG_LAYER")"
slow_link_start 8m
: >"$LOGS/tokens.log"
: >"$LOGS/registry.log"
copy "$THROUGH/slow.test/demo/big:v1" slow-big &
copying=$!
# Three seconds' worth.
wait_until 15 "24 MiB of the blob" holds_a_file_of "$CASE_DIR/slow-big" $((24 * 1024 * 1024))
equal "tokens so far" 1 "$(tokens 200 "$CLIENT_USER")"
stop_server link KILL
slow_link_start 64m
wait "$copying" || fail "skopeo failed"
same_tree "the image" "$CASE_DIR/direct-big:v1" "$CASE_DIR/slow-big"
(($(tokens 200 "$CLIENT_USER") > 1)) || fail "no new token was fetched"
equal "resumed GETs of the blob" 1 "$(registry_requests "GET /v2/demo/big/blobs/$BIG_LAYER HTTP/1.1\" 206 ")"

# ---- Neither -----------------------------------------------------------------------------------------------------------

step "the token server is gone, then the registry as well: what was pulled is served"
stop_server tokens
copy "$THROUGH/password.test/demo/hello:v1" no-tokens
same_tree "without the token server" "$CASE_DIR/direct-hello:v1" "$CASE_DIR/no-tokens"
registry_stop
copy "$THROUGH/password.test/demo/multi:v1" no-registry --all
same_tree "without the registry" "$CASE_DIR/direct-multi:v1" "$CASE_DIR/no-registry"
cache_is_sound
larder_stop

encoded() { printf '%s' "$CLIENT_USER:$1" | base64 -w 0; }
step "no password and no token is in the log, in an answer or in the cache"
# Each token begins alike: so does the JSON before its certificate.
printf '%s\n' "$PASSWORD" "$WRONG" "$(encoded "$PASSWORD")" "$(encoded "$WRONG")" \
  "$(printf '{"typ": "JWT", "alg": "RS256"' | base64 -w 0 | head -c 32)" >"$CASE_DIR/secrets"
[[ -s $ANSWERS ]] || fail "no answers were kept"
must_fail "a secret in larder's log" grep -nFf "$CASE_DIR/secrets" "$LARDER_LOG"
must_fail "a secret in an answer" grep -naFf "$CASE_DIR/secrets" "$ANSWERS"
must_fail "a secret in the cache" grep -rlFf "$CASE_DIR/secrets" "$LARDER_CACHE"
