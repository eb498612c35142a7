# Proves the image of Larder: builds are reproducible; containerd imports it, runs Larder from it as an unprivileged user with a
# read-only root and one volume, and pulls through it; skopeo, podman and docker read the file too.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_containerd
ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../.." && pwd)
readonly ROOT TAR="$CASE_DIR/larder-image.tar"
[[ -x $ROOT/target/static/amd64/larder ]] || skip "there is no static binary: run make static"
VERSION=$("$E2E_LARDER" version | cut -d ' ' -f 2)
readonly IMAGE=localhost/larder:$VERSION

step "two builds give the same file"
"$ROOT/scripts/build-image" "$TAR"
"$ROOT/scripts/build-image" "$CASE_DIR/again.tar"
same_bytes "the image built twice" "$TAR" "$CASE_DIR/again.tar"

step "the contents of the image"
skopeo_ inspect --config "oci-archive:$TAR" >"$CASE_DIR/config.json"
equal "its user" 65532:65532 "$(jq -r .config.User "$CASE_DIR/config.json")"
equal "its entry point" '["/larder"]' "$(jq -c .config.Entrypoint "$CASE_DIR/config.json")"
equal "its volume" '{"/var/lib/larder":{}}' "$(jq -c .config.Volumes "$CASE_DIR/config.json")"
equal "its version" "$VERSION" "$(jq -r '.config.Labels["org.opencontainers.image.version"]' "$CASE_DIR/config.json")"
equal "its licence" Apache-2.0 "$(jq -r '.config.Labels["org.opencontainers.image.licenses"]' "$CASE_DIR/config.json")"

if [[ -x $ROOT/target/static/arm64/larder ]]; then
  step "the image contains arm64 too"
  skopeo_ copy --quiet --override-arch arm64 "oci-archive:$TAR" "dir:$CASE_DIR/arm64"
  tar -xzf "$CASE_DIR/arm64/$(jq -r '.layers[0].digest' "$CASE_DIR/arm64/manifest.json" | cut -d : -f 2)" -C "$CASE_DIR/arm64"
  same_bytes "its program" "$ROOT/target/static/arm64/larder" "$CASE_DIR/arm64/larder"
  if type -P qemu-aarch64 >/dev/null; then
    equal "the output" "larder $VERSION" "$(client qemu-aarch64 "$CASE_DIR/arm64/larder" version)"
  fi
fi

step "containerd imports the image, and runs Larder from it"
registry_start
larder_config "127.0.0.1:$REGISTRY_PORT"
mkdir -p "$CASE_DIR/etc" "$CASE_DIR/volume"
cp "$CASE_DIR/larder.yaml" "$CASE_DIR/etc/larder.yaml"
chmod -R a+rX "$CASE_DIR/etc"
chown 65532:65532 "$CASE_DIR/volume"
containerd_start "$LARDER_URL"
ctr_import "$TAR"
equal "its digest in containerd" "$(skopeo_ inspect --format '{{.Digest}}' "oci-archive:$TAR")" \
  "$(digest_in_ctr "$IMAGE")"
start_server container "${OFFLINE[@]}" ctr --address "$CONTAINERD_DIR/c.sock" run --rm --snapshotter native --net-host --read-only \
  --env HTTPS_PROXY=http://127.0.0.1:9 --env NO_PROXY=127.0.0.1 \
  --mount "type=bind,src=$CASE_DIR/etc,dst=/etc/larder,options=rbind:ro" \
  --mount "type=bind,src=$CASE_DIR/volume,dst=/var/lib/larder,options=rbind:rw" \
  "$IMAGE" larder-e2e-image /larder --config-file /etc/larder/larder.yaml serve --host 127.0.0.1 --port "$LARDER_PORT"
wait_for_server container "${LARDER_READY[@]}"
matches "the user" 'uid=65532 gid=65532' "$(cat "$LOGS/container.log")"

step "containerd pulls through it"
ctr_pull docker.io/library/hello:v1
equal "the image's digest" "$HELLO_DIGEST" "$(digest_in_ctr docker.io/library/hello:v1)"
registry_stop
ctr_ images rm --sync docker.io/library/hello:v1
ctr_pull docker.io/library/hello:v1
copy "127.0.0.1:$LARDER_PORT/docker.io/library/hello:v1" by-skopeo
equal "the owner of the files in the volume" 65532 "$(stat -c %u "$CASE_DIR/volume/oci-layout")"

step "Larder stops cleanly"
ctr_ tasks kill --signal SIGTERM larder-e2e-image
has_exited() { ! is_running "${SERVER_PID[container]}"; }
wait_until "$STOP_LIMIT" "the container's exit" has_exited
wait "${SERVER_PID[container]}" || fail "the container exited with status $?"
matches "the last line of the log" 'INFO +stopped$' "$(tail -n 1 "$LOGS/container.log")"

step "podman and docker read the file"
podman_ load --quiet --input "$TAR" --signature-policy "$PODMAN_POLICY"
podman_ image exists "$IMAGE"
docker_start --bridge none
docker_ load --input "$TAR"
equal "the image in docker" "sha256:$(sha256sum <(skopeo_ inspect --raw --config "oci-archive:$TAR") | cut -d ' ' -f 1)" \
  "$(docker_ image inspect --format '{{.Id}}' "$IMAGE")"
stop_server dockerd
