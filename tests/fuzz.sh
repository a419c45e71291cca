#!/bin/sh
# Runs the fuzz targets one after the other: those named on the command line, or
# all. Each runs for $FUZZ_SECONDS (default 60), on the stable compiler: coverage
# comes from LLVM's own pass, which needs no nightly option. A run begins with
# the inputs of fuzz/seeds, which kernels wrote for the most part, and with what
# earlier runs left in fuzz/corpus; what made a target fail is in fuzz/artifacts.
# Says of each target how often it ran and how many of its edges it covered.
set -eu
cd "$(dirname "$0")/../fuzz"

if ! command -v c++ >/dev/null; then
    echo "fuzz: a C++ compiler is missing (package g++): libFuzzer is written in it" >&2
    exit 1
fi
[ $# -gt 0 ] || {
    targets=$(basename -a -s .rs fuzz_targets/*.rs)
    # The list is words, one a target.
    # shellcheck disable=SC2086
    set -- $targets
}

# With the host named, build scripts and macros go without coverage.
host=$(rustc -vV | sed -n 's/^host: //p')
flags='--cfg fuzzing -C passes=sancov-module -C codegen-units=1'
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags="$flags -C llvm-args=-sanitizer-coverage-$option"
done
built=${CARGO_TARGET_DIR:-target}/$host/release
for target; do
    RUSTFLAGS=$flags ${CARGO:-cargo} build --locked --release --target "$host" --bin "$target"
done

failed=
for target; do
    mkdir -p "corpus/$target" "artifacts/$target"
    log=artifacts/$target.log
    set -- "corpus/$target"
    [ ! -d "seeds/$target" ] || set -- "$@" "seeds/$target"
    "$built/$target" "$@" -max_total_time="${FUZZ_SECONDS:-60}" -max_len=8192 -timeout=20 \
        -print_final_stats=1 -artifact_prefix="artifacts/$target/" >"$log" 2>&1 ||
        failed="$failed $target"
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    edges=$(sed -n 's/.*Loaded [0-9]* PC tables (\([0-9]*\) PCs).*/\1/p' "$log")
    echo "$target: ${executions:-0} executions, ${covered:-0} of ${edges:-?} edges covered"
done
if [ -n "$failed" ]; then
    echo "fuzz: failed:$failed; see fuzz/artifacts" >&2
    exit 1
fi
