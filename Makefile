# Larder's commands. `make help` lists them.

CARGO ?= cargo
LARDER := $(or $(CARGO_TARGET_DIR),target)/release/larder
# What `make install` installs, and where; DESTDIR goes before every path.
BINARY ?= $(LARDER)
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
PORT ?= 8080
CACHE ?= .larder

.PHONY: help
help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

.PHONY: build
build: ## build the release binary, target/release/larder
	$(CARGO) build --release --locked

.PHONY: run
run: build ## build and serve on PORT (8080), with the cache in CACHE (.larder); prints how to pull through it
	@printf '%s\n' '' \
	  'Larder will listen on port $(PORT), its cache is in $(CACHE). In another terminal:' '' \
	  '  curl http://127.0.0.1:$(PORT)/v2/docker.io/library/alpine/manifests/latest' \
	  '  skopeo copy --src-tls-verify=false docker://127.0.0.1:$(PORT)/docker.io/library/alpine:latest dir:/tmp/alpine' \
	  '  podman pull --tls-verify=false 127.0.0.1:$(PORT)/docker.io/library/alpine:latest' '' \
	  'Any public registry works the same way: put its name first in the path. Ctrl-C stops.' ''
	$(LARDER) --image-path $(CACHE) serve --host 127.0.0.1 --port $(PORT)

.PHONY: demo
demo: build ## show the promise in one terminal without any network: cold pull, registry stopped, warm pull
	@$(CARGO) run --release --locked --quiet --example demo -- $(LARDER)

.PHONY: test
test: ## run every test that needs nothing but a Rust toolchain
	$(CARGO) test --locked

.PHONY: generate
generate: ## write what is generated from src/config/file.rs: tables in docs/configuration.md, the chart's schema
	LARDER_BLESS=1 $(CARGO) test --locked --lib config::tests::generated

.PHONY: e2e
e2e: build ## pull with the real clients through Larder (root and Debian packages; says what is missing)
	tests/e2e/run $(LARDER)

.PHONY: static
static: ## build the static binary, target/static/ARCH/larder (ARCH=amd64 or arm64, default this machine's)
	SYSROOT=$(SYSROOT) scripts/build-static $(ARCH)

.PHONY: image-tar
image-tar: ## put what `make static` has built into an image, target/larder-image.tar (buildah)
	scripts/build-image target/larder-image.tar

.PHONY: image
image: image-tar ## the same, and load it as localhost/larder:VERSION (podman)
	podman load --input target/larder-image.tar

.PHONY: install
install: ## install BINARY (default: what make build made), unit, completions, manual page and a default configuration
	@test -x $(BINARY) || { echo "there is no $(BINARY): make build, or make static and BINARY=target/static/amd64/larder"; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(PREFIX)/bin/larder
	install -d $(foreach dir,$(SHARED),$(DESTDIR)$(PREFIX)/$(dir)) $(DESTDIR)$(SYSCONFDIR)/larder
	$(BINARY) completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/larder
	$(BINARY) completions zsh >$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_larder
	$(BINARY) completions fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/larder.fish
	$(BINARY) man >$(DESTDIR)$(PREFIX)/share/man/man8/larder.8
	sed 's#/usr/local/bin#$(PREFIX)/bin#; s#/etc/larder/#$(SYSCONFDIR)/larder/#g' contrib/systemd/larder.service \
	  >$(DESTDIR)$(PREFIX)/lib/systemd/system/larder.service
	test -e $(DESTDIR)$(SYSCONFDIR)/larder/larder.yaml || install -m 644 contrib/larder.yaml $(DESTDIR)$(SYSCONFDIR)/larder/larder.yaml
	@echo 'Now: systemctl daemon-reload && systemctl enable --now larder'

SHARED := share/bash-completion/completions share/zsh/site-functions share/fish/vendor_completions.d share/man/man8 lib/systemd/system

.PHONY: uninstall
uninstall: ## remove what install has put there; the cache, and a configuration that was changed, stay
	rm -f $(DESTDIR)$(PREFIX)/bin/larder $(DESTDIR)$(PREFIX)/share/bash-completion/completions/larder \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_larder $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/larder.fish \
	  $(DESTDIR)$(PREFIX)/share/man/man8/larder.8 $(DESTDIR)$(PREFIX)/lib/systemd/system/larder.service
	@if cmp -s contrib/larder.yaml $(DESTDIR)$(SYSCONFDIR)/larder/larder.yaml; then \
	  rm -f $(DESTDIR)$(SYSCONFDIR)/larder/larder.yaml; rmdir $(DESTDIR)$(SYSCONFDIR)/larder 2>/dev/null || true; fi

.PHONY: chart
chart: build ## lint, render, validate and start what the Helm chart deploys, without a cluster (root, Go)
	tests/chart/run $(LARDER)

.PHONY: kind-up
kind-up: ## make a cluster with kind that pulls through Larder (Docker, kind, helm, kubectl; docs/kind.md)
	tests/kind/up

.PHONY: kind-test
kind-test: ## in it, take the registry away: pods still start on nodes that have never pulled
	tests/kind/test

.PHONY: kind-down
kind-down: ## remove that cluster and its registry
	tests/kind/down

.PHONY: bench
bench: build ## measure against nginx and docker-registry, as ratios in one run
	$(CARGO) build --release --locked --example load
	bench/run $(LARDER)

.PHONY: lint
lint: ## formatting, clippy and documentation, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps --document-private-items

.PHONY: clean
clean: ## remove what was built; the cache in CACHE stays
	$(CARGO) clean
