# Proves copies by skopeo with the upstream in the path: cold, warm and without the upstream they are identical to those from the
# upstream, by tag, by digest and as a complete multi-arch index. So are tags/list and raw manifests. Skopeo reads the live cache
# directory as an OCI image layout.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# Every pull by tag checks the upstream, so content that is served without the upstream comes from the cache.
TAG_TTL=0
registry_start
larder_start

readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"
readonly MIRROR="127.0.0.1:$LARDER_PORT/$ALIAS"

step "copy directly from the upstream"
copy "$UPSTREAM/demo/big:v1" direct-big
copy "$UPSTREAM/demo/multi:v1" direct-multi --all

step "cold"
copy "$MIRROR/demo/big:v1" cold-big
same_tree "cold, by tag" "$CASE_DIR/direct-big" "$CASE_DIR/cold-big"
copy "$MIRROR/demo/multi:v1" cold-multi --all
same_tree "cold, the index with all its images" "$CASE_DIR/direct-multi" "$CASE_DIR/cold-multi"

step "warm: no blob is fetched again"
before=$(registry_requests 'GET /v2/demo/.*/blobs/')
copy "$MIRROR/demo/big:v1" warm-big
same_tree "warm, by tag" "$CASE_DIR/direct-big" "$CASE_DIR/warm-big"
equal "blob GETs at the upstream" "$before" "$(registry_requests 'GET /v2/demo/.*/blobs/')"
larder_logged "a hit" 'cache=hit'

tags() { skopeo_ list-tags --tls-verify=false "docker://$1/demo/hello" | jq -c '.Tags | sort'; }
raw() { skopeo_ inspect --raw --tls-verify=false "docker://$1"; }
step "tags and raw manifests are identical to those of the upstream"
equal "tags" '["v1","v2"]' "$(tags "$MIRROR")"
for image in demo/hello:v1 demo/multi:v1 "demo/multi@$MULTI_DIGEST"; do
  raw "$UPSTREAM/$image" >"$CASE_DIR/tmp/raw-upstream"
  raw "$MIRROR/$image" >"$CASE_DIR/tmp/raw-larder"
  same_bytes "the raw manifest of $image" "$CASE_DIR/tmp/raw-upstream" "$CASE_DIR/tmp/raw-larder"
done

step "the live cache directory is an OCI layout"
in_layout() { # IMAGE DIGEST
  [[ $(skopeo_ inspect --format '{{.Digest}}' "oci:$LARDER_CACHE:$1") == "$2" ]]
}
wait_until "$INDEX_LIMIT" "$UPSTREAM/demo/big:v1 in index.json" in_layout "$UPSTREAM/demo/big:v1" "$BIG_DIGEST"
skopeo_ copy --quiet "oci:$LARDER_CACHE:$UPSTREAM/demo/big:v1" "dir:$CASE_DIR/layout-big"
same_tree "the image read from the cache directory" "$CASE_DIR/direct-big" "$CASE_DIR/layout-big"
equal "imageLayoutVersion" 1.0.0 "$(jq -r .imageLayoutVersion "$LARDER_CACHE/oci-layout")"

step "without the upstream"
registry_stop
copy "$MIRROR/demo/big:v1" stopped-tag
same_tree "without upstream, by tag" "$CASE_DIR/direct-big" "$CASE_DIR/stopped-tag"
copy "$MIRROR/demo/big@$BIG_DIGEST" stopped-digest
same_tree "without upstream, by digest" "$CASE_DIR/direct-big" "$CASE_DIR/stopped-digest"
copy "$MIRROR/demo/multi:v1" stopped-multi --all
same_tree "without upstream, the index" "$CASE_DIR/direct-multi" "$CASE_DIR/stopped-multi"
equal "tags without upstream" '["v1","v2"]' "$(tags "$MIRROR")"
larder_logged "a stale response" 'cache=stale'
cache_is_sound
larder_stop
