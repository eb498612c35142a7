# Proves that cosign verifies an image through larder, and again without the upstream: the signature, which has a separate
# tag, was prefetched with the image.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_tool cosign "LARDER_E2E_COSIGN=1 asks for it"
REGISTRY_STORAGE=$(own_storage)
registry_start
TAG_TTL=0
larder_config "127.0.0.1:$REGISTRY_PORT"
printf 'prefetchReferrers: true\n' >>"$CASE_DIR/larder.yaml"
larder_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT/demo/hello"
readonly MIRROR="127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello"

export COSIGN_PASSWORD=e2e HOME="$CASE_DIR"
(cd "$CASE_DIR" && client "$TOOL" generate-key-pair)
client "$TOOL" sign --yes --key "$CASE_DIR/cosign.key" --tlog-upload=false --allow-http-registry "$UPSTREAM@$HELLO_DIGEST"

verify() { # WHEN
  step "$1"
  client "$TOOL" verify --key "$CASE_DIR/cosign.pub" --insecure-ignore-tlog --allow-http-registry "$MIRROR:v1" \
    >"$CASE_DIR/tmp/verified"
  matches "$1: the digest that was signed" "$HELLO_DIGEST" "$(cat "$CASE_DIR/tmp/verified")"
}
# Pull the image before verifying it, so that its signature is prefetched.
copy "127.0.0.1:$LARDER_PORT/$ALIAS/demo/hello:v1" image
verify warm
registry_stop
verify "without upstream"
must_fail "another key" client "$TOOL" verify --key "$CASE_DIR/cosign.key" --insecure-ignore-tlog --allow-http-registry "$MIRROR:v2"
larder_stop
