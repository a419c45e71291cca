#!/bin/sh
# Runs the fuzz targets one after the other, over and over, until one finds
# something or Ctrl-C. Arguments: the targets (default: all).
# FUZZ_SECONDS: how long each runs at a time (300). FUZZ_ROUNDS: how often (0:
# without end).
set -eu

cd "$(dirname "$0")/../fuzz"

fail() {
    echo "fuzz: $1" >&2
    exit 1
}

cargo +nightly --version >/dev/null 2>&1 ||
    fail "needs a nightly compiler: rustup toolchain install nightly"
cargo +nightly fuzz --version >/dev/null 2>&1 ||
    fail "needs cargo-fuzz: cargo install cargo-fuzz"

[ $# -gt 0 ] || set -- $(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | grep -v '^bcache-fuzz$')

round=0
while :; do
    for target; do
        echo "== $target"
        cargo +nightly fuzz run "$target" -- -max_len=4096 -timeout=20 \
            -max_total_time="${FUZZ_SECONDS:-300}"
    done
    round=$((round + 1))
    [ "$round" != "${FUZZ_ROUNDS:-0}" ] || break
done
