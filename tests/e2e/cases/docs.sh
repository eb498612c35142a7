# Proves that README.md and docs/ are right: their commands are run in a namespace where docker-registry stands in for the public
# registries, their configurations are checked, and the outputs that they show are compared. tests/docs/reviewed.toml lists what
# is not run, with reasons; a new block that is neither run nor listed fails.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

DOCS=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../../docs" && pwd)
readonly DOCS PAGE_LIMIT=90
need_tool helm "LARDER_E2E_HELM=1 builds it"
PATH=$(dirname -- "$TOOL"):$PATH
python3 -c 'import yaml' 2>/dev/null || skip "python3-yaml is missing: apt-get install --no-install-recommends python3-yaml"

step "every block is run, checked, or has a reason"
"$DOCS/docs.py" check

step "the images that the pages name"
registry_start "$(own_storage)"
tag() { # SAMPLE NAME
  skopeo_ copy --quiet --all --src-tls-verify=false --dest-tls-verify=false "docker://127.0.0.1:$REGISTRY_PORT/demo/$1" \
    "docker://127.0.0.1:$REGISTRY_PORT/$2"
}
for name in library/alpine:3.20 library/alpine:latest; do tag multi:v1 "$name"; done
for name in team/app:2 org/app:v2 library/hello-world:latest; do tag hello:v1 "$name"; done
registry_stop

step "the pages"
run_page() { # PAGE
  local out="$CASE_DIR/pages/${1//\//-}" status=0
  mkdir -p "$out"
  timeout --kill-after=5 "$PAGE_LIMIT" "$DOCS/world" "$E2E_LARDER" "$STORAGE" "$1" "$out" >"$out/report" 2>&1 || status=$?
  printf '%s: status %s\n' "$1" "$status"
  # One write, so that the reports of pages do not mix.
  cat "$out/report"
  return "$status"
}
export -f run_page
# Not REGISTRY_STORAGE: docker-registry takes its configuration from such variables.
STORAGE=$REGISTRY_STORAGE
export CASE_DIR DOCS STORAGE PAGE_LIMIT
mkdir -p "$CASE_DIR/overlay"/{lower,upper,work,merged}
# shellcheck disable=SC2016  # expanded by the inner shells
unshare --mount bash -c 'cd "$1" && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged' - "$CASE_DIR/overlay" ||
  skip "this kernel has no overlays in a mount namespace"
# Pages do little else than wait for servers to start.
# shellcheck disable=SC2016  # expanded by the inner shells
"$DOCS/docs.py" pages | tr '\n' '\0' | xargs -0 -n 1 -P 2 bash -c 'run_page "$1"' - || fail "some pages have errors, see above"
