#!/bin/sh
# Runs all tests of the workspace. When some fail, the end of what each said
# comes again after everything else, where whoever reads a long log begins.
set -eu
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
{
    status=0
    # CARGO may have arguments, as in "cargo +nightly".
    # shellcheck disable=SC2086
    ${CARGO:-cargo} test --workspace --lib --bins --tests --no-fail-fast 2>&1 || status=$?
    echo "$status" >"$folder/status"
} | tee "$folder/log"
status=$(cat "$folder/status")

if [ "$status" != 0 ]; then
    printf '\nWhat failed:\n'
    # "---- NAME ----" or "---- NAME stdout ----", what it said, and at last "failures:" with the names.
    awk -v most=15 '
        function show(   line) {
            for (line = (lines > most) ? lines - most + 1 : 1; line <= lines; line++)
                print kept[line]
            lines = 0
        }
        /^---- .* ----$/ { show(); print; within = 1; skip = 0; next }
        /^stack backtrace:$/ { skip = 1 }
        /^failures:$/ { show(); within = 0 }
        within && NF && !skip { kept[++lines] = $0 }
        /^note: / { skip = 0 }
        /^test result: FAILED/ { print }
        END { show() }
    ' "$folder/log"
fi
exit "$status"
