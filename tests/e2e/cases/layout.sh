# Proves that the cache directory is a valid OCI image layout while the server writes to it: skopeo reads it during pulls.
# Copies of the live directory by tar and rsync (or cp) are undamaged, and an air-gapped larder serves them with the same digests.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

readonly HELLO=docker.io/library/hello:v1 HELLO_V2=docker.io/demo/hello:v2 MULTI=docker.io/demo/multi:v1
readonly BIG=docker.io/demo/big:v1
# Slow enough that a pull of the large image takes longer than the copies.
readonly LINK_RATE=4m

larder_() { client "$E2E_LARDER" --log-level error "$@"; }
pull() { # IMAGE [OPTION…]
  local image=$1
  shift
  rm -rf -- "$CASE_DIR/tmp/pulled"
  skopeo_ copy --quiet --src-tls-verify=false "$@" "docker://127.0.0.1:$LARDER_PORT/$image" "dir:$CASE_DIR/tmp/pulled"
}
readonly PULLED=("$HELLO $HELLO_DIGEST" "$HELLO_V2 $HELLO_V2_DIGEST" "$MULTI $MULTI_DIGEST")

registry_start
link_start "$LINK_RATE"
larder_config "127.0.0.1:$LINK_PORT"
# The link limits each response, after a first second without a limit: ranges of a blob would pass it at once.
echo 'connectionsPerBlob: 1' >>"$CASE_DIR/larder.yaml"
larder_start

step "pull"
pull "$HELLO"
pull "$HELLO_V2"
pull "$MULTI" --all
is_indexed() { # IMAGE
  jq -e --arg name "$1" '.manifests[].annotations["org.opencontainers.image.ref.name"] | select(. == $name)' \
    "$LARDER_CACHE/index.json"
}
for image in "$HELLO" "$HELLO_V2" "$MULTI"; do wait_until "$INDEX_LIMIT" "$image in index.json" is_indexed "$image"; done

# ---- Concurrent pulls ----------------------------------------------------------------------------------------------------

# Starts a pull of the large image, by tag, which continues while the directory is read and copied.
start_pull_of_big() {
  curl -fsS --max-time "$CLIENT_LIMIT" -o "$CASE_DIR/tmp/manifest" -H 'Accept: */*' \
    "$LARDER_URL/v2/demo/big/manifests/v1?ns=docker.io"
  curl -fsS --max-time "$CLIENT_LIMIT" -o "$CASE_DIR/tmp/layer" "$LARDER_URL/v2/demo/big/blobs/$BIG_LAYER?ns=docker.io" &
  PULLING=$!
  wait_until 15 "the first MiB of the layer" at_least_bytes "$CASE_DIR/tmp/layer" 1048576
}
is_still_pulling() { # WHAT
  is_running "$PULLING" || fail "the pull finished before $1"
  absent "the layer under its name" "$(cached_blob "$BIG_LAYER")"
}

reads_as_a_layout() { # DIRECTORY
  local each image digest
  for each in "${PULLED[@]}"; do
    read -r image digest <<<"$each"
    equal "the digest of $image in ${1##*/}" "$digest" \
      "sha256:$(skopeo_ inspect --raw "oci:$1:$image" | sha256sum | cut -d ' ' -f 1)"
    rm -rf -- "$CASE_DIR/tmp/copied"
    skopeo_ copy --quiet --all "oci:$1:$image" "dir:$CASE_DIR/tmp/copied"
    equal "the digest of the copy of $image" "$digest" \
      "sha256:$(sha256sum <"$CASE_DIR/tmp/copied/manifest.json" | cut -d ' ' -f 1)"
  done
  equal "the digest that skopeo inspect prints" "$HELLO_DIGEST" "$(skopeo_ inspect --format '{{.Digest}}' "oci:$1:$HELLO")"
}

step "skopeo reads the live directory"
start_pull_of_big
reads_as_a_layout "$LARDER_CACHE"
is_still_pulling "skopeo did"

# ---- Copies of the live directory ----------------------------------------------------------------------------------------

readonly TARRED="$CASE_DIR/tarred" MIRRORED="$CASE_DIR/mirrored"
mkdir "$TARRED" "$MIRRORED"

# GNU tar exits with 1 if a file changed while it was read, as the partial download does.
step "tar copies it"
status=0
tar -C "$LARDER_CACHE" -cf "$CASE_DIR/cache.tar" . || status=$?
((status <= 1)) || fail "tar: status $status"
tar -C "$TARRED" -xf "$CASE_DIR/cache.tar"
is_still_pulling "tar did"

# rsync exits with 24 if a file vanished.
step "rsync or cp copies it"
status=0
if type -P rsync >/dev/null; then
  rsync -a "$LARDER_CACHE/" "$MIRRORED/" || status=$?
  ((status == 0 || status == 24)) || fail "rsync: status $status"
else
  cp -a -- "$LARDER_CACHE/." "$MIRRORED/" || fail "cp: status $?"
fi
is_still_pulling "the second copy did"

step "the pull succeeds, and the live directory contains the image"
link_cut
link_start 64m
status=0
wait "$PULLING" || status=$?
equal "curl's exit status" 0 "$status"
same_bytes "the layer" "$(registry_blob_file "$BIG_LAYER")" "$CASE_DIR/tmp/layer"
pull "$BIG"
wait_until "$INDEX_LIMIT" "$BIG in index.json" is_indexed "$BIG"
equal "the digest of $BIG" "$BIG_DIGEST" "$(skopeo_ inspect --format '{{.Digest}}' "oci:$LARDER_CACHE:$BIG")"
cache_is_sound
larder_stop
registry_stop
stop_server link

# ---- The copies ----------------------------------------------------------------------------------------------------------

# Serves the copy without a registry.
served_air_gapped() { # DIRECTORY
  local each image digest
  printf 'imagePath: %s\nairGapped: true\n' "$1" >"$CASE_DIR/far.yaml"
  start_server larder "${OFFLINE[@]}" "$E2E_LARDER" --config-file "$CASE_DIR/far.yaml" serve --host 127.0.0.1 \
    --port "$LARDER_PORT"
  wait_for_server larder curl -fsS --max-time 2 "$LARDER_URL/v2/"
  for each in "${PULLED[@]}"; do
    read -r image digest <<<"$each"
    pull "$image" --all
    equal "the digest of $image" "$digest" "sha256:$(sha256sum <"$CASE_DIR/tmp/pulled/manifest.json" | cut -d ' ' -f 1)"
  done
  larder_stop
}

for copy in "$TARRED" "$MIRRORED"; do
  step "${copy##*/}: verify finds no damage, skopeo reads it, larder serves it"
  reads_as_a_layout "$copy"
  # The large image had a name but no layer yet. Verify reports that, but not as damage.
  status=0
  larder_ --image-path "$copy" verify | tee "$CASE_DIR/output" || status=${PIPESTATUS[0]}
  equal "the exit code of verify" 1 "$status"
  equal "the summary of verify" "4 images, 1 incomplete; 0 damaged blobs" "$(tail -n 1 "$CASE_DIR/output")"
  grep -qE "^$BIG: .* missing in [0-9]+ blobs?, first " "$CASE_DIR/output" || fail "verify does not report that $BIG lacks its layer"
  for each in "${PULLED[@]}"; do
    larder_ --image-path "$copy" verify "${each% *}"
  done
  absent "a quarantine" "$copy/quarantine"
  served_air_gapped "$copy"
done
