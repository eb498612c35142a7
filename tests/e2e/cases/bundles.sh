# Proves larder import and export with the tools that write and read bundles. Larder imports the bundles of skopeo, podman, ctr
# and docker, and serves them air-gapped, with the registry's digest if the format keeps it. Skopeo, ctr, podman and docker
# read the bundles that larder exports, and ctr and skopeo find the registry's digest.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_containerd
registry_start
readonly UPSTREAM="127.0.0.1:$REGISTRY_PORT"
readonly IMAGE=docker.io/library/hello:v1
readonly MULTI=docker.io/demo/multi:v1
readonly BUNDLES="$CASE_DIR/bundles"
mkdir -p "$BUNDLES"
cd "$BUNDLES"

larder_() { client "$E2E_LARDER" --image-path "$LARDER_CACHE" "$@"; }

# ---- The tools, with separate stores ----------------------------------------------------------------------------------

containerd_start "http://$UPSTREAM"
docker_start --bridge none --registry-mirror "http://$UPSTREAM"

# ---- Import of their bundles ------------------------------------------------------------------------------------------

step "write bundles with skopeo, podman, ctr and docker"
skopeo_ copy --quiet --src-tls-verify=false "docker://$UPSTREAM/library/hello:v1" "oci-archive:skopeo-oci.tar:$IMAGE"
skopeo_ copy --quiet --src-tls-verify=false "docker://$UPSTREAM/library/hello:v1" "oci-archive:skopeo-tag.tar:v1"
skopeo_ copy --quiet --src-tls-verify=false --all "docker://$UPSTREAM/demo/multi:v1" "oci:skopeo-dir:$MULTI"
skopeo_ copy --quiet --src-tls-verify=false "docker://$UPSTREAM/library/hello:v1" "docker-archive:skopeo-docker.tar:$IMAGE"
podman_ pull --quiet --tls-verify=false --signature-policy "$PODMAN_POLICY" "$UPSTREAM/library/hello:v1"
podman_ tag "$UPSTREAM/library/hello:v1" "$IMAGE"
podman_ save --quiet --format oci-archive --output podman-oci.tar "$IMAGE"
podman_ save --quiet --format docker-archive --output podman-docker.tar "$IMAGE"
ctr_pull "$IMAGE"
ctr_pull --all-platforms "$MULTI"
ctr_ images export ctr.tar "$IMAGE"
ctr_ images export --all-platforms ctr-multi.tar "$MULTI" "$IMAGE"
ctr_ images export --platform linux/amd64 ctr-one-platform.tar "$MULTI"
docker_ pull --quiet hello:v1
docker_ save --output docker.tar hello:v1
gzip -k ctr.tar skopeo-docker.tar
if type -P zstd >/dev/null; then zstd -q ctr.tar -o ctr.tar.zst; fi

# Pulls an imported image from the air-gapped larder.
pulled() { # WHAT IMAGE DIGEST
  rm -rf -- "$CASE_DIR/pulled"
  local digest
  digest=$(skopeo_ inspect --tls-verify=false --raw "docker://127.0.0.1:$LARDER_PORT/$2" | sha256sum | cut -d ' ' -f 1)
  [[ -z $3 ]] || equal "the digest of $1" "$3" "sha256:$digest"
  skopeo_ copy --quiet --src-tls-verify=false --all "docker://127.0.0.1:$LARDER_PORT/$2" "dir:$CASE_DIR/pulled"
}

# Imports into the cache of a running server.
imports() { # BUNDLE IMAGE DIGEST [FLAG OF import…]
  local bundle=$1 image=$2 digest=$3
  shift 3
  step "import $bundle"
  rm -rf -- "$LARDER_CACHE"
  larder_start --air-gapped
  larder_ import "$bundle" "$@" 2>&1 | tee "$CASE_DIR/tmp/output"
  pulled "$bundle" "$image" "$digest"
  cache_is_sound
  larder_stop
}
printed() { grep -qE -- "$1" "$CASE_DIR/tmp/output" || fail "larder did not print '$1': $(cat "$CASE_DIR/tmp/output")"; }
readonly DIGEST_LOST='pin the image by digest'

imports skopeo-oci.tar "$IMAGE" "$HELLO_DIGEST"
imports skopeo-tag.tar "$IMAGE" "$HELLO_DIGEST" --name docker.io/library/hello
imports skopeo-dir "$MULTI" "$MULTI_DIGEST"
imports skopeo-docker.tar "$IMAGE" ''
printed "$DIGEST_LOST"
imports skopeo-docker.tar.gz "$IMAGE" ''
imports podman-oci.tar "$IMAGE" ''
imports podman-docker.tar "$IMAGE" ''
printed "$DIGEST_LOST"
imports ctr.tar "$IMAGE" "$HELLO_DIGEST"
imports ctr.tar.gz "$IMAGE" "$HELLO_DIGEST"
[[ ! -e ctr.tar.zst ]] || imports ctr.tar.zst "$IMAGE" "$HELLO_DIGEST"
imports docker.tar "$IMAGE" ''
printed "$DIGEST_LOST"
imports ctr-multi.tar "$MULTI" "$MULTI_DIGEST"

step "one platform of an index"
rm -rf -- "$LARDER_CACHE"
larder_ import ctr-one-platform.tar
equal "the index" "$MULTI_DIGEST" "$(jq -r '.manifests[0].digest' "$LARDER_CACHE/index.json")"

# ---- Export -----------------------------------------------------------------------------------------------------------

