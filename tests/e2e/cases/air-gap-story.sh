# Proves the transfer of images into an air-gapped network: larder load with a list on the near side, export to a tar, and
# import on the far side, which has no upstream and serves containerd and skopeo the same digests. Then a delta contains only
# what changed, and an import without its base fails.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_containerd
readonly HELLO=docker.io/library/hello:v1 APP=docker.io/demo/app:stable MULTI=docker.io/demo/multi@$MULTI_DIGEST
readonly NEAR="$CASE_DIR/near" FAR="$LARDER_CACHE" STICK="$CASE_DIR/stick"
mkdir -p "$STICK"
cd "$STICK"

# The far side's server and commands have no upstream.
cat >"$CASE_DIR/larder.yaml" <<YAML
imagePath: $FAR
airGapped: true
YAML
near() { client "$E2E_LARDER" --config-file "$CASE_DIR/near.yaml" "$@"; }
far() { client "$E2E_LARDER" --config-file "$CASE_DIR/larder.yaml" "$@"; }

# ---- An image of two layers, of which one changes ------------------------------------------------------------------------

# Pushes demo/hello:v1 plus a layer with NOTE as demo/app:stable. Sets APP_… to its digests.
push_app() { # NOTE
  local layout="$CASE_DIR/tmp/app" manifest config layer diff
  rm -rf -- "$layout" "$CASE_DIR/tmp/rootfs"
  mkdir -p "$CASE_DIR/tmp/rootfs"
  printf '%s\n' "$1" >"$CASE_DIR/tmp/rootfs/note"
  skopeo_ copy --quiet --src-tls-verify=false "docker://127.0.0.1:$REGISTRY_PORT/demo/hello:v1" "oci:$layout:app"
  tar -C "$CASE_DIR/tmp/rootfs" --sort=name --mtime=@0 --owner=0 --group=0 -cf "$CASE_DIR/tmp/layer.tar" note
  diff="sha256:$(sha256sum <"$CASE_DIR/tmp/layer.tar" | cut -d ' ' -f 1)"
  layer=$(gzip -nc "$CASE_DIR/tmp/layer.tar" | blob_of "$layout" application/vnd.oci.image.layer.v1.tar+gzip)
  config=$(jq -c --arg diff "$diff" '.rootfs.diff_ids += [$diff] | .history += [{created_by: "note"}]' \
    "$layout/blobs/sha256/${HELLO_CONFIG#sha256:}" | blob_of "$layout" application/vnd.oci.image.config.v1+json)
  manifest=$(jq -c --argjson config "$config" --argjson layer "$layer" '.config = $config | .layers += [$layer]' \
    "$layout/blobs/sha256/${HELLO_DIGEST#sha256:}" | blob_of "$layout" application/vnd.oci.image.manifest.v1+json)
  jq --argjson manifest "$manifest" '.manifests[0] += $manifest' "$layout/index.json" >"$CASE_DIR/tmp/index"
  mv -- "$CASE_DIR/tmp/index" "$layout/index.json"
  skopeo_ copy --quiet --preserve-digests --dest-tls-verify=false "oci:$layout:app" \
    "docker://127.0.0.1:$REGISTRY_PORT/demo/app:stable"
  APP_LAYER=$(jq -r .digest <<<"$layer")
  APP_CONFIG=$(jq -r .digest <<<"$config")
  APP_DIGEST=$(jq -r .digest <<<"$manifest")
}

registry_start "$(own_storage)"
# The near side checks tags on every pull, because the case ends before a tag would expire.
cat >"$CASE_DIR/near.yaml" <<YAML
imagePath: $NEAR
registries:
  - name: docker.io
    endpoints: ["http://127.0.0.1:$REGISTRY_PORT"]
tagTtl: always
YAML
push_app "the first note"
readonly FIRST_APP_DIGEST=$APP_DIGEST

# ---- The near side -------------------------------------------------------------------------------------------------------

step "load a list"
cat >list.txt <<LIST
# Images of the far side.
library/hello:v1, $APP   # two on a line

  # By digest, for the platform of this machine:
$MULTI
docker.io/demo/hello:v*
demo/big:v1
LIST
near load @list.txt 2>&1 | tee load.log
readonly IMAGES=("$APP" docker.io/demo/big:v1 docker.io/demo/hello:v1 docker.io/demo/hello:v2 "$MULTI" "$HELLO")
for image in "${IMAGES[@]}"; do
  grep -qE "^${image//./\\.}: (loaded, .* fetched|already cached)$" load.log || fail "load did not report $image"
done
grep -qE "^${#IMAGES[@]} of ${#IMAGES[@]} images in the cache" load.log || fail "load printed another summary"

