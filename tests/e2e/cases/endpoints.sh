# Proves registries[].endpoints with two endpoints for one name, a mirror and the registry: larder fetches from the mirror, and
# from the registry what the mirror lacks. If the mirror is cut in the middle of a blob, the client does not notice. The
# circuit breaker of the mirror opens, the log and /health?verbose show it, and it closes when the mirror is back.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly HUB=hub.test
readonly FAILURES_THAT_OPEN=3
# A breaker first stays open for 5 s.
readonly CLOSE_LIMIT=15

# Every pull by tag checks the upstream.
TAG_TTL=0

# ---- Two registries and larder -----------------------------------------------------------------------------------------

# The mirror lacks library/hello and demo/multi.
MIRROR_STORAGE=$(own_storage)
rm -rf -- "$MIRROR_STORAGE/docker/registry/v2/repositories/library" \
  "$MIRROR_STORAGE/docker/registry/v2/repositories/demo/multi"
registry_start "$MIRROR_STORAGE"
link_start 8m

# The registry has all images.
ORIGIN_PORT=$(free_port)
cat >"$CASE_DIR/origin.yml" <<YAML
version: 0.1
log: {level: warn}
storage:
  filesystem: {rootdirectory: $SAMPLES/registry}
http: {addr: "127.0.0.1:$ORIGIN_PORT", secret: e2e}
YAML
start_server origin env OTEL_TRACES_EXPORTER=none docker-registry serve "$CASE_DIR/origin.yml"
wait_for_server origin curl -fsS --max-time 2 "http://127.0.0.1:$ORIGIN_PORT/v2/"
origin_requests() { # REGEX
  grep -cE "\"$1" "$LOGS/origin.log" || true
}

cat >"$CASE_DIR/larder.yaml" <<YAML
# The case follows one request per blob.
connectionsPerBlob: 1
registries:
  - name: $HUB
    endpoints: ["http://127.0.0.1:$LINK_PORT", "http://127.0.0.1:$ORIGIN_PORT"]
tagTtl: '$TAG_TTL'
revalidateTimeout: 2s
YAML
HEALTH_PORT=$(free_port)
larder_start --health "$HEALTH_PORT"

# Prints a field of the mirror (0) or the registry (1) in /health?verbose.
health() { # ENDPOINT KEY
  curl -fsS --max-time 5 "http://127.0.0.1:$HEALTH_PORT/health?verbose" |
    jq -r --arg name "$HUB" '.upstreams[] | select(.name == $name) | .endpoints['"$1"'] | .'"$2"
}

readonly ORIGIN="127.0.0.1:$ORIGIN_PORT" THROUGH="127.0.0.1:$LARDER_PORT/$HUB"

step "copy directly from the registry"
copy "$ORIGIN/demo/hello:v1" direct-hello
copy "$ORIGIN/library/hello:v1" direct-library
copy "$ORIGIN/demo/multi:v1" direct-multi --all
copy "$ORIGIN/demo/big:v1" direct-big
: >"$LOGS/origin.log"

# ---- The choice of the endpoint ----------------------------------------------------------------------------------------

step "an image that the mirror has is fetched from the mirror only"
copy "$THROUGH/demo/hello:v1" mirrored-hello
same_tree "from the mirror" "$CASE_DIR/direct-hello" "$CASE_DIR/mirrored-hello"
equal "requests at the registry" 0 "$(origin_requests '[A-Z]+ /v2/')"

step "an image that the mirror lacks is fetched from the registry"
copy "$THROUGH/library/hello:v1" registry-library
same_tree "from the registry" "$CASE_DIR/direct-library" "$CASE_DIR/registry-library"
copy "$THROUGH/demo/multi:v1" registry-multi --all
same_tree "an index from the registry" "$CASE_DIR/direct-multi" "$CASE_DIR/registry-multi"
(($(registry_requests '(GET|HEAD) /v2/library/hello/manifests/v1') > 0)) || fail "the mirror got no request first"
(($(origin_requests 'GET /v2/library/hello/manifests/') > 0)) || fail "the registry got no request"
equal "the mirror's breaker after a 404, which is not a failure" closed "$(health 0 breaker)"

