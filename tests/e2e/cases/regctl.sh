# Proves that regctl copies an image with its referrers through larder, byte for byte, and again without the upstream, because
# referrers are prefetched.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_tool regctl
REGISTRY_STORAGE=$(own_storage)
registry_start
TAG_TTL=0
larder_config "127.0.0.1:$REGISTRY_PORT"
printf 'prefetchReferrers: true\n' >>"$CASE_DIR/larder.yaml"
larder_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT/demo/hello"
readonly MIRROR="127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello"

export REGCTL_CONFIG="$CASE_DIR/regctl.json"
printf '{"hosts":{"127.0.0.1:%s":{"tls":"disabled"},"127.0.0.1:%s":{"tls":"disabled"}}}' "$REGISTRY_PORT" "$LARDER_PORT" \
  >"$REGCTL_CONFIG"
regctl_() { client "$TOOL" "$@"; }

printf 'a statement\n' >"$CASE_DIR/statement"
regctl_ artifact put --artifact-type application/vnd.larder.e2e.statement --subject "$UPSTREAM:v1" \
  -f "$CASE_DIR/statement" --file-media-type text/plain

check_all() { # WHEN
  step "$1"
  equal "$1: digest" "$HELLO_DIGEST" "$(regctl_ image digest "$MIRROR:v1")"
  regctl_ tag ls "$MIRROR" >"$CASE_DIR/tmp/tags"
  matches "$1: tags" "(^|[[:space:]])v1([[:space:]]|$)" "$(cat "$CASE_DIR/tmp/tags")"
  equal "$1: referrers" application/vnd.larder.e2e.statement \
    "$(regctl_ artifact list "$MIRROR:v1" --format '{{range .Descriptors}}{{.ArtifactType}}{{end}}')"
  rm -rf "$CASE_DIR/copied"
  regctl_ image copy --referrers "$MIRROR:v1" "ocidir://$CASE_DIR/copied:v1"
  grep -rqF 'a statement' "$CASE_DIR/copied/blobs/sha256" || fail "$1: the referrer's content was not copied"
}
check_all cold
wait_until 20 "the referrer in the cache" grep -rqsF 'a statement' "$LARDER_CACHE/blobs/sha256"
check_all warm
registry_stop
check_all "without upstream"
larder_stop
