# Everything here is Cargo's work; this file names what is typed often.

CARGO ?= cargo

.PHONY: all check deps kernels

all:
	$(CARGO) build --release --workspace

# The whole test suite. The documentation's examples come first, so that the
# last lines are the test runner's own counts.
check: deps kernels
	$(CARGO) test --workspace --doc
	$(CARGO) test --workspace --lib --bins --tests

# What building and testing need of the machine (Debian packages).
deps:
	tests/install-deps.sh

# The stock kernels that the tests boot.
kernels: deps
	tests/fetch-kernels.sh