# ---- In the middle of a blob -------------------------------------------------------------------------------------------

step "the mirror is cut in the middle of a blob: the client does not notice"
copy "$THROUGH/demo/big:v1" failed-over-big &
copying=$!
wait_until 15 "the first MiB of the blob" holds_a_file_of "$CASE_DIR/failed-over-big" 1048576
link_cut
status=0
wait "$copying" || status=$?
equal "skopeo's exit status" 0 "$status"
same_tree "the image from both endpoints" "$CASE_DIR/direct-big" "$CASE_DIR/failed-over-big"
equal "GETs of the blob at the mirror" 1 "$(registry_requests "GET /v2/demo/big/blobs/$BIG_LAYER")"
equal "range GETs of the blob at the registry" 1 "$(origin_requests "GET /v2/demo/big/blobs/$BIG_LAYER HTTP/1.1\" 206 ")"
equal "GETs of the blob at the registry" 1 "$(origin_requests "GET /v2/demo/big/blobs/$BIG_LAYER")"
larder_logged "the change of the endpoint" 'WARN  .*trying another endpoint'

# ---- The breaker -------------------------------------------------------------------------------------------------------

# Fetches a manifest with skopeo, by tag, so that larder contacts the upstream.
by_tag() {
  equal "the digest of demo/hello:v1" "$HELLO_DIGEST" \
    "$(skopeo_ inspect --no-tags --tls-verify=false --format '{{.Digest}}' "docker://$THROUGH/demo/hello:v1")"
}
step "$FAILURES_THAT_OPEN failures in a row open the mirror's breaker"
# Larder may have requested the config after the mirror was cut.
failed=$(health 0 failuresInARow)
((failed < FAILURES_THAT_OPEN - 1)) || fail "the mirror failed $failed times for one image"
for ((n = failed + 1; n < FAILURES_THAT_OPEN; n++)); do
  by_tag
  equal "failures in a row" "$n" "$(health 0 failuresInARow)"
  equal "the mirror's breaker" closed "$(health 0 breaker)"
done
by_tag
equal "the mirror's breaker" open "$(health 0 breaker)"
matches "the time until the next request" '^[0-4]\.[0-9]+$|^5(\.0)?$' "$(health 0 askedAgainInSeconds)"
matches "the mirror's last failure" '(HEAD|GET) http://.*refused' "$(health 0 lastFailure)"
equal "the registry's breaker" closed "$(health 1 breaker)"
readonly OPENED="WARN  the endpoint is not asked for a while upstream=$HUB endpoint=http://127\.0\.0\.1:$LINK_PORT wait=5s "
equal "log lines that the breaker opened" 1 "$(larder_lines "$OPENED")"

step "in the meantime larder uses only the registry, for new images too"
copy "$THROUGH/demo/hello:v2" registry-hello-v2
equal "log lines that the mirror is tried again" 0 "$(larder_lines 'asking the endpoint again')"
copy "$ORIGIN/demo/hello:v2" direct-hello-v2
same_tree "demo/hello:v2" "$CASE_DIR/direct-hello-v2" "$CASE_DIR/registry-hello-v2"

step "the mirror is back: a probe closes the breaker"
link_start 64m
is_closed() { by_tag && [[ $(health 0 breaker) == closed ]]; }
wait_until "$CLOSE_LIMIT" "the mirror's breaker closes" is_closed
equal "failures in a row" 0 "$(health 0 failuresInARow)"
larder_logged "that the mirror is tried" "INFO  asking the endpoint again upstream=$HUB endpoint=http://127\.0\.0\.1:$LINK_PORT\$"
larder_logged "that the mirror is back" "INFO  the endpoint answers again upstream=$HUB endpoint=http://127\.0\.0\.1:$LINK_PORT\$"

step "larder uses the mirror first again"
before=$(origin_requests '[A-Z]+ /v2/')
by_tag
equal "requests at the registry" "$before" "$(origin_requests '[A-Z]+ /v2/')"
cache_is_sound
larder_stop
