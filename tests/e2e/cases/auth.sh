# Proves registries[].auth with a registry that requires user and password: from the configuration, the environment, a file
# that changes while larder runs, and the file that `skopeo login` writes. With wrong credentials requests fail immediately,
# the log has one line, and cached content is still served. No credentials appear in the log, a response or the cache.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# The time limit for an error response when the registry rejects larder's credentials.
readonly ERROR_LIMIT=3
readonly CLIENT_USER=puller
# With a colon, which separates only the user name, and with special characters of YAML and the shell.
readonly PASSWORD='right: h0rse "battery" #staple'
readonly WRONG='wr0ng: h0rse "battery" #staple'

# Every pull by tag checks the upstream, so content that is served without the upstream comes from the cache.
TAG_TTL=0
# The debug log must not contain secrets either.
LOG_LEVEL=debug

# ---- The registry, larder and their clients ----------------------------------------------------------------------------

htpasswd -Bbn "$CLIENT_USER" "$PASSWORD" >"$CASE_DIR/htpasswd"
REGISTRY_PORT=$(free_port)
readonly REGISTRY="127.0.0.1:$REGISTRY_PORT"
cat >"$CASE_DIR/registry.yml" <<YAML
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $SAMPLES/registry}
http: {addr: "$REGISTRY", secret: e2e}
auth:
  htpasswd: {realm: e2e, path: $CASE_DIR/htpasswd}
YAML
protected_registry_start() {
  start_server registry env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/registry.yml"
  wait_for_server registry curl -fsS --max-time 2 -u "$CLIENT_USER:$PASSWORD" "http://$REGISTRY/v2/"
}

# One entry for each source of credentials, all for the same registry. The entry with dockerConfig is named by the registry's
# address, because a login stores that.
readonly PASSWORD_FILE="$CASE_DIR/password" DOCKER_CONFIG_FILE="$CASE_DIR/config.json"
auth_config() {
  cat >"$CASE_DIR/larder.yaml" <<YAML
registries:
  - name: none.test
    endpoints: ["http://$REGISTRY"]
  - name: password.test
    endpoints: ["http://$REGISTRY"]
    auth: {user: $CLIENT_USER, password: '$PASSWORD'}
  - name: wrong.test
    endpoints: ["http://$REGISTRY"]
    auth: {user: $CLIENT_USER, password: '$WRONG'}
  - name: env.test
    endpoints: ["http://$REGISTRY"]
    auth: {user: $CLIENT_USER, passwordFromEnv: LARDER_E2E_PASSWORD}
  - name: file.test
    endpoints: ["http://$REGISTRY"]
    auth: {user: $CLIENT_USER, passwordFile: $PASSWORD_FILE}
  - name: "$REGISTRY"
    scheme: http
    aliases: [$ALIAS]
    auth: {dockerConfig: $DOCKER_CONFIG_FILE}
tagTtl: '$TAG_TTL'
revalidateTimeout: 2s
YAML
}

# Sends a request to larder, and keeps the response for the search for secrets.
readonly RESPONSES="$CASE_DIR/responses"
ask() { # REGISTRY PATH
  get "$LARDER_URL/v2/$1/$2" --max-time "$ERROR_LIMIT"
  cat -- "$HEAD_FILE" "$BODY_FILE" >>"$RESPONSES"
}
pulled() { # REGISTRY PATH
  ask "$1" "$2"
  expect_status "$1: $2" 200
}
# The complete image, by tag and by digest.
readonly IMAGE=("manifests/v1" "manifests/$HELLO_DIGEST" "blobs/$HELLO_CONFIG" "blobs/$HELLO_LAYER")
image_pulled() { # REGISTRY
  local path
  for path in "${IMAGE[@]}"; do
    pulled "$1" "demo/hello/$path"
  done
}
# Manifests get 403. Blobs never do, because clients treat it as permanent.
denied() { # REGISTRY
  ask "$1" demo/hello/manifests/v2
  expect_status "$1: a manifest" 403
  equal "the code" DENIED "$(error_code)"
  ask "$1" "demo/big/blobs/$BIG_CONFIG"
  expect_status "$1: a blob" 404
}

step "the registry requires the password; skopeo login stores it"
protected_registry_start
get "http://$REGISTRY/v2/demo/hello/manifests/v1"
expect_status "the registry, without credentials" 401
skopeo_ login --tls-verify=false --authfile "$DOCKER_CONFIG_FILE" -u "$CLIENT_USER" -p "$PASSWORD" "$REGISTRY"
copy "$REGISTRY/demo/hello:v1" direct --src-authfile "$DOCKER_CONFIG_FILE"

