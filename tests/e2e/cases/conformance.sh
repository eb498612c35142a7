# Proves OCI distribution conformance with the specification's suite in read-only mode, cold and warm. It also runs the suite
# of release v1.1.1 if it is installed as `oci-conformance-v1.1.1` (`go test -c` in its conformance/), because not
# every module proxy has that version.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_tool conformance
registry_start
larder_start
readonly REPOSITORY="$ALIAS/demo/hello"

# `1.1`, because `dev` requires a digest header of manifests, which the suite cannot read for data that it did not push.
conformance() { # WHEN
  step "$1"
  local report="$CASE_DIR/report-$1" branch
  mkdir -p "$CASE_DIR/results-$1"
  (
    cd "$CASE_DIR/results-$1"
    client env OCI_REGISTRY="127.0.0.1:$LARDER_PORT" OCI_TLS=disabled OCI_VERSION=1.1 OCI_REPO1="$REPOSITORY" OCI_API_PUSH=false \
      OCI_API_BLOBS_DELETE=false OCI_API_MANIFESTS_DELETE=false OCI_API_TAGS_DELETE=false OCI_API_REFERRER=false \
      OCI_API_BLOBS_DIGEST_HEADER=true OCI_RESULTS_DIR="$CASE_DIR/results-$1" \
      OCI_RO_DATA_TAGS="v1 v2" OCI_RO_DATA_MANIFESTS="$HELLO_DIGEST $HELLO_V2_DIGEST" \
      OCI_RO_DATA_BLOBS="$HELLO_CONFIG $HELLO_LAYER" OCI_RO_DATA_REFERRERS="" "$TOOL" >"$report"
  ) || true
  # Check the report instead of the exit status: with data that it did not push, this version of the suite panics when it
  # writes results.yaml, after the report.
  cat -- "$report"
  must_fail "failures in the report, $1" grep -E ': (FAIL|Error)$' "$report"
  # All branches that read-only data can reach must pass, not be skipped.
  for branch in '' /ping '/empty/tag list' /read-only/tag-list /read-only/head/manifest-head-by-tag \
    /read-only/head/manifest-head-by-digest /read-only/head/blob-head /read-only/pull/manifest-by-tag \
    /read-only/pull/manifest-by-digest /read-only/pull/blob-get /missing-manifest/by-digest /missing-manifest/by-tag \
    /invalid-digest-format/manifest-get; do
    grep -qE "^ *OCI Conformance Test$branch: Pass$" "$report" || fail "$1: 'OCI Conformance Test$branch' did not pass"
  done
  larder_logged "the suite's manifests" "HEAD:/v2/$REPOSITORY/manifests/v1"
  larder_logged "the suite's blobs" "GET:/v2/$REPOSITORY/blobs/$HELLO_LAYER"
}
conformance cold
conformance warm

if suite=$(type -P oci-conformance-v1.1.1) || [[ -x ${suite:=$E2E_TOOLS/oci-conformance-v1.1.1} ]]; then
  step "v1.1.1"
  (
    cd "$CASE_DIR"
    client env OCI_ROOT_URL="$LARDER_URL" OCI_NAMESPACE="$REPOSITORY" OCI_TEST_PULL=1 OCI_TAG_NAME=v1 \
      OCI_MANIFEST_DIGEST="$HELLO_DIGEST" OCI_BLOB_DIGEST="$HELLO_LAYER" OCI_HIDE_SKIPPED_WORKFLOWS=1 "$suite"
  ) || fail "the v1.1.1 suite failed with $?"
fi
larder_stop
