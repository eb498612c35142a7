# Proves pulls by a kubelet, with containerd's CRI plugin and crictl: by tag and by digest, of single-platform and
# multi-platform images; cold, warm and without the upstream, with the image and its content removed in between.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"
trap stop_nodes EXIT

need_containerd
need_tool crictl
registry_start
larder_start
node_start node registry.k8s.io/pause:3.9

readonly TAGGED=docker.io/library/hello:v1 SEVERAL=docker.io/demo/multi:v1
readonly DIGESTED=docker.io/demo/hello@$HELLO_V2_DIGEST

no_content() { [[ -z $(client ctr --address "$CASE_DIR/node/c.sock" --namespace k8s.io content ls -q) ]]; }
forget() {
  crictl_ node rmi --all
  wait_until 20 "containerd drops the images' content" no_content
}
pull_all() {
  local image
  for image in "$TAGGED" "$SEVERAL" "$DIGESTED"; do crictl_ node pull "$image"; done
  equal "the digest of $TAGGED" "$HELLO_DIGEST" "$(digest_on node "$TAGGED")"
  equal "the digest of $SEVERAL" "$MULTI_DIGEST" "$(digest_on node "$SEVERAL")"
  crictl_ node inspecti "$DIGESTED" >"$CASE_DIR/tmp/image.json"
  equal "the digests of $DIGESTED" "$DIGESTED" "$(jq -r '.status.repoDigests[]' "$CASE_DIR/tmp/image.json")"
}

step "cold, by tag and by digest"
pull_all
larder_logged "a tag with ?ns=docker.io" '(GET|HEAD):/v2/library/hello/manifests/v1\?ns=docker\.io status=200'
larder_logged "a digest with ?ns=docker.io" "(GET|HEAD):/v2/demo/hello/manifests/$HELLO_V2_DIGEST\?ns=docker\.io status=200"
manifest_gets=$(registry_requests 'GET /v2/[^ ]*/manifests/')
blob_gets=$(registry_requests 'GET /v2/[^ ]*/blobs/')
((blob_gets > 0)) || fail "the cold pull did not reach the upstream"

step "warm"
forget
pull_all
equal "manifest GETs at the upstream" "$manifest_gets" "$(registry_requests 'GET /v2/[^ ]*/manifests/')"
equal "blob GETs at the upstream" "$blob_gets" "$(registry_requests 'GET /v2/[^ ]*/blobs/')"

step "without upstream"
registry_stop
forget
pull_all

step "an image that was never pulled fails, and cached images still work"
must_fail "a pull of an uncached image" crictl_ node pull docker.io/demo/big:v1
crictl_ node pull "$TAGGED"
larder_stop