step "export in every format"
rm -rf -- "$LARDER_CACHE"
larder_ import ctr-multi.tar
larder_ export --all --output all.tar
larder_ export --all --output - >piped.tar
same_bytes "standard output" all.tar piped.tar
larder_ export --all --output all.tar.gz
larder_ export --all --output all.tar.zst
gzip -dc all.tar.gz | cmp - all.tar || fail "gzip -d does not restore the tar"
if type -P zstd >/dev/null; then
  zstd -q -dc all.tar.zst | cmp - all.tar || fail "zstd -d does not restore the tar"
fi
larder_ export --all --output layout/
larder_ export "$IMAGE" --output hello.tar
larder_ export "$MULTI" --platform linux/amd64 --output amd64.tar
larder_ export --all --output volume --volume-size 5kB
cat volume.* | cmp - all.tar || fail "the volumes do not concatenate to the tar"

step "skopeo reads them"
for from in "oci-archive:all.tar:$IMAGE" "oci-archive:all.tar.gz:$IMAGE" "oci-archive:hello.tar" "oci:layout:$IMAGE" \
  "oci-archive:all.tar.zst:$IMAGE"; do
  equal "the digest in $from" "$HELLO_DIGEST" "$(skopeo_ inspect --format '{{.Digest}}' "$from")"
done
skopeo_ copy --quiet --all "oci-archive:all.tar:$MULTI" "dir:$CASE_DIR/tmp/multi"
equal "the index" "$MULTI_DIGEST" "sha256:$(sha256sum <"$CASE_DIR/tmp/multi/manifest.json" | cut -d ' ' -f 1)"
skopeo_ copy --quiet --override-arch amd64 "oci-archive:amd64.tar:$MULTI" "dir:$CASE_DIR/tmp/amd64"

forget_in_ctr() {
  ctr_ images ls -q | while IFS= read -r image; do ctr_ images rm --sync "$image"; done
  equal "the images left in containerd" "" "$(ctr_ images ls -q)"
}
step "ctr imports it"
forget_in_ctr
ctr_import all.tar
equal "the digest in containerd" "$HELLO_DIGEST" "$(digest_in_ctr "$IMAGE")"
equal "the index in containerd" "$MULTI_DIGEST" "$(digest_in_ctr "$MULTI")"
output=$(ctr_ run --rm --snapshotter native --net-host "$IMAGE" larder-e2e-bundle)
equal "the container's output" "hello from the larder" "$output"
step "ctr imports one platform"
forget_in_ctr
ctr_import --platform linux/amd64 amd64.tar
equal "the index in containerd" "$MULTI_DIGEST" "$(digest_in_ctr "$MULTI")"

step "signatures are exported, and ctr ignores them"
skopeo_ copy --quiet --src-tls-verify=false "docker://$UPSTREAM/library/hello:v1" "oci:signed:$IMAGE"
config=$(printf '{}' | blob_of signed application/vnd.oci.empty.v1+json)
layer=$(printf 'signed' | blob_of signed application/vnd.example.signature)
signature=$(jq -c --argjson config "$config" --argjson layer "$layer" \
  '{schemaVersion: 2, mediaType: .manifests[0].mediaType, artifactType: "application/vnd.example.signature",
    config: $config, layers: [$layer], subject: (.manifests[0] | del(.annotations))}' signed/index.json |
  blob_of signed application/vnd.oci.image.manifest.v1+json)
jq --argjson signature "$signature" '.manifests += [$signature]' signed/index.json >"$CASE_DIR/tmp/index"
mv -- "$CASE_DIR/tmp/index" signed/index.json
larder_ import signed
larder_ export "$IMAGE" --output signed.tar
signature=$(jq -r .digest <<<"$signature")
grep -q "${signature#sha256:}" <<<"$(tar -tf signed.tar)" || fail "the signature is not in the bundle"
forget_in_ctr
ctr_import signed.tar
equal "the digest in containerd" "$HELLO_DIGEST" "$(digest_in_ctr "$IMAGE")"
equal "the digest for skopeo" "$HELLO_DIGEST" "$(skopeo_ inspect --format '{{.Digest}}' "oci-archive:signed.tar:$IMAGE")"

step "podman loads it"
podman_ rmi --all --force
podman_ load --quiet --signature-policy "$PODMAN_POLICY" --input hello.tar
equal "the image's id" "${HELLO_CONFIG#sha256:}" "$(podman_ image inspect --format '{{.Id}}' "$IMAGE")"
equal "the image's digest" "$HELLO_DIGEST" "$(podman_ image inspect --format '{{.Digest}}' "$IMAGE")"
podman_ rmi --all --force
podman_ load --quiet --signature-policy "$PODMAN_POLICY" --input all.tar
equal "the image's id" "${HELLO_CONFIG#sha256:}" "$(podman_ image inspect --format '{{.Id}}' "$IMAGE")"

step "docker loads it"
docker_ rmi hello:v1
docker_ load --input all.tar
equal "the image's id" "$HELLO_CONFIG" "$(docker_ image inspect --format '{{.Id}}' hello:v1)"

step "a delta for a far side that has an older version of the image"
readonly FAR="$CASE_DIR/far"
far() { client "$E2E_LARDER" --image-path "$FAR" "$@"; }
far import hello.tar
find "$FAR/blobs/sha256" -type f -printf 'sha256:%f\n' >have.txt
larder_ export --all --output now.tar
larder_ export --all --except have.txt --output delta.tar
must_fail "the import of a delta without its base" client "$E2E_LARDER" --image-path "$CASE_DIR/empty" import delta.tar
absent "a name of an incomplete image" "$CASE_DIR/empty/refs/docker.io/library/hello/_tags/v1"
far import delta.tar
far export --all --output far.tar
same_bytes "the export of the far side" now.tar far.tar
stop_server dockerd
stop_server containerd
