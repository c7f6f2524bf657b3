#!/usr/bin/env bash
# build.sh FOLDER: builds the emulated GPU there, as the libraries of CUDA 13, cuDNN 9 and NCCL 2 that a program looks for.
# SANITIZE=1 builds it, and the kernels that it compiles, with AddressSanitizer and UndefinedBehaviorSanitizer; the program
# then needs LD_PRELOAD=$(cc -print-file-name=libasan.so).
set -euo pipefail
[ $# = 1 ] || { sed -n '2,4p' "$0" | cut -c3- >&2; exit 2; }
source=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
cd "$1"
flags=()
[ -z "${SANITIZE:-}" ] || flags=(-fsanitize=address,undefined -fno-omit-frame-pointer)
stamp="$(cat "$source"/*.cpp "$source"/*.h "$source/build.sh" | cksum) ${flags[*]:-}"
if [ "$(cat stamp 2>/dev/null)" != "$stamp" ]; then
  rm -f ./*.o
  jobs=()
  for file in device streams driver nvrtc candle cudnn libraries; do
    # `-march=native` for the loops of cuDNN's convolutions; contracted sums would differ from machine to machine.
    c++ -std=c++17 -O3 -march=native -ffp-contract=off -fopenmp-simd -Wall -Wextra -fPIC -fvisibility=hidden \
      "${flags[@]}" -c "$source/$file.cpp" -o "$file.o" &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job"; done
  c++ -shared "${flags[@]}" -o emulated_gpu.so ./*.o -ldl
  rm -f ./*.o
  for library in cuda.so.1 nvrtc.so.13 cublas.so.13 cublasLt.so.13 curand.so.10 cudnn.so.9 nccl.so.2; do
    ln -sf emulated_gpu.so "lib$library"
  done
  echo "$stamp" >stamp
fi
