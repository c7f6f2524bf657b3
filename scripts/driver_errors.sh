#!/usr/bin/env bash
# What a build for CUDA says of drivers and GPUs that it cannot use, without either: each case has a driver's library of
# its own that answers four calls and fails in all others.
#
#   scripts/driver_errors.sh BINARY TOOLCHAIN     TOOLCHAIN as made by scripts/cuda_toolchain.sh in its mode `light`
set -euo pipefail
[ $# = 2 ] || { sed -n '2,5p' "$0" | cut -c3- >&2; exit 2; }
binary=$(realpath "$1") stubs=$(realpath "$2")/lib64/stubs
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for library in nccl.so.2 nvrtc.so.13 curand.so.10 cublas.so.13 cublasLt.so.13 cudnn.so.9; do
  ln -s "$stubs/lib${library%%.*}.so" "$folder/lib$library"
done
answered='^(cuInit|cuDriverGetVersion|cuDeviceGetCount|cuGetErrorString)$'
nm -D --defined-only "$stubs/libcuda.so" | awk '{print $3}' | grep '^cu' | sort -u | grep -vE "$answered" \
  >"$folder/others"

failed=0
# check INIT VERSION GPUS DEVICE MESSAGE: what cuInit returns, the driver's CUDA, how many GPUs it has
check() {
  {
    sed 's/.*/int &(void) { return 999; }/' "$folder/others"
    echo "int cuInit(unsigned flags) { return $1; }"
    echo "int cuDriverGetVersion(int *version) { *version = $2; return 0; }"
    echo "int cuDeviceGetCount(int *count) { *count = $3; return 0; }"
    echo 'int cuGetErrorString(int error, const char **text) { *text = "no such luck"; return 0; }'
  } >"$folder/driver.c"
  cc -shared -fPIC -w -fno-builtin -Wl,-soname,libcuda.so.1 -o "$folder/libcuda.so.1" "$folder/driver.c"
  local said code=0
  said=$(LD_LIBRARY_PATH=$folder "$binary" bench --model lenet5 --device "$4" 2>&1 >/dev/null) || code=$?
  if [ "$code" = 1 ] && [ "$said" = "error: $5" ]; then
    echo "ok      $said"
  else
    failed=1
    printf 'FAILED  exit code %s: %s\n        expected: error: %s\n' "$code" "$said" "$5"
  fi
}

check 100 13000 0 cuda "this machine has no GPU of NVIDIA; use --device cpu"
check 803 13000 0 cuda "the driver of the GPU and its library are of two versions; restart the machine"
check 3 13000 0 cuda:0 "the driver of the GPU cannot be used: no such luck; use --device cpu"
check 0 12020 1 cuda "the driver of the GPU is for CUDA 12.2, and this program needs one for 13.0 (580 or newer)"
check 0 13000 0 cuda "there is no GPU 0; this machine has none"
check 0 13000 1 cuda:1 "there is no GPU 1; this machine has one, cuda:0"
check 0 13000 2 cuda:5 "there is no GPU 5; this machine has 2, cuda:0 to cuda:1"
check 0 13000 2 cuda:1 'GPU 1 cannot be used: DriverError(CUDA_ERROR_UNKNOWN, "no such luck")'
exit "$failed"
