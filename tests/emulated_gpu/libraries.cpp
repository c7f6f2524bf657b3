// cuBLAS, cuRAND and NCCL: the functions that candle and zoo call.
#include "device.h"
#include <fstream>
#include <memory>
#include <unistd.h>
#include <ctime>

using namespace emu;

// cuBLAS: products of matrices stored by columns. Type codes are those of library_types.h.
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
struct BlasHandle { void *stream = nullptr; };
API int cublasCreate_v2(void **handle) { LOCK; *handle = new BlasHandle; return 0; }
API int cublasDestroy_v2(void *handle) { LOCK; delete (BlasHandle *)handle; return 0; }
API int cublasSetStream_v2(void *handle, void *stream) { LOCK; ((BlasHandle *)handle)->stream = stream; return 0; }

template <class T, class S>
static void product(int ta, int tb, int m, int n, int k, S alpha, const T *a, int lda, const T *b, int ldb, S beta, T *c, int ldc) {
  std::vector<S> column(k), sums(m);
  for (int j = 0; j < n; j++) {
    for (int l = 0; l < k; l++) column[l] = S(b[tb ? j + (size_t)l * ldb : l + (size_t)j * ldb]);
    for (int i = 0; i < m; i++) sums[i] = 0;
    // Along the memory of A either way.
    if (ta) {
      for (int i = 0; i < m; i++) for (int l = 0; l < k; l++) sums[i] += S(a[l + (size_t)i * lda]) * column[l];
    } else {
      for (int l = 0; l < k; l++) for (int i = 0; i < m; i++) sums[i] += S(a[i + (size_t)l * lda]) * column[l];
    }
    for (int i = 0; i < m; i++) {
      T &out = c[i + (size_t)j * ldc];
      out = T(alpha * sums[i] + (beta == 0 ? S(0) : beta * S(out)));
    }
  }
}
template <class T, class S>
static int gemm(void *handle, int ta, int tb, int m, int n, int k, S alpha, Address a, int lda, long long sa, Address b, int ldb, long long sb, S beta, Address c, int ldc, long long sc, int batch) {
  if (m < 0 || n < 0 || k < 0 || lda < std::max(1, ta ? k : m) || ldb < std::max(1, tb ? n : k) || ldc < std::max(1, m)) return 7;  // CUBLAS_STATUS_INVALID_VALUE
  if (!m || !n || !batch) return 0;
  stream_of(((BlasHandle *)handle)->stream)->push([=] {
    check_range(c, (size_t(batch - 1) * sc + size_t(n - 1) * ldc + m) * sizeof(T), "cuBLAS, C");
    for (int i = 0; i < batch; i++) product<T, S>(ta, tb, m, n, k, alpha, (const T *)a + i * sa, lda, (const T *)b + i * sb, ldb, beta, (T *)c + i * sc, ldc);
  });
  return 0;
}
API int cublasDgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, const double *alpha, Address a, int lda, long long sa, Address b, int ldb, long long sb, const double *beta, Address c, int ldc, long long sc, int batch) {
  LOCK; count("cuBLAS f64");
  return gemm<double, double>(h, ta, tb, m, n, k, *alpha, a, lda, sa, b, ldb, sb, *beta, c, ldc, sc, batch);
}
API int cublasGemmStridedBatchedEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha, Address a, int at, int lda, long long sa, Address b, int bt, int ldb, long long sb, const void *beta, Address c, int ct, int ldc, long long sc, int batch, int compute, int) {
  LOCK;
  if (at != bt || at != ct) { problem("cuBLAS with operands of several types"); return 7; }
  // 64 is CUBLAS_COMPUTE_16F, in which the factors are f16; the other modes used have factors in f32.
  auto factor = [&](const void *p) { return compute == 64 ? float(*(const f16 *)p) : *(const float *)p; };
  float x = factor(alpha), y = factor(beta);
  count(at == R_32F ? "cuBLAS f32" : at == R_16BF ? "cuBLAS bf16" : "cuBLAS f16");
  switch (at) {
    case R_32F: return gemm<float, float>(h, ta, tb, m, n, k, x, a, lda, sa, b, ldb, sb, y, c, ldc, sc, batch);
    case R_16BF: return gemm<bf16, float>(h, ta, tb, m, n, k, x, a, lda, sa, b, ldb, sb, y, c, ldc, sc, batch);
    case R_16F: return gemm<f16, float>(h, ta, tb, m, n, k, x, a, lda, sa, b, ldb, sb, y, c, ldc, sc, batch);
    default: problem("cuBLAS with type %d", at); return 7;
  }
}

