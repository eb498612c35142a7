# Proves the management page in headless Chromium: it lists pulled images, works with the keyboard alone, asks for the token
# before actions, fits a phone, passes the checks of axe-core, and shows strings from upstreams and clients as plain text. A mock of the API tests the
# latter, and states that a healthy larder does not show.
# shellcheck shell=bash source=../lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../lib.sh"

# Three times what it needs on two busy cores.
readonly PAGE_LIMIT=150
# Debian's Python, because Debian packages selenium for it.
readonly PYTHON=/usr/bin/python3
HERE=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly HERE

if ! type -P chromium chromedriver >/dev/null || ! "$PYTHON" -c 'import selenium' 2>/dev/null; then
  skip "a browser is missing: apt-get install --no-install-recommends chromium chromium-driver python3-selenium"
fi

# The accessibility checks. Kept for later runs, like the tools that are built.
readonly AXE_CORE=4.14.1
readonly AXE=$E2E_TOOLS/axe-core-$AXE_CORE.js
if [[ ! -s $AXE ]]; then
  type -P npm >/dev/null || skip "npm is missing: apt-get install --no-install-recommends npm"
  (
    cd "$CASE_DIR"
    timeout "$CLIENT_LIMIT" npm pack --silent "axe-core@$AXE_CORE" && tar -xzf "axe-core-$AXE_CORE.tgz" package/axe.min.js
  ) >"$LOGS/axe.log" 2>&1 || skip "axe-core@$AXE_CORE cannot be downloaded: $(tail -n 1 "$LOGS/axe.log")"
  mv "$CASE_DIR/package/axe.min.js" "$AXE"
fi

page() { # ARGUMENT OF page.py…
  mkdir -p "$CASE_DIR/browser"
  "${OFFLINE[@]}" PYTHONDONTWRITEBYTECODE=1 AXE="$AXE" timeout --kill-after=15 "$PAGE_LIMIT" "$PYTHON" "$HERE/page.py" "$@"
}

step "the page with a mock of the API, with normal and hostile data"
page --mock "$CASE_DIR/browser"

step "larder with a management port, and three images"
registry_start
MANAGEMENT_PORT=$(free_port)
printf 'a token of the case %s' "$RANDOM$RANDOM" | tr ' ' - >"$CASE_DIR/token"
larder_config "127.0.0.1:$REGISTRY_PORT"
cat >>"$CASE_DIR/larder.yaml" <<YAML
management: {port: $MANAGEMENT_PORT, tokenFile: "$CASE_DIR/token"}
YAML
larder_start
wait_for_server larder curl -fsS --max-time 2 "http://127.0.0.1:$MANAGEMENT_PORT/readyz"
for image in demo/hello:v1 library/hello:v1 demo/multi:v1; do
  copy "127.0.0.1:$LARDER_PORT/docker.io/$image" "${image//[\/:]/-}"
done

step "the page with larder"
page "http://127.0.0.1:$MANAGEMENT_PORT/" "$CASE_DIR/token" "$CASE_DIR/browser" \
  docker.io/demo/hello:v1 docker.io/library/hello:v1 docker.io/demo/multi:v1
larder_stop
