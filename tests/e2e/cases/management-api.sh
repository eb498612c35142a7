# Proves the management port: responses match docs/openapi.yaml, which schemathesis checks with generated requests; access for
# reading and for changes; and that the serving port does not offer the API.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# A version that is known to work.
readonly SCHEMATHESIS=schemathesis==4.32.5
# The time limit for schemathesis in seconds, three times what it needs, and the number of examples per operation.
readonly FUZZ_LIMIT=180 EXAMPLES=150
# Makes the generated requests reproducible.
readonly SEED=20

readonly TOKEN=e2e-token-of-the-operators
DESCRIPTION=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")/../../../docs/openapi.yaml")
MANAGEMENT_PORT=$(free_port)
HEALTH_PORT=$(free_port)
METRICS_PORT=$(free_port)
readonly DESCRIPTION MANAGEMENT_PORT HEALTH_PORT METRICS_PORT
readonly MANAGEMENT="http://127.0.0.1:$MANAGEMENT_PORT"
readonly WITH_TOKEN=(-H "Authorization: Bearer $TOKEN")

# ---- Installation of schemathesis ----------------------------------------------------------------------------------------

# Without `client`, which blocks access to the Internet.
readonly VENV="$CASE_DIR/venv"
install_schemathesis() {
  python3 -m venv "$VENV" && timeout "$CLIENT_LIMIT" "$VENV/bin/pip" install --quiet --no-input "$SCHEMATHESIS"
}
install_schemathesis >"$LOGS/install.log" 2>&1 &
installing=$!

# ---- A cache with a few images -------------------------------------------------------------------------------------------

registry_start
larder_config "127.0.0.1:$REGISTRY_PORT"
(umask 077 && printf '%s\n' "$TOKEN" >"$CASE_DIR/token")
cat >>"$CASE_DIR/larder.yaml" <<YAML
management: {port: $MANAGEMENT_PORT, tokenFile: $CASE_DIR/token}
health: $HEALTH_PORT
metrics: $METRICS_PORT
YAML
larder_start

step "pull three images"
for image in hello:v1 hello:v2 multi:v1; do
  copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/$image" "${image/:/-}"
done
readonly NAME="127.0.0.1:$REGISTRY_PORT/demo/hello:v1"
# Larder updates the list in the background.
listed() { # IMAGES
  [[ $(curl -fsS --max-time 5 "$MANAGEMENT/api/v1/images" | jq .total) == "$1" ]]
}
wait_until 60 "three images in the list" listed 3

# ---- Probes and metrics --------------------------------------------------------------------------------------------------

step "probes, metrics, the page and the API description need no token from any host"
for path in /livez /readyz /health /metrics /openapi.yaml /; do
  get "$MANAGEMENT$path" -H 'Host: larder.example'
  expect_status "$path" 200
done
get "$MANAGEMENT/openapi.yaml"
same_bytes "the description" "$DESCRIPTION" "$BODY_FILE"

rendered() { # WHAT REGEX
  grep -qE -- "$2" "$BODY_FILE" || fail "$1: no line of the metrics matches '$2'"
}
pulls_are_counted() { # URL
  get "$1/metrics"
  expect_status "the metrics" 200
  matches "the content type of metrics" '^application/openmetrics-text' "$(header Content-Type)"
  equal "the end of the metrics" '# EOF' "$(tail -n 1 "$BODY_FILE")"
  rendered "the manifest" "^larder_answers_total\{kind=\"manifest\",how=\"miss\",registry=\"127.0.0.1:$REGISTRY_PORT\"\} [1-9]"
  rendered "the requests" '^larder_requests_total\{route="blob",status="200"\} [1-9]'
  rendered "the bytes" '^larder_fetched_bytes_total [1-9]'
  rendered "the images" '^larder_images 3$'
}
step "metrics count the pulls, on the management port and on the metrics port"
pulls_are_counted "$MANAGEMENT"
pulls_are_counted "http://127.0.0.1:$METRICS_PORT"

step "the health and metrics ports serve only their own paths"
get "http://127.0.0.1:$HEALTH_PORT/health"
expect_status "/health" 200
equal "/health" UP "$(jq -r .status "$BODY_FILE")"
for path in /livez /readyz /v2/ '/health?verbose'; do
  get "http://127.0.0.1:$HEALTH_PORT$path"
  expect_status "$path of the health port" 200
done
for path in /metrics /api/v1/status / /openapi.yaml; do
  get "http://127.0.0.1:$HEALTH_PORT$path" "${WITH_TOKEN[@]}"
  expect_status "$path of the health port" 404
done
for path in /health /livez /readyz /v2/ /api/v1/status / /openapi.yaml; do
  get "http://127.0.0.1:$METRICS_PORT$path" "${WITH_TOKEN[@]}"
  expect_status "$path of the metrics port" 404
done

step "the serving port does not serve these paths"
for path in /livez /readyz /health /metrics /openapi.yaml / /page.js /api/v1/status /api/v1/images /api/v1/pins; do
  get "$LARDER_URL$path" "${WITH_TOKEN[@]}"
  expect_status "$path of the serving port" 404
done
# And the management port does not serve images.
get "$MANAGEMENT/v2/$ALIAS/demo/hello/manifests/v1" "${WITH_TOKEN[@]}"
expect_status "a manifest of the management port" 404

# ---- Access --------------------------------------------------------------------------------------------------------------

