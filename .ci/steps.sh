# shellcheck shell=bash
# The steps of the gate, one function each. `run` decides which run at the same time.

# Files that packages do not install: `packages` unpacks them here.
readonly UNPACKED=${UNPACKED:?is set by .ci/run}

lint() {
  make lint
  shellcheck .ci/run .ci/*.sh tests/e2e/run tests/e2e/lib.sh tests/e2e/cases/*.sh bench/run tests/install/run tests/chart/run tests/repeat \
    tests/kind/{up,test,down,check} tests/kind/*.sh scripts/build-static scripts/build-image
  go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.7
}

alerts() {
  "$UNPACKED/usr/bin/promtool" check rules charts/larder/rules/larder.yaml
  "$UNPACKED/usr/bin/promtool" test rules tests/rules/larder.yaml
}

tests() {
  make test
}

release() {
  make build
}

installation() {
  tests/install/run target/release/larder
}

static_amd64() {
  make static ARCH=amd64
}

static_arm64() {
  if rustup target list --installed 2>/dev/null | grep -qx aarch64-unknown-linux-musl; then
    make static ARCH=arm64
    return
  fi
  make static ARCH=arm64 SYSROOT="$UNPACKED/arm64"
}

chart() {
  tests/chart/run target/static/amd64/larder
}

kind() {
  tests/kind/check target/release/larder
}

e2e() {
  make e2e
}
