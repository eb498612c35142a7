# `make help` lists the targets.

CARGO ?= cargo
LARDER := $(or $(CARGO_TARGET_DIR),target)/release/larder
# The binary and the paths for `make install`. DESTDIR is prepended to every path.
BINARY ?= $(LARDER)
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
PORT ?= 8080
CACHE ?= .larder

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

.PHONY: build
build: ## build the release binary, target/release/larder
	$(CARGO) build --release --locked

.PHONY: run
run: port-is-free build ## build and serve on PORT (8080) with the cache in CACHE (.larder), and print how to pull through it
	@printf '%s\n' '' \
	  'Larder will listen on port $(PORT), with its cache in $(CACHE). In another terminal:' '' \
	  '  curl http://127.0.0.1:$(PORT)/v2/docker.io/library/alpine/manifests/latest' \
	  '  skopeo copy --src-tls-verify=false docker://127.0.0.1:$(PORT)/docker.io/library/alpine:latest dir:/tmp/alpine' \
	  '  podman pull --tls-verify=false 127.0.0.1:$(PORT)/docker.io/library/alpine:latest' '' \
	  'Any public registry works the same way: put its name first in the path. Ctrl-C stops Larder.' ''
	$(LARDER) --image-path $(CACHE) serve --host 127.0.0.1 --port $(PORT)

.PHONY: port-is-free
port-is-free:
	@if command -v bash >/dev/null && bash -c 'exec 3<>/dev/tcp/127.0.0.1/$(PORT)' 2>/dev/null; then \
	  echo 'make run: another program listens on port $(PORT); choose another one: make run PORT=8081' >&2; exit 1; fi

.PHONY: demo
demo: build ## demonstrate Larder without a network: cold pull, stop the registry, warm pull
	@echo 'building the demonstration: a registry and a client in one program, some minutes the first time'
	@$(CARGO) run --release --locked --quiet --example demo -- $(LARDER)

.PHONY: test
test: ## run the tests that need only a Rust toolchain
	$(CARGO) test --locked

.PHONY: repeat
repeat: ## run the tests TIMES times (50) and report those that fail sometimes
	tests/repeat $(or $(TIMES),50)

# In memory, where syncing costs nothing.
IN_MEMORY := $(if $(wildcard /dev/shm),TMPDIR=/dev/shm)
FAULTS ?= 40
CRASHES ?= 8

.PHONY: faults
faults: ## let system calls fail, FAULTS (40, or all) in each scenario (x86-64 only)
	$(IN_MEMORY) LARDER_FAULTS=$(FAULTS) $(CARGO) test --locked --test faults failing:: -- --nocapture

.PHONY: crashes
crashes: ## check the cache after thousands of crashes that lose unsynced writes (CRASHES=8 random ones at each point)
	$(IN_MEMORY) LARDER_CRASHES=$(CRASHES) $(CARGO) test --locked --test faults crashes:: -- --nocapture

.PHONY: fuzz
fuzz: ## fuzz TARGET (default: all targets) for TIME seconds each (3600), JOBS (2) at a time; needs nightly and cargo-fuzz
	TIME=$(or $(TIME),3600) JOBS=$(or $(JOBS),2) fuzz/run $(TARGET)

.PHONY: fuzz-quick
fuzz-quick: ## fuzz all targets for TIME seconds each (60)
	TIME=$(or $(TIME),60) JOBS=$(or $(JOBS),2) fuzz/run

.PHONY: interleavings
interleavings: ## explore the interleavings of threads with shuttle (INTERLEAVINGS=20000 for more than the default)
	$(IN_MEMORY) $(CARGO) test --locked --lib --features interleavings interleavings

.PHONY: generate
generate: ## generate the tables in docs/configuration.md and the chart's schema from src/config/file.rs
	LARDER_BLESS=1 $(CARGO) test --locked --lib config::tests::generated

.PHONY: e2e
e2e: build ## run the end-to-end tests with real clients (needs root and Debian packages; lists missing ones)
	tests/e2e/run $(LARDER)

.PHONY: test-s3
test-s3: ## run the tests of the S3 client with versitygw and SeaweedFS (tests/e2e/run --tools installs them)
	CARGO=$(CARGO) tests/stores/check

.PHONY: static
static: ## build the static binary target/static/ARCH/larder (ARCH=amd64 or arm64, default: that of this machine)
	SYSROOT=$(SYSROOT) scripts/build-static $(ARCH)

.PHONY: image-tar
image-tar: ## build the image target/larder-image.tar from the static binaries (needs buildah)
	scripts/build-image target/larder-image.tar