# ---- Start -------------------------------------------------------------------------------------------------------------

# `larder serve` does not start: exit status 2, and an error.
does_not_start() { # WHAT REGEX
  local status=0
  client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$CASE_DIR/none" \
    serve --host 127.0.0.1 --port 0 >"$CASE_DIR/tmp/output" 2>&1 || status=$?
  cat -- "$CASE_DIR/tmp/output" >>"$RESPONSES"
  equal "$1: the exit status" 2 "$status"
  matches "$1: the error" "$2" "$(<"$CASE_DIR/tmp/output")"
}

step "contradictory settings and missing variables are errors at startup"
auth_config
does_not_start "a variable that is not set" 'env\.test.*LARDER_E2E_PASSWORD'
export LARDER_E2E_PASSWORD=$PASSWORD
cat >"$CASE_DIR/larder.yaml" <<YAML
registries: [{name: two.test, auth: {user: u, password: '$PASSWORD', passwordFile: /nowhere}}]
YAML
does_not_start "two sources" 'two\.test.*password.*passwordFile'

# ---- Rejected credentials ----------------------------------------------------------------------------------------------

step "without credentials pulls fail"
auth_config
printf '%s\n' "$WRONG" >"$PASSWORD_FILE"
larder_start
denied none.test

rejections() { larder_lines "WARN  the credentials for an endpoint are refused upstream=$1 "; }
step "with wrong credentials pulls fail immediately, and the log has one line"
for registry in wrong.test file.test; do
  for _ in {1..3}; do
    denied "$registry"
  done
  equal "log lines that $registry rejects the credentials" 1 "$(rejections "$registry")"
done

# ---- Accepted credentials ----------------------------------------------------------------------------------------------

step "user and password, passwordFromEnv, dockerConfig"
for registry in password.test env.test "$REGISTRY"; do
  image_pulled "$registry"
done

step "a corrected passwordFile is used immediately"
printf '%s\n' "$PASSWORD" >"$PASSWORD_FILE.new"
mv "$PASSWORD_FILE.new" "$PASSWORD_FILE"
image_pulled file.test

step "skopeo, which has no credentials, pulls complete images"
must_fail "skopeo without credentials" copy "$REGISTRY/demo/hello:v1" "nothing" --src-no-creds
copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/multi:v1" through-multi --all --src-no-creds
copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello:v1" through --src-no-creds
same_tree "through larder" "$CASE_DIR/direct" "$CASE_DIR/through"

# ---- Credentials that become invalid -----------------------------------------------------------------------------------

step "passwordFile becomes wrong, then is removed: only cached content is served"
printf '%s\n' "$WRONG" >"$PASSWORD_FILE"
image_pulled file.test
denied file.test
rm -f -- "$PASSWORD_FILE"
image_pulled file.test
denied file.test
ask file.test demo/hello/manifests/v2
matches "the error message" 'passwordFile' "$(jq -r '.errors[0].message' "$BODY_FILE")"

step "the registry is stopped: cached content is served"
registry_stop
for registry in password.test env.test file.test "$REGISTRY"; do
  image_pulled "$registry"
done
copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello:v1" stopped --src-no-creds
same_tree "without the registry" "$CASE_DIR/direct" "$CASE_DIR/stopped"
ask none.test demo/hello/manifests/v1
matches "content that was never pulled" '^(403|404|502|503)$' "$STATUS"
cache_is_sound
larder_stop

# ---- Secrets -----------------------------------------------------------------------------------------------------------

encoded() { printf '%s' "$CLIENT_USER:$1" | base64 -w 0; }
step "no password is in the log, in a response or in the cache"
[[ -s $RESPONSES ]] || fail "no responses were kept"
printf '%s\n' "$PASSWORD" "$WRONG" "$(encoded "$PASSWORD")" "$(encoded "$WRONG")" 'h0rse' >"$CASE_DIR/secrets"
grep -qFf "$CASE_DIR/secrets" "$CASE_DIR/larder.yaml" || fail "the search does not find the secrets in the configuration"
must_fail "a secret in larder's log" grep -nFf "$CASE_DIR/secrets" "$LARDER_LOG"
must_fail "a secret in a response" grep -naFf "$CASE_DIR/secrets" "$RESPONSES"
must_fail "a secret in the cache" grep -rlFf "$CASE_DIR/secrets" "$LARDER_CACHE"
