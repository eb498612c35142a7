# Proves registries[].endpoints with two registries behind one name, a mirror first: the mirror is asked, and the registry
# for what the mirror lacks; a mirror that is cut in the middle of a blob is not noticed by the client; the mirror's circuit
# breaker opens, is told by the log and by /health?verbose, and closes when the mirror is back.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly HUB=hub.test
readonly FAILURES_THAT_OPEN=3
# The first wait of a breaker is 5 s.
readonly CLOSED_AGAIN_LIMIT=15

# Every pull by tag asks upstream, which is what is looked at here.
TAG_TTL=0

# ---- Two registries and larder -----------------------------------------------------------------------------------------

# The mirror lacks what it is asked for as library/hello and as demo/multi.
MIRROR_STORAGE=$(own_storage)
rm -rf -- "$MIRROR_STORAGE/docker/registry/v2/repositories/library" \
  "$MIRROR_STORAGE/docker/registry/v2/repositories/demo/multi"
registry_start "$MIRROR_STORAGE"
link_start 8m

# The registry behind it has everything.
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
registries:
  - name: $HUB
    endpoints: ["http://127.0.0.1:$LINK_PORT", "http://127.0.0.1:$ORIGIN_PORT"]
tagTtl: '$TAG_TTL'
revalidateTimeout: 2s
YAML
HEALTH_PORT=$(free_port)
larder_start --health "$HEALTH_PORT"

# What /health?verbose tells of the mirror (0) or of the registry (1).
told() { # ENDPOINT KEY
  curl -fsS --max-time 5 "http://127.0.0.1:$HEALTH_PORT/health?verbose" |
    jq -r --arg name "$HUB" '.upstreams[] | select(.name == $name) | .endpoints['"$1"'] | .'"$2"
}

readonly ORIGIN="127.0.0.1:$ORIGIN_PORT" THROUGH="127.0.0.1:$LARDER_PORT/$HUB"

step "what the registry itself gives"
copy "$ORIGIN/demo/hello:v1" direct-hello
copy "$ORIGIN/library/hello:v1" direct-library
copy "$ORIGIN/demo/multi:v1" direct-multi --all
copy "$ORIGIN/demo/big:v1" direct-big
: >"$LOGS/origin.log"

# ---- Who is asked ------------------------------------------------------------------------------------------------------

step "the mirror has it: the registry is not asked"
copy "$THROUGH/demo/hello:v1" mirrored-hello
same_tree "from the mirror" "$CASE_DIR/direct-hello" "$CASE_DIR/mirrored-hello"
equal "requests at the registry" 0 "$(origin_requests '[A-Z]+ /v2/')"

step "the mirror lacks it: the registry is asked"
copy "$THROUGH/library/hello:v1" registry-library
same_tree "from the registry" "$CASE_DIR/direct-library" "$CASE_DIR/registry-library"
copy "$THROUGH/demo/multi:v1" registry-multi --all
same_tree "an index from the registry" "$CASE_DIR/direct-multi" "$CASE_DIR/registry-multi"
(($(registry_requests '(GET|HEAD) /v2/library/hello/manifests/v1') > 0)) || fail "the mirror was not asked first"
(($(origin_requests 'GET /v2/library/hello/manifests/') > 0)) || fail "the registry was not asked"
equal "the mirror's breaker: having no such image is no failure" closed "$(told 0 breaker)"

# ---- In the middle of a blob -------------------------------------------------------------------------------------------

step "the mirror is cut in mid-blob: the client does not notice"
copy "$THROUGH/demo/big:v1" failed-over-big &
copying=$!
wait_until 15 "the first MiB of the blob" holds_a_file_of "$CASE_DIR/failed-over-big" 1048576
link_cut
status=0
wait "$copying" || status=$?
equal "skopeo's exit status" 0 "$status"
same_tree "half from the mirror, half from the registry" "$CASE_DIR/direct-big" "$CASE_DIR/failed-over-big"
equal "GETs of the blob at the mirror" 1 "$(registry_requests "GET /v2/demo/big/blobs/$BIG_LAYER")"
equal "GETs of its rest at the registry" 1 "$(origin_requests "GET /v2/demo/big/blobs/$BIG_LAYER HTTP/1.1\" 206 ")"
equal "GETs of the blob at the registry" 1 "$(origin_requests "GET /v2/demo/big/blobs/$BIG_LAYER")"
larder_logged "the change of the endpoint" '\[WARN\] .*asking another endpoint'

# ---- The breaker -------------------------------------------------------------------------------------------------------

# A manifest through skopeo; by tag, so that upstream is asked.
by_tag() {
  equal "the digest of demo/hello:v1" "$HELLO_DIGEST" \
    "$(skopeo_ inspect --no-tags --tls-verify=false --format '{{.Digest}}' "docker://$THROUGH/demo/hello:v1")"
}
step "$FAILURES_THAT_OPEN failures in a row open the mirror's breaker"
# The image's configuration may have been asked for after the mirror was gone.
failed=$(told 0 failuresInARow)
((failed < FAILURES_THAT_OPEN - 1)) || fail "the mirror failed $failed times for one image"
for ((n = failed + 1; n < FAILURES_THAT_OPEN; n++)); do
  by_tag
  equal "failures in a row" "$n" "$(told 0 failuresInARow)"
  equal "the mirror's breaker" closed "$(told 0 breaker)"
done
by_tag
equal "the mirror's breaker" open "$(told 0 breaker)"
matches "when it is asked again" '^[0-4]\.[0-9]+$|^5(\.0)?$' "$(told 0 askedAgainInSeconds)"
matches "the mirror's last failure" '(HEAD|GET) http://.*refused' "$(told 0 lastFailure)"
equal "the registry's breaker" closed "$(told 1 breaker)"
readonly OPENED="\[WARN\] $HUB: http://127\.0\.0\.1:$LINK_PORT is not asked for 5\.0 s"
equal "lines that the mirror is not asked" 1 "$(larder_lines "$OPENED")"

step "meanwhile the registry alone serves, what is new as well"
copy "$ORIGIN/demo/hello:v2" direct-hello-v2
copy "$THROUGH/demo/hello:v2" registry-hello-v2
same_tree "demo/hello:v2" "$CASE_DIR/direct-hello-v2" "$CASE_DIR/registry-hello-v2"
equal "lines that the mirror is asked again" 0 "$(larder_lines 'asking .* again')"

step "the mirror is back: a probe closes the breaker"
link_start 64m
is_closed() { by_tag && [[ $(told 0 breaker) == closed ]]; }
wait_until "$CLOSED_AGAIN_LIMIT" "the mirror's breaker closes" is_closed
equal "failures in a row" 0 "$(told 0 failuresInARow)"
larder_logged "that the mirror is tried" "\[INFO\] $HUB: asking http://127\.0\.0\.1:$LINK_PORT again"
larder_logged "that the mirror is back" "\[INFO\] $HUB: http://127\.0\.0\.1:$LINK_PORT answers again"

step "and the mirror is asked first again"
before=$(origin_requests '[A-Z]+ /v2/')
by_tag
equal "requests at the registry" "$before" "$(origin_requests '[A-Z]+ /v2/')"
cache_is_sound
larder_stop
