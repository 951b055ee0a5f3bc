#!/bin/sh
# Builds one fuzz target with the stable compiler and runs it.
# Usage: fuzz/run.sh TARGET SECONDS [libFuzzer options]
set -eu
target=${1:?"usage: fuzz/run.sh TARGET SECONDS [libFuzzer options]"}
seconds=${2:?"usage: fuzz/run.sh TARGET SECONDS [libFuzzer options]"}
shift 2
cd "$(dirname "$0")"

case $target in
    gguf) seeds=../testdata/format extension=gguf max_len=8192 ;;
    safetensors) seeds=../testdata/format extension=safetensors max_len=4096 ;;
    *) echo "error: unknown target \`$target\`" >&2; exit 2 ;;
esac

# What `cargo fuzz` passes, without the sanitizers, which need a nightly compiler. Naming the target triple keeps
# build scripts and macros free of instrumentation.
triple=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares \
-Ccodegen-units=1 -Cforce-frame-pointers=yes"
cargo build --release --locked --target "$triple" --bin "$target"

corpus=corpus/$target
artifacts=artifacts/$target
mkdir -p "$corpus" "$artifacts"
for seed in "$seeds"/*."$extension"; do
    cp "$seed" "$corpus/seed-$(basename "$seed")"
done
exec "target/$triple/release/$target" "$corpus" \
    -max_total_time="$seconds" -artifact_prefix="$artifacts/" \
    -max_len="$max_len" -timeout=10 -rss_limit_mb=512 -malloc_limit_mb=64 -print_final_stats=1 "$@"
