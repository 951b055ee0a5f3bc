#!/bin/sh
# Builds one fuzz target with the stable compiler and runs it; README.md explains.
# Usage: fuzz/run.sh TARGET SECONDS [libFuzzer options]
set -eu
usage="usage: fuzz/run.sh TARGET SECONDS [libFuzzer options]"
target=${1:?"$usage"}
seconds=${2:?"$usage"}
shift 2
cd "$(dirname "$0")"

features=
case $target in
    gguf)
        seeds="../testdata/format/*.gguf" dictionaries="gguf" max_len=8192 ;;
    safetensors)
        seeds="../testdata/format/*.safetensors" dictionaries="json safetensors" max_len=4096 ;;
    compressed_tensors)
        seeds="../testdata/format/*.ct" dictionaries="json safetensors" max_len=4096 ;;
    bitsandbytes)
        seeds="../testdata/bitsandbytes/seeds/*.safetensors ../testdata/quantized/seeds/bnb-*"
        dictionaries="json safetensors" max_len=8192 ;;
    column_ints)
        seeds="../testdata/quantized/seeds/gptq-* ../testdata/quantized/seeds/awq" dictionaries="json safetensors" max_len=8192 ;;
    fp8)
        seeds="../testdata/quantized/seeds/fp8-*" dictionaries="json safetensors" max_len=4096 ;;
    mxfp4)
        seeds="../testdata/quantized/seeds/mxfp4" dictionaries="json safetensors" max_len=4096 ;;
    config)
        seeds="../testdata/model/published/*.json" dictionaries="json config" max_len=4096 features=model ;;
    requests)
        seeds="seeds/requests/*" dictionaries="json requests" max_len=4096 features=serve ;;
    calls)
        seeds="seeds/calls/*" dictionaries="json requests" max_len=4096 features=serve ;;
    constraints)
        seeds="seeds/constraints/*" dictionaries="json constraints" max_len=2048 features=serve ;;
    audit_log)
        seeds="seeds/audit_log/*" dictionaries="json audit_log" max_len=8192 features=serve ;;
    keys)
        seeds="seeds/keys/*" dictionaries="keys" max_len=4096 features=serve ;;
    *)
        echo "error: unknown target \`$target\`: gguf, safetensors, compressed_tensors, bitsandbytes, column_ints, fp8, mxfp4, config, requests, calls, constraints, audit_log or keys" >&2
        exit 2 ;;
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
cargo build --release --locked --target "$triple" --features "$features" --bin "$target"

corpus=corpus/$target
artifacts=artifacts/$target
mkdir -p "$corpus" "$artifacts"
for seed in $seeds; do
    cp "$seed" "$corpus/seed-$(basename "$seed")"
done
for dictionary in $dictionaries; do
    cat "dictionaries/$dictionary.dict"
done > "$corpus.dict"
exec "target/$triple/release/$target" "$corpus" \
    -max_total_time="$seconds" -dict="$corpus.dict" -artifact_prefix="$artifacts/" \
    -max_len="$max_len" -timeout=10 -rss_limit_mb=512 -malloc_limit_mb=64 -print_final_stats=1 "$@"
