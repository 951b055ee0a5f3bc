#!/usr/bin/env bash
# Builds llama.cpp's llama-bench for `edgelm bench MODEL --vs FOLDER/llama-bench`.
#
#   scripts/build-llama-bench.sh [--no-amx | --avx2] [--sdist FILE] [--jobs N] FOLDER
#
#   --no-amx      everything this CPU has except AMX: the opponent of `--isa avx512`
#   --avx2        AVX2, FMA and F16C only: the opponent of `--isa avx2`
#   --sdist FILE  a source package that is already here, instead of a download
#   --jobs N      parallel compilers [default: all cores]
#
# The source is the copy of llama.cpp inside the PyPI source package `llama-cpp-python`, because a package index is
# reachable from more places than a code host, and because a version number then names the exact source.
# Needs Python 3 with pip, a C++ compiler and make; CMake comes from PyPI where the system has none.
set -euo pipefail

version=0.3.36
variant=native
sdist=
jobs=$(nproc)
folder=
while [ $# -gt 0 ]; do
  case $1 in
    --no-amx | --avx2) variant=${1#--} ;;
    --sdist) sdist=${2:?--sdist needs a file} && shift ;;
    --jobs) jobs=${2:?--jobs needs a number} && shift ;;
    -*) echo "unknown option $1" >&2 && exit 2 ;;
    *) folder=$1 ;;
  esac
  shift
done
if [ -z "$folder" ]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# --- Source ----------------------------------------------------------------------------------------------------------
if [ -z "$sdist" ]; then
  # --no-deps: only the source is wanted, not what the Python package needs at run time. What pip needs to look into it may be binary.
  python3 -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$folder/download" "llama-cpp-python==$version"
  sdist=$(echo "$folder"/download/llama_cpp_python-*.tar.gz)
fi
# Unpacked afresh, so that what is built is the package and nothing else.
rm -rf "$folder/source"
mkdir "$folder/source"
tar -xzf "$sdist" -C "$folder/source" --strip-components 1
source=$folder/source/vendor/llama.cpp

# gcc before 13 declares that _tile_loadconfig reads 8 bytes where it reads 64, drops the stores that fill the rest, and
# the program dies of SIGSEGV or SIGILL in its first AMX product. A barrier keeps the stores; where it is not needed it
# costs nothing, since the function runs once per thread.
amx=$source/ggml/src/ggml-cpu/amx/mmq.cpp
sed -i 's/^\( *\)\(_tile_loadconfig(\)/\1asm volatile("" ::: "memory");\n\1\2/' "$amx"
if ! grep -q 'asm volatile("" ::: "memory")' "$amx"; then
  echo "no _tile_loadconfig in $amx: this version needs another look" >&2
  exit 1
fi

# --- CMake -----------------------------------------------------------------------------------------------------------
if ! command -v cmake >/dev/null; then
  python3 -m venv "$folder/venv"
  "$folder/venv/bin/pip" install --quiet cmake
  PATH=$folder/venv/bin:$PATH
fi

# --- Build -----------------------------------------------------------------------------------------------------------
options=(
  -DCMAKE_BUILD_TYPE=Release
  -DBUILD_SHARED_LIBS=OFF # one file that can be moved
  -DGGML_CCACHE=OFF
  -DLLAMA_CURL=OFF
  -DLLAMA_OPENSSL=OFF
  -DLLAMA_BUILD_TESTS=OFF
)
case $variant in
  native)
    options+=(-DGGML_NATIVE=ON)
    ;;
  no-amx)
    # Beside -march=native these win whatever their order, so all other instruction sets stay as in the native build.
    off='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'
    options+=(-DGGML_NATIVE=ON "-DCMAKE_C_FLAGS=$off" "-DCMAKE_CXX_FLAGS=$off")
    ;;
  avx2)
    options+=(-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON)
    options+=(-DGGML_AVX_VNNI=OFF -DGGML_AVX512=OFF -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF)
    ;;
esac
# A cache of another variant would keep that variant's flags.
rm -rf "$folder/build"
# Thousands of lines of warnings from gcc's own headers: shown only where something fails.
logged() {
  local log=$1
  shift
  "$@" >"$log" 2>&1 || { tail -n 40 "$log" >&2 && echo "failed: see $log" >&2 && exit 1; }
}
logged "$folder/cmake.log" cmake -S "$source" -B "$folder/build" "${options[@]}"
logged "$folder/make.log" cmake --build "$folder/build" --parallel "$jobs" --target llama-bench

cp "$folder/build/bin/llama-bench" "$folder/llama-bench"
echo "$folder/llama-bench"