# Prints name, digest and completeness of each image in list.
listed() { "$1" list --json | jq -r '.[] | "\(.image) \(.digest) \(.complete)"' | LC_ALL=C sort; }
step "list shows that all images are complete"
near list | tee table
equal "lines of the table" $((${#IMAGES[@]} + 1)) "$(wc -l <table)"
equal "complete images" "${#IMAGES[@]}" "$(grep -cE ' complete(, stale)?$' table)"
cat >expected <<EXPECTED
$APP $APP_DIGEST true
docker.io/demo/big:v1 $BIG_DIGEST true
docker.io/demo/hello:v1 $HELLO_DIGEST true
docker.io/demo/hello:v2 $HELLO_V2_DIGEST true
$MULTI $MULTI_DIGEST true
$HELLO $HELLO_DIGEST true
EXPECTED
equal "the images" "$(LC_ALL=C sort expected)" "$(listed near)"

step "export with the same list"
near export --list list.txt --output images.tar
near export --all --output all.tar
same_bytes "the exports with the list and with --all" all.tar images.tar
registry_stop

# ---- The far side --------------------------------------------------------------------------------------------------------

step "import and verify, with the registry stopped"
far import images.tar 2>&1 | tee import.log
far verify | tee verify.log
equal "verify's last line" "${#IMAGES[@]} images, 0 incomplete; 0 damaged blobs" "$(tail -n 1 verify.log)"
equal "the images on both sides" "$(listed near)" "$(listed far)"

larder_start
containerd_start "$LARDER_URL"

pulled_by_ctr() { # IMAGE DIGEST
  ctr_pull "$1"
  equal "the digest of $1 in containerd" "$2" "$(digest_in_ctr "$1")"
}
runs() { # IMAGE NAME
  equal "the output of $1" "hello from the larder" "$(ctr_ run --rm --snapshotter native --net-host "$1" "$2")"
}
pulled_by_skopeo() { # IMAGE DIGEST
  rm -rf -- "$CASE_DIR/pulled"
  skopeo_ copy --quiet --src-tls-verify=false "docker://127.0.0.1:$LARDER_PORT/$1" "dir:$CASE_DIR/pulled"
  equal "the digest of $1 for skopeo" "$2" "sha256:$(sha256sum <"$CASE_DIR/pulled/manifest.json" | cut -d ' ' -f 1)"
}

step "containerd pulls and runs, with one mirror for all registries"
pulled_by_ctr "$HELLO" "$HELLO_DIGEST"
runs "$HELLO" larder-e2e-hello
pulled_by_ctr "$APP" "$FIRST_APP_DIGEST"
runs "$APP" larder-e2e-app
pulled_by_ctr "$MULTI" "$MULTI_DIGEST"
larder_logged "a request with ?ns=docker.io" 'GET:/v2/library/hello/.*ns=docker\.io'

step "skopeo pulls"
pulled_by_skopeo "$APP" "$FIRST_APP_DIGEST"
pulled_by_skopeo docker.io/demo/hello:v2 "$HELLO_V2_DIGEST"
pulled_by_skopeo docker.io/demo/big:v1 "$BIG_DIGEST"
pulled_by_skopeo "$HELLO" "$HELLO_DIGEST"

# ---- A delta -------------------------------------------------------------------------------------------------------------

step "change one layer of one image"
far list --digests >have.txt
registry_start
push_app "the second note"
[[ $APP_DIGEST != "$FIRST_APP_DIGEST" ]] || fail "the image is the same"
near load @list.txt
near export --all --except have.txt --output delta.tar

step "the delta contains that layer, its config, and manifests"
tar -tf delta.tar | sed -n 's,^blobs/\([a-z0-9]*\)/\(..*\)$,\1:\2,p' | LC_ALL=C sort >carried
LC_ALL=C sort -o have.txt have.txt
printf '%s\n' "$APP_LAYER" "$APP_CONFIG" "$APP_DIGEST" | LC_ALL=C sort >changed
equal "new blobs in the delta" "$(cat changed)" "$(LC_ALL=C comm -23 carried have.txt)"
while IFS= read -r digest; do
  tar -xOf delta.tar "blobs/sha256/${digest#sha256:}" | jq -e '.config.digest // .manifests' >/dev/null ||
    fail "the delta contains $digest, which the far side has and which is not a manifest"
done < <(LC_ALL=C comm -12 carried have.txt)
equal "other files in the delta" "index.json oci-layout" "$(tar -tf delta.tar | grep -v '^blobs/' | LC_ALL=C sort | paste -sd ' ')"
(($(stat -c %s delta.tar) < 64 * 1024)) || fail "the delta has $(stat -c %s delta.tar) bytes"

step "without its base the import fails, and lists images and blobs"
status=0
client "$E2E_LARDER" --image-path "$CASE_DIR/other" import delta.tar 2>refusal || status=$?
cat refusal
equal "the exit code" 1 "$status"
for image in "${IMAGES[@]}"; do
  grep -qE "^${image//./\\.}: not imported; [1-9][0-9]* blobs? \(.*\) missing in both the bundle and the cache:" refusal ||
    fail "the error does not name $image"
done
for digest in "$HELLO_LAYER" "$BIG_LAYER"; do
  grep -qE "^ *$digest \([0-9.]+ (bytes|[kMG]B)\)$" refusal || fail "the error does not name $digest"
done
must_fail "a layer in the delta is reported as missing" grep -q "$APP_LAYER" refusal
equal "images that were named" '[]' "$(client "$E2E_LARDER" --image-path "$CASE_DIR/other" list --json)"

step "the far side imports it while it serves"
registry_stop
far import delta.tar 2>&1 | tee import.log
grep -qF "$APP $APP_DIGEST" import.log || fail "import did not report the new image"
grep -qF "(was $FIRST_APP_DIGEST)" import.log || fail "import did not report the old digest of the tag"
far verify
equal "the images on both sides" "$(listed near)" "$(listed far)"
pulled_by_ctr "$APP" "$APP_DIGEST"
runs "$APP" larder-e2e-app-2
equal "the note in the new layer" "the second note" \
  "$(ctr_ content get "$APP_LAYER" | tar -xzO note)"
pulled_by_skopeo "$APP" "$APP_DIGEST"
pulled_by_skopeo "$HELLO" "$HELLO_DIGEST"
larder_stop
stop_server containerd
