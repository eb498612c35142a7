# shellcheck shell=bash
# The steps of the gate, one function each. `run` decides which run at the same time.

# Files that packages do not install: `packages` unpacks them here.
readonly UNPACKED=${UNPACKED:?is set by .ci/run}

lint() {
  make lint
  shellcheck --external-sources .ci/run .ci/*.sh tests/e2e/run tests/e2e/*.sh tests/e2e/cases/*.sh tests/stores/check tests/stores/*.sh bench/run tests/install/run tests/chart/run tests/repeat \
    tests/kind/{up,test,down,check} tests/kind/*.sh tests/checks.sh tests/cluster/{build,up,test,down,in} tests/cluster/*.sh \
    tests/cluster/cases/*.sh fuzz/run scripts/build-static scripts/build-image
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

# The binary is built and started, but not shipped from here: so half of the time goes without optimisation across crates.
static_arm64() {
  export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
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

# Meanwhile, at the lowest priority. What cannot be built is reported by the end-to-end tests, which skip its cases.
tools() {
  nice -n 19 tests/e2e/run --tools
}

e2e() {
  make e2e
}

interleavings() {
  make interleavings
}

faults() {
  make faults crashes
}

soak() {
  make soak MINUTES=2
}

fuzzing() {
  if ! rustup toolchain list | grep -q '^nightly'; then
    echo 'skipped: fuzzing needs a nightly toolchain (rustup toolchain install nightly)'
    return
  fi
  cargo +nightly fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked --quiet
  # Half of the time went into optimising.
  export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
  # Twice as many at a time as there are cores. Half a minute each finds what breaks easily; `make fuzz` finds the rest.
  make fuzz-quick JOBS=4 TIME=30
}

# A cold build of Kubernetes takes half an hour, so the cluster runs only where it has been built (`make cluster-up`). All
# cases take a quarter of an hour; these are the ones that prove what the README promises.
cluster() {
  if [[ ! -e ${LARDER_CLUSTER_CACHE:-$HOME/.cache/larder-cluster} ]]; then
    echo 'skipped: the cluster has not been built on this machine (make static image-tar cluster-up)'
    return
  fi
  apt-get install -y -qq --no-install-recommends conntrack socat ethtool dnsmasq-base containernetworking-plugins busybox-static >/dev/null
  make image-tar
  local status=0
  make cluster-up && make cluster-test CASES="promise lifecycle completion restart tls host-network service-accounts" || status=$?
  make cluster-down
  return "$status"
}
