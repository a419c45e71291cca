#!/bin/sh
# Runs the fuzz targets with cargo-fuzz, one after the other: those named on the
# command line, or all. Each runs for $FUZZ_SECONDS (default 60). What made one
# fail is left in fuzz/artifacts.
set -eu
cd "$(dirname "$0")/.."

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "fuzz: cargo-fuzz is missing: cargo install cargo-fuzz" >&2
    exit 1
fi
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz: a nightly compiler is missing: rustup toolchain install nightly" >&2
    exit 1
fi
[ $# -gt 0 ] || {
    targets=$(cargo +nightly fuzz list)
    # The list is words, one a target.
    # shellcheck disable=SC2086
    set -- $targets
}
for target; do
    cargo +nightly fuzz run "$target" -- -max_total_time="${FUZZ_SECONDS:-60}" -max_len=8192 \
        -timeout=20
done
