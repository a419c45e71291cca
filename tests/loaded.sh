#!/bin/sh
# Runs a kernel suite again and again while each processor is busy with a loop of its own: what a
# guest's script takes for granted on an idle machine comes to light. `make check-loaded` calls it.
# Arguments: how often (default 20), and which tests (default the sets with worn buckets).
set -eu
top=$(cd "$(dirname "$0")/.." && pwd)
cd "$top"
runs=${1:-20}
tests=${2:-reads_what_it_wrote_worn}

# CARGO may have arguments, as in "cargo +nightly".
# shellcheck disable=SC2086
reader() {
    CI=true ${CARGO:-cargo} test -q --workspace --test reader_kernel "$@"
}

reader --no-run
loops=
trap 'kill $loops' EXIT
for _ in $(seq "$(nproc)"); do
    sh -c 'while :; do :; done' &
    loops="$loops $!"
done
said=$(mktemp)
failed=0
for run in $(seq "$runs"); do
    begun=$(date +%s)
    if reader -- "$tests" >"$said" 2>&1; then
        how=passed
    else
        how=FAILED failed=$((failed + 1))
        cat "$said"
    fi
    echo "loaded.sh: run $run of $runs $how ($(($(date +%s) - begun)) s)"
done
rm "$said"
echo "loaded.sh: $failed of $runs runs failed"
[ "$failed" = 0 ]