readonly READS=(status images "image?image=$NAME" blobs flights upstreams pins requests log prefetches configuration client-configuration)
readonly CHANGES=("POST pins?pattern=alpine" "DELETE pins?pattern=alpine" "POST prune?pattern=*" "POST flights/resume"
  "POST prefetch?image=$NAME" "DELETE flights?upstream=docker.io&digest=$HELLO_LAYER")
api() { # METHOD PATH [CURL OPTION…]
  local method=$1 path=$2
  shift 2
  get "$MANAGEMENT/api/v1/$path" -X "$method" "$@"
}

step "reading needs no token"
for path in "${READS[@]}"; do
  api GET "$path"
  expect_status "$path without a token" 200
  api GET "$path" "${WITH_TOKEN[@]}"
  expect_status "$path with the token" 200
done

step "an unknown parameter is rejected"
for path in "${READS[@]}"; do
  separator='?'
  [[ $path != *\?* ]] || separator='&'
  api GET "$path${separator}colour=red"
  expect_status "$path with a colour" 400
done

step "DNS rebinding and wrong tokens are rejected"
for path in "${READS[@]}"; do
  api GET "$path" -H 'Host: rebound.example'
  expect_status "$path for a foreign host" 401
  api GET "$path" -H 'Authorization: Bearer something'
  expect_status "$path with a wrong token" 401
done
get "$MANAGEMENT/health?verbose" -H 'Host: rebound.example'
expect_status "/health?verbose for a foreign host" 401
api GET status -H 'Host: rebound.example' "${WITH_TOKEN[@]}"
expect_status "status for a foreign host with the token" 200

step "changes need the token"
for change in "${CHANGES[@]}"; do
  api "${change%% *}" "${change#* }"
  expect_status "$change without a token" 401
  matches "the challenge" '^Bearer' "$(header WWW-Authenticate)"
  api "${change%% *}" "${change#* }" -H 'Authorization: Bearer something'
  expect_status "$change with a wrong token" 401
done
listed 3 || fail "an image is gone"

step "changes with the token succeed"
api POST "pins?pattern=$NAME" "${WITH_TOKEN[@]}"
expect_status "a pin" 200
api POST 'prune?pattern=*' "${WITH_TOKEN[@]}"
expect_status "a prune" 200
equal "pruned images" 2 "$(jq .removed "$BODY_FILE")"
equal "kept images" 1 "$(jq .keptPinned "$BODY_FILE")"
api DELETE "pins?pattern=$NAME" "${WITH_TOKEN[@]}"
expect_status "the removal of the pin" 200
for image in v2 v1; do
  copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello:$image" "again-$image"
done
wait_until 60 "two images in the list" listed 2

# ---- The description -----------------------------------------------------------------------------------------------------

wait "$installing" || skip "$SCHEMATHESIS cannot be installed: $(grep -m 1 -i error "$LOGS/install.log")"

# Runs all checks except those that an option excludes.
schemathesis() { # CONFIGURATION OPTION…
  local configuration=$1
  shift
  (
    # It writes files to its working directory.
    cd "$CASE_DIR"
    "${OFFLINE[@]}" timeout --kill-after=5 "$FUZZ_LIMIT" "$VENV/bin/schemathesis" --no-color --config-file "$configuration" \
      run "$DESCRIPTION" --url "$MANAGEMENT" "${WITH_TOKEN[@]}" --checks all --seed "$SEED" --generation-database none \
      --continue-on-failure "$@"
  ) || fail "schemathesis exited with status $?"
}

step "schemathesis: valid requests with existing names succeed"
cat >"$CASE_DIR/named.toml" <<TOML
[[operations]]
include-path = ["/api/v1/image", "/api/v1/prefetch", "/api/v1/peers", "/api/v1/tags/accept", "/api/v1/tags/reject"]
parameters = { image = "$NAME" }
[[operations]]
include-path = "/api/v1/images"
parameters = { pattern = ["*/demo/*", "/hello/"], registry = "127.0.0.1:$REGISTRY_PORT", "query.digest" = "$HELLO_LAYER" }
[[operations]]
include-path = "/api/v1/check"
parameters = { target = "$NAME" }
[[operations]]
include-path = "/api/v1/client-configuration"
parameters = { server = "http://10.0.0.5:8080" }
[[operations]]
include-path = "/api/v1/flights"
parameters = { upstream = "docker.io" }
[[operations]]
include-path = "/api/v1/pins"
parameters = { pattern = "docker.io/library/*" }
[[operations]]
include-path = "/api/v1/prune"
parameters = { pattern = ["*/demo/*", "alpine:3.20"], unusedFor = "12h", createdBefore = "2026-01-31T12:00:00", dryRun = "true" }
TOML
schemathesis "$CASE_DIR/named.toml" --mode positive --max-examples 20
listed 2 || fail "a dry run removed an image"

step "schemathesis: all generated requests get documented responses"
# A schema cannot describe the syntax of references, globs and regular expressions, so some generated values are rejected.
: >"$CASE_DIR/any.toml"
schemathesis "$CASE_DIR/any.toml" --max-examples "$EXAMPLES" --exclude-checks positive_data_acceptance

step "larder still runs, and the cache is undamaged"
get "$MANAGEMENT/readyz"
expect_status "/readyz" 200
larder_stop
cache_is_sound
must_fail "a panic in the log" grep -E 'panicked at' "$LARDER_LOG"