.PHONY: image
image: image-tar ## build the image and load it as localhost/larder:VERSION (needs podman)
	podman load --input target/larder-image.tar

.PHONY: install
install: ## install BINARY (default: the one from make build), unit, completions, manual page and default configuration
	@test -x $(BINARY) || { echo "$(BINARY) does not exist: run make build, or make static and set BINARY=target/static/amd64/larder"; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/larder
	install -d $(foreach dir,$(SHARED),$(DESTDIR)$(PREFIX)/$(dir)) $(DESTDIR)$(SYSCONFDIR)/larder
	$(BINARY) completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/larder
	$(BINARY) completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_larder
	$(BINARY) completions fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/larder.fish
	$(BINARY) man >$(DESTDIR)$(PREFIX)/share/man/man8/larder.8
	sed 's#/usr/local/bin#$(PREFIX)/bin#; s#/etc/larder/#$(SYSCONFDIR)/larder/#g' contrib/systemd/larder.service \
	  >$(DESTDIR)$(PREFIX)/lib/systemd/system/larder.service
	test -e $(DESTDIR)$(SYSCONFDIR)/larder/larder.yaml || install -m 644 contrib/larder.yaml $(DESTDIR)$(SYSCONFDIR)/larder/larder.yaml
	@echo 'Next: systemctl daemon-reload && systemctl enable --now larder'

SHARED := share/bash-completion/completions share/zsh/site-functions share/fish/vendor_completions.d share/man/man8 lib/systemd/system

.PHONY: uninstall
uninstall: ## remove the installed files, but keep the cache and a changed configuration
	rm -f $(DESTDIR)$(PREFIX)/bin/larder $(DESTDIR)$(PREFIX)/share/bash-completion/completions/larder \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_larder $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/larder.fish \
	  $(DESTDIR)$(PREFIX)/share/man/man8/larder.8 $(DESTDIR)$(PREFIX)/lib/systemd/system/larder.service
	@if cmp -s contrib/larder.yaml $(DESTDIR)$(SYSCONFDIR)/larder/larder.yaml; then \
	  rm -f $(DESTDIR)$(SYSCONFDIR)/larder/larder.yaml; rmdir $(DESTDIR)$(SYSCONFDIR)/larder 2>/dev/null || true; fi

.PHONY: chart
chart: build ## lint, render and validate the Helm chart, and start its pods without a cluster (needs root and Go)
	tests/chart/run $(LARDER)

.PHONY: kind-up
kind-up: ## create a kind cluster that pulls through Larder (needs Docker, kind, helm, kubectl; docs/kind.md)
	tests/kind/up

.PHONY: kind-test
kind-test: ## remove the registry of that cluster, and start pods on nodes that have never pulled
	tests/kind/test

.PHONY: kind-down
kind-down: ## delete the cluster and its registry
	tests/kind/down

.PHONY: cluster-up
cluster-up: ## start a Kubernetes cluster without Docker (needs root, cgroup v1, Go, target/larder-image.tar; tests/cluster)
	tests/cluster/up

.PHONY: cluster-test
cluster-test: ## install Larder in that cluster in several ways, and break things; CASES="promise tls" selects cases
	tests/cluster/test $(CASES)

.PHONY: cluster-down
cluster-down: ## remove the cluster; the built tools remain
	tests/cluster/down

.PHONY: bench
bench: build ## compare performance with nginx and docker-registry
	$(CARGO) build --release --locked --example load
	bench/run $(LARDER)

# The driver is built like the tests, which have built it already; the server is the release binary.
SOAK := $(CARGO) run --locked --quiet --example soak -- --larder $(LARDER)

.PHONY: soak
soak: build ## run the soak test for HOURS (1) or MINUTES, with SEED (random); a violation is printed with its evidence
	$(SOAK) --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

HOURS ?= 1
MINUTES ?= $(shell expr $(HOURS) \* 60)

.PHONY: soak-sabotage
soak-sabotage: build ## break something on purpose, a minute for each of SABOTAGES: the checks of the soak test must find it
	for name in $(SABOTAGES); do $(SOAK) --minutes 1 --sabotage $$name || exit 1; done

SABOTAGES ?= flip truncate blob pin tag log registry connections leftover disk panic

.PHONY: lint
lint: ## check formatting, clippy and rustdoc; warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test faults -- -D warnings
	$(CARGO) clippy --locked --lib --tests --features interleavings -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items

.PHONY: clean
clean: ## remove build output, but keep the cache in CACHE
	$(CARGO) clean
