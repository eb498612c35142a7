# Proves that README.md and docs/ are right: their commands are run in a namespace where docker-registry stands in for the public
# registries, their configurations are checked, and the outputs that they show are compared. tests/docs/reviewed.toml lists what
# is not run, with reasons; a new block that is neither run nor listed fails.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

DOCS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../docs" && pwd)
readonly DOCS
need_tool helm "LARDER_E2E_HELM=1 builds it"
PATH=$(dirname -- "$TOOL"):$PATH
python3 -c 'import yaml' 2>/dev/null || skip "python3-yaml is missing: apt-get install --no-install-recommends python3-yaml"

step "every block is run, checked, or has a reason"
"$DOCS/docs.py" check

FAILED_PAGES=()
while IFS= read -r page; do
  step "$page"
  out="$CASE_DIR/pages/${page//\//-}"
  mkdir -p "$out"
  status=0
  timeout --kill-after=5 "$CLIENT_LIMIT" "$DOCS/world" "$E2E_LARDER" "$SAMPLES/registry" "$page" "$out" || status=$?
  ((status != 77)) || skip "this kernel has no overlays in a mount namespace"
  ((status == 0)) || FAILED_PAGES+=("$page")
done < <("$DOCS/docs.py" pages)
((${#FAILED_PAGES[@]} == 0)) || fail "pages with errors: ${FAILED_PAGES[*]}"
