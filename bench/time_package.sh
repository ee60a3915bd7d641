#!/bin/sh
# Time an exported package on every choice of compute units beside the model on MLX, and write the benchmark's JSON:
#     bench/time_package.sh MODEL PACKAGE OUT.json [OPTIONS OF russet bench decode]
# Elsewhere than on a Mac what runs it there is timed, once. For Core AI on a Mac, set USE_OS_COREAI=1.
set -eu

if [ $# -lt 3 ]; then
    sed -n '2,4s/^# *//p' "$0" >&2
    exit 2
fi
model=$1 package=$2 out=$3
shift 3
if [ "$(uname -s)" = Darwin ]; then
    set -- --package "$package@cpu" --package "$package@cpu-gpu" --package "$package@cpu-ne" --package "$package@all" "$@"
else
    set -- --package "$package" "$@"
fi
exec "${RUSSET:-russet}" bench decode -m "$model" --no-as-installed --json "$out" "$@"
