# Proves that helm pulls a chart from oci:// through larder, and again without the upstream.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

need_tool helm "set LARDER_E2E_HELM=1 to build it"
REGISTRY_STORAGE=$(own_storage)
registry_start
TAG_TTL=0
larder_config "127.0.0.1:$REGISTRY_PORT"
larder_start

mkdir -p "$CASE_DIR/pantry/templates"
printf 'apiVersion: v2\nname: pantry\nversion: 1.2.3\n' >"$CASE_DIR/pantry/Chart.yaml"
printf 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: pantry\n' >"$CASE_DIR/pantry/templates/shelf.yaml"
client "$TOOL" package "$CASE_DIR/pantry" --destination "$CASE_DIR"
client "$TOOL" push --plain-http "$CASE_DIR/pantry-1.2.3.tgz" "oci://127.0.0.1:$REGISTRY_PORT/demo"

pull() { # WHEN [OPTION…]
  step "$1"
  rm -rf "$CASE_DIR/pulled"
  mkdir "$CASE_DIR/pulled"
  client "$TOOL" pull --plain-http "oci://127.0.0.1:$LARDER_PORT/$ALIAS/demo/pantry" --destination "$CASE_DIR/pulled" "${@:2}"
  same_bytes "$1" "$CASE_DIR/pantry-1.2.3.tgz" "$CASE_DIR/pulled/pantry-1.2.3.tgz"
}
pull cold --version 1.2.3
pull "warm, the newest version (from the list of tags)"
registry_stop
pull "without upstream" --version 1.2.3
pull "without upstream, the newest version"
larder_stop
