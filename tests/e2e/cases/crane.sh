# Proves that crane (go-containerregistry, the library of ko, kaniko and wharfie) pulls, lists and reads manifests through
# larder, and checks exact lengths and digests; and again without the upstream.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_tool crane
TAG_TTL=0
registry_start
larder_start
crane_() { client "$TOOL" --insecure "$@"; }
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"
readonly MIRROR="127.0.0.1:$LARDER_PORT/$ALIAS"

check_all() { # WHEN
  step "$1"
  equal "$1: digest" "$HELLO_DIGEST" "$(crane_ digest "$MIRROR/demo/hello:v1")"
  equal "$1: tags" "v1 v2" "$(crane_ ls "$MIRROR/demo/hello" | LC_ALL=C sort | paste -sd ' ')"
  crane_ manifest "$MIRROR/demo/multi:v1" >"$CASE_DIR/tmp/manifest"
  equal "$1: manifest" "$MULTI_DIGEST" "sha256:$(sha256sum <"$CASE_DIR/tmp/manifest" | cut -d ' ' -f 1)"
  crane_ blob "$MIRROR/demo/big@$BIG_LAYER" >"$CASE_DIR/tmp/blob"
  equal "$1: blob" "$BIG_LAYER" "sha256:$(sha256sum <"$CASE_DIR/tmp/blob" | cut -d ' ' -f 1)"
  # The image layout must be identical to that of the registry.
  rm -rf "$CASE_DIR/layout"
  crane_ pull --format oci "$MIRROR/demo/big:v1" "$CASE_DIR/layout"
  same_tree "$1: pull" "$CASE_DIR/direct" "$CASE_DIR/layout"
  crane_ validate --remote "$MIRROR/demo/hello:v1"
}
crane_ pull --format oci "$UPSTREAM/demo/big:v1" "$CASE_DIR/direct"
check_all cold
check_all warm
registry_stop
check_all "without upstream"
larder_stop