// cuRAND: candle makes a generator for each device, and zoo never draws from it.
API int curandCreateGenerator(void **generator, int) { LOCK; *generator = (void *)8; return 0; }
API int curandDestroyGenerator(void *) { LOCK; return 0; }
API int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { LOCK; return 0; }
API int curandSetStream(void *, void *) { LOCK; return 0; }

// NCCL: ranks are processes on this machine that exchange files.
struct NcclId { char text[128]; };
struct Communicator { std::string base; int size, rank; long sums = 0; };
API int ncclGetUniqueId(NcclId *id) {
  LOCK;
  memset(id, 0, sizeof *id);
  snprintf(id->text, sizeof id->text, "emulated-nccl-%d-%ld", int(getpid()), long(time(nullptr)));
  return 0;
}
API int ncclCommInitRank(void **communicator, int size, NcclId id, int rank) {
  LOCK;
  if (current_device() < 0) problem("ncclCommInitRank without a context");
  *communicator = new Communicator{std::string("/dev/shm/") + id.text, size, rank};
  return 0;
}
static std::string part(const Communicator *c, long sum, int rank) { return c->base + "." + std::to_string(sum) + "." + std::to_string(rank); }
API int ncclCommAbort(void *communicator) { LOCK; synchronise_all(); delete (Communicator *)communicator; return 0; }
API int ncclCommDestroy(void *communicator) { return ncclCommAbort(communicator); }
API int ncclCommGetAsyncError(void *, int *error) { *error = 0; return 0; }

template <class T> static void all_reduce(const Communicator *c, long number, Address from, Address to, size_t n) {
  if (!check_range(from, n * sizeof(T), "NCCL, send") || !check_range(to, n * sizeof(T), "NCCL, receive")) return;
  std::string own = part(c, number, c->rank);
  { std::ofstream out(own + ".new", std::ios::binary); out.write((const char *)from, n * sizeof(T)); }
  rename((own + ".new").c_str(), own.c_str());
  std::vector<T> sum(n), theirs(n + 1);
  for (int rank = 0; rank < c->size; rank++) {
    std::ifstream in;
    for (int tries = 0; !in.is_open(); tries++) {
      in.open(part(c, number, rank), std::ios::binary);
      if (in.is_open()) break;
      if (tries > 120000) { problem("NCCL: rank %d waits for rank %d", c->rank, rank); return; }
      in.clear();
      usleep(500);
    }
    in.read((char *)theirs.data(), n * sizeof(T) + 1);
    if ((size_t)in.gcount() != n * sizeof(T)) problem("NCCL: rank %d sums %zu bytes, rank %d %zu or more", c->rank, n * sizeof(T), rank, (size_t)in.gcount());
    for (size_t i = 0; i < n; i++) sum[i] += theirs[i];
  }
  memcpy((void *)to, sum.data(), n * sizeof(T));
  // All ranks have read the sum before the last when they take part in this one.
  if (number >= 2) unlink(part(c, number - 2, c->rank).c_str());
}
API int ncclAllReduce(Address from, Address to, size_t n, int type, int operation, void *handle, void *stream) {
  LOCK;
  auto *c = (Communicator *)handle;
  if (operation != 0 || (type != 7 && type != 8)) { problem("NCCL: operation %d on type %d", operation, type); return 4; }
  long number = c->sums++;
  Communicator copy = *c;
  stream_of(stream)->push([=] { if (type == 7) all_reduce<float>(&copy, number, from, to, n); else all_reduce<double>(&copy, number, from, to, n); });
  return 0;
}
API const char *ncclGetErrorString(int) { return "emulated NCCL error"; }
