# What one does with Dormouse's sources. Each target installs or builds what it needs and nothing twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Steps that use all cores by themselves are not run side by side.
.NOTPARALLEL:

CACHE := $(abspath $(or $(DORMOUSE_CACHE),.cache))
export DORMOUSE_CACHE := $(CACHE)
ASSETS := $(CACHE)/assets
TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
GUEST_TRIPLE := x86_64-unknown-linux-gnu

.PHONY: help
help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what is missing (Debian packages, guest kernel, base image)
	@scripts/setup.sh

.PHONY: agent
agent: setup
	@# Static, so that it runs in any guest; --target keeps the flag away from build scripts.
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --locked --profile guest \
	    --target $(GUEST_TRIPLE) --target-dir $(TARGET)/guest -p dormouse-agent -p dormouse-jail
	@cmp -s $(TARGET)/guest/$(GUEST_TRIPLE)/guest/dormouse-agent $(ASSETS)/agent || \
	    install -m 755 $(TARGET)/guest/$(GUEST_TRIPLE)/guest/dormouse-agent $(ASSETS)/agent
	@# So is the jail: it has to start fast, and to hang on nothing.
	@cmp -s $(TARGET)/guest/$(GUEST_TRIPLE)/guest/dormouse-jail $(ASSETS)/dormouse-jail || \
	    install -m 755 $(TARGET)/guest/$(GUEST_TRIPLE)/guest/dormouse-jail $(ASSETS)/dormouse-jail

.PHONY: build
build: agent ## Build target/release/dormouse and all that it needs to run
	cargo build --locked --release -p dormouse
	@ln -sfn $(ASSETS) $(TARGET)/release/dormouse-assets

.PHONY: dist
dist: agent ## Build target/dist/dormouse to be installed: the same, optimized as a whole
	cargo build --locked --profile dist -p dormouse
	@ln -sfn $(ASSETS) $(TARGET)/dist/dormouse-assets

.PHONY: demo
demo: build ## From a Dockerfile to a sleeping and waking microVM, with the AWS CLI and curl
	@venv=$$(scripts/python-env.sh) && exec "$$venv/bin/python" scripts/demo.py

.PHONY: test
test: ## Run every check and test, real microVMs included
	@scripts/test.sh

.PHONY: test-kvm
test-kvm: build ## Run the VM tests again on true KVM, in an emulated machine (a long while)
	@tests/kvm/test.sh

.PHONY: bench
bench: dist ## Measure launch, suspend, resume, memory and the proxy; writes target/bench.json
	@venv=$$(scripts/python-env.sh) && export DORMOUSE_BINARY=$(TARGET)/dist/dormouse && \
	    exec "$$venv/bin/python" scripts/bench.py

.PHONY: test-interrupted
test-interrupted: build ## Run end-to-end tests again with suspends at random moments (DORMOUSE_TEST_INTERRUPT is the seed)
	@venv=$$(scripts/python-env.sh) && export DORMOUSE_TEST_INTERRUPT=$${DORMOUSE_TEST_INTERRUPT:-$$RANDOM} && \
	    "$$venv/bin/python" -m pytest tests/e2e/py

.PHONY: soak
soak: build ## Keep 30 microVMs under random faults for 15 minutes and see that nothing is lost
	@venv=$$(scripts/python-env.sh) && exec "$$venv/bin/python" scripts/soak.py

.PHONY: fuzz
fuzz: ## Run each fuzzer for a minute (DORMOUSE_FUZZ_SECONDS says otherwise)
	@scripts/fuzz.sh

.PHONY: examples
examples: build ## Build and check every image under examples/ (an hour in software emulation)
	@venv=$$(scripts/python-env.sh) && exec "$$venv/bin/python" scripts/examples.py

.PHONY: lint
lint: ## Check format, lints and dependencies
	@scripts/lint.sh

.PHONY: fmt
fmt: ## Format all Rust code
	cargo fmt --all

.PHONY: clean
clean: ## Remove what was built; the cache of downloads stays
	cargo clean
