# Proves that oras pulls an artifact that is not an image (with its own artifact type, config and layer types) byte for byte
# through larder, and again without the upstream.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_tool oras
REGISTRY_STORAGE=$(own_storage)
registry_start
TAG_TTL=0
larder_config "127.0.0.1:$REGISTRY_PORT"
larder_start

mkdir -p "$CASE_DIR/artifact"
head -c 3000000 /dev/urandom >"$CASE_DIR/artifact/model.bin"
printf 'a readme\n' >"$CASE_DIR/artifact/README"
(cd "$CASE_DIR/artifact" && client "$TOOL" push --plain-http --image-spec v1.0 --artifact-type application/vnd.larder.e2e \
  "127.0.0.1:$REGISTRY_PORT/demo/artifact:v1" model.bin:application/vnd.larder.e2e.model README:text/plain)

pull() { # WHEN
  step "$1"
  rm -rf "$CASE_DIR/pulled"
  client "$TOOL" pull --plain-http --no-tty --output "$CASE_DIR/pulled" "127.0.0.1:$LARDER_PORT/$ALIAS/demo/artifact:v1"
  same_tree "$1" "$CASE_DIR/artifact" "$CASE_DIR/pulled"
}
pull cold
pull warm
registry_stop
pull "without upstream"
larder_stop
