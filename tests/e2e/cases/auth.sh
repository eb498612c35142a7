# Proves registries[].auth against a registry that wants user and password: from the configuration, the environment, a file
# that changes while larder runs, and what `skopeo login` writes. Wrong ones are refused at once and said once, never cost
# what is cached, and are found neither in the log, nor in an answer, nor in the cache.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# How long a client waits to hear that larder's credentials are refused.
readonly REFUSAL_LIMIT=3
readonly CLIENT_USER=puller
# With a colon, which ends the user's name only, and with what YAML and the shell take for theirs.
readonly PASSWORD='right: h0rse "battery" #staple'
readonly WRONG='wr0ng: h0rse "battery" #staple'

# Every pull by tag asks upstream, so that what is served without it is served *because* it is gone.
TAG_TTL=0
# What larder says of itself at its most talkative is to be no secret either.
LOG_LEVEL=debug

# ---- The registry, larder, and their clients ---------------------------------------------------------------------------

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

# One entry for each way to give credentials, all for the same registry. dockerConfig goes by the registry's own address,
# since that is what a login notes.
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

# Asks larder, and keeps every answer for a look at what it tells.
readonly ANSWERS="$CASE_DIR/answers"
ask() { # REGISTRY PATH
  get "$LARDER_URL/v2/$1/$2" --max-time "$REFUSAL_LIMIT"
  cat -- "$HEAD_FILE" "$BODY_FILE" >>"$ANSWERS"
}
pulled() { # REGISTRY PATH
  ask "$1" "$2"
  expect_status "$1: $2" 200
}
# The whole image, by tag and by digest.
readonly IMAGE=("manifests/v1" "manifests/$HELLO_DIGEST" "blobs/$HELLO_CONFIG" "blobs/$HELLO_LAYER")
image_pulled() { # REGISTRY
  local path
  for path in "${IMAGE[@]}"; do
    pulled "$1" "demo/hello/$path"
  done
}
# 403 for a manifest; a blob never gets one, since clients take it for final.
denied() { # REGISTRY
  ask "$1" demo/hello/manifests/v2
  expect_status "$1: a manifest" 403
  equal "the code" DENIED "$(error_code)"
  ask "$1" "demo/big/blobs/$BIG_CONFIG"
  expect_status "$1: a blob" 404
}

step "the registry lets nobody in without the password; a login by skopeo is written down"
protected_registry_start
get "http://$REGISTRY/v2/demo/hello/manifests/v1"
expect_status "the registry, without credentials" 401
skopeo_ login --tls-verify=false --authfile "$DOCKER_CONFIG_FILE" -u "$CLIENT_USER" -p "$PASSWORD" "$REGISTRY"
copy "$REGISTRY/demo/hello:v1" direct --src-authfile "$DOCKER_CONFIG_FILE"

# ---- Start -------------------------------------------------------------------------------------------------------------

# `larder serve` refuses to start: status 2, and it says why.
no_start() { # WHAT REGEX
  local status=0
  client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" --image-path "$CASE_DIR/none" \
    serve --host 127.0.0.1 --port 0 >"$CASE_DIR/tmp/said" 2>&1 || status=$?
  cat -- "$CASE_DIR/tmp/said" >>"$ANSWERS"
  equal "$1: the exit status" 2 "$status"
  matches "$1: what it says" "$2" "$(<"$CASE_DIR/tmp/said")"
}

step "what contradicts itself or is not there is said at start"
auth_config
no_start "a variable that is not set" 'env\.test.*LARDER_E2E_PASSWORD'
export LARDER_E2E_PASSWORD=$PASSWORD
cat >"$CASE_DIR/larder.yaml" <<YAML
registries: [{name: two.test, auth: {user: u, password: '$PASSWORD', passwordFile: /nowhere}}]
YAML
no_start "two sources" 'two\.test.*password.*passwordFile'

# ---- Refused -----------------------------------------------------------------------------------------------------------

step "without credentials nothing is pulled"
auth_config
printf '%s\n' "$WRONG" >"$PASSWORD_FILE"
larder_start
denied none.test

refusals() { larder_lines "\[WARN\] $1: the credentials in registries\[\]\.auth are refused"; }
step "wrong credentials are refused at once, and that is said once"
for registry in wrong.test file.test; do
  for _ in {1..3}; do
    denied "$registry"
  done
  equal "lines that $registry refuses the credentials" 1 "$(refusals "$registry")"
done

# ---- Let in ------------------------------------------------------------------------------------------------------------

step "user and password, passwordFromEnv, dockerConfig"
for registry in password.test env.test "$REGISTRY"; do
  image_pulled "$registry"
done

step "the right passwordFile counts at once"
printf '%s\n' "$PASSWORD" >"$PASSWORD_FILE.new"
mv "$PASSWORD_FILE.new" "$PASSWORD_FILE"
image_pulled file.test

step "a whole image by skopeo, which has no credentials itself"
must_fail "skopeo without credentials" copy "$REGISTRY/demo/hello:v1" "nothing" --src-no-creds
copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/multi:v1" through-multi --all --src-no-creds
copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello:v1" through --src-no-creds
same_tree "through larder" "$CASE_DIR/direct" "$CASE_DIR/through"

# ---- Let in no longer --------------------------------------------------------------------------------------------------

step "passwordFile turns wrong, then away: what is cached is served, and no more"
printf '%s\n' "$WRONG" >"$PASSWORD_FILE"
image_pulled file.test
denied file.test
rm -f -- "$PASSWORD_FILE"
image_pulled file.test
denied file.test
ask file.test demo/hello/manifests/v2
matches "what is told of it" 'passwordFile' "$(jq -r '.errors[0].message' "$BODY_FILE")"

step "the registry is stopped: what was pulled is served"
registry_stop
for registry in password.test env.test file.test "$REGISTRY"; do
  image_pulled "$registry"
done
copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello:v1" stopped --src-no-creds
same_tree "without the registry" "$CASE_DIR/direct" "$CASE_DIR/stopped"
ask none.test demo/hello/manifests/v1
matches "what was never allowed" '^(403|404|502|503)$' "$STATUS"
cache_is_sound
larder_stop

# ---- Secrets -----------------------------------------------------------------------------------------------------------

encoded() { printf '%s' "$CLIENT_USER:$1" | base64 -w 0; }
step "no password is in the log, in an answer or in the cache"
[[ -s $ANSWERS ]] || fail "no answers were kept"
printf '%s\n' "$PASSWORD" "$WRONG" "$(encoded "$PASSWORD")" "$(encoded "$WRONG")" 'h0rse' >"$CASE_DIR/secrets"
grep -qFf "$CASE_DIR/secrets" "$CASE_DIR/larder.yaml" || fail "the search finds no secrets at all"
must_fail "a secret in larder's log" grep -nFf "$CASE_DIR/secrets" "$LARDER_LOG"
must_fail "a secret in an answer" grep -naFf "$CASE_DIR/secrets" "$ANSWERS"
must_fail "a secret in the cache" grep -rlFf "$CASE_DIR/secrets" "$LARDER_CACHE"
