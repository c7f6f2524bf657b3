// cuDNN's convolutions, as plain loops, for the combinations that the real library documents as supported.
#include "device.h"
#include <memory>

using namespace emu;

// Codes of cudnn.h, version 9.
enum { DONE = 0, BAD_PARAM = 2000, NOT_SUPPORTED = 3000 };
enum { FLOAT = 0, HALF = 2, BFLOAT16 = 9 };
enum { NCHW = 0, NHWC = 1 };
enum { DEFAULT_MATH = 0, TENSOR_OP_MATH = 1, ALLOW_CONVERSION = 2, FMA_MATH = 3 };
enum Kind { FORWARD, BACKWARD_DATA, BACKWARD_FILTER };

struct TensorDescriptor { int format = -1, type = 0, n = 0, c = 0, h = 0, w = 0; size_t size() const { return (size_t)n * c * h * w; } };
struct FilterDescriptor { int format = -1, type = 0, k = 0, c = 0, h = 0, w = 0; size_t size() const { return (size_t)k * c * h * w; } };
struct ConvolutionDescriptor { int pad[2], stride[2], dilation[2], mode = -1, compute = 0, groups = 1, math = DEFAULT_MATH; };
struct DnnHandle { void *stream = nullptr; int device; };

API int cudnnCreate(void **handle) {
  LOCK;
  if (current_device() < 0) problem("cudnnCreate without a context");
  *handle = new DnnHandle{nullptr, current_device()};
  return DONE;
}
API int cudnnDestroy(void *handle) { LOCK; delete (DnnHandle *)handle; return DONE; }
API int cudnnSetStream(void *handle, void *stream) { LOCK; ((DnnHandle *)handle)->stream = stream; return DONE; }
API size_t cudnnGetVersion() { return 92100; }
API const char *cudnnGetErrorString(int) { return "emulated cuDNN error"; }
API int cudnnCreateTensorDescriptor(void **d) { LOCK; *d = new TensorDescriptor; return DONE; }
API int cudnnDestroyTensorDescriptor(void *d) { LOCK; delete (TensorDescriptor *)d; return DONE; }
API int cudnnCreateFilterDescriptor(void **d) { LOCK; *d = new FilterDescriptor; return DONE; }
API int cudnnDestroyFilterDescriptor(void *d) { LOCK; delete (FilterDescriptor *)d; return DONE; }
API int cudnnCreateConvolutionDescriptor(void **d) { LOCK; *d = new ConvolutionDescriptor; return DONE; }
API int cudnnDestroyConvolutionDescriptor(void *d) { LOCK; delete (ConvolutionDescriptor *)d; return DONE; }
API int cudnnSetTensor4dDescriptor(void *d, int format, int type, int n, int c, int h, int w) {
  LOCK;
  if (n <= 0 || c <= 0 || h <= 0 || w <= 0) return BAD_PARAM;
  *(TensorDescriptor *)d = {format, type, n, c, h, w};
  return DONE;
}
API int cudnnSetTensor4dDescriptorEx(void *, int, int, int, int, int, int, int, int, int) { LOCK; problem("cuDNN tensors with strides are not emulated"); return NOT_SUPPORTED; }
API int cudnnSetFilter4dDescriptor(void *d, int type, int format, int k, int c, int h, int w) {
  LOCK;
  if (k <= 0 || c <= 0 || h <= 0 || w <= 0) return BAD_PARAM;
  *(FilterDescriptor *)d = {format, type, k, c, h, w};
  return DONE;
}
API int cudnnSetConvolution2dDescriptor(void *d, int pad_h, int pad_w, int stride_h, int stride_w, int dilation_h, int dilation_w, int mode, int compute) {
  LOCK;
  if (pad_h < 0 || pad_w < 0 || stride_h <= 0 || stride_w <= 0 || dilation_h <= 0 || dilation_w <= 0) return BAD_PARAM;
  *(ConvolutionDescriptor *)d = {{pad_h, pad_w}, {stride_h, stride_w}, {dilation_h, dilation_w}, mode, compute, 1, DEFAULT_MATH};
  return DONE;
}
API int cudnnSetConvolutionGroupCount(void *d, int groups) { LOCK; if (groups <= 0) return BAD_PARAM; ((ConvolutionDescriptor *)d)->groups = groups; return DONE; }
API int cudnnSetConvolutionMathType(void *d, int math) { LOCK; ((ConvolutionDescriptor *)d)->math = math; return DONE; }

// One convolution: y of x and w, or one of them of the others.
struct Problem {
  Kind kind;
  TensorDescriptor x;
  FilterDescriptor w;
  ConvolutionDescriptor conv;
  TensorDescriptor y;
};

// What the descriptors must have in common, and what of it the library supports.
static int check(const Problem &p) {
  const auto &[kind, x, w, conv, y] = p;
  auto out = [&](int size, int kernel, int i) { return (size + 2 * conv.pad[i] - conv.dilation[i] * (kernel - 1) - 1) / conv.stride[i] + 1; };
  if (x.type != w.type || x.type != y.type) return BAD_PARAM;
  if (x.c != w.c * conv.groups || w.k != y.c || w.k % conv.groups || x.n != y.n) return BAD_PARAM;
  if (y.h != out(x.h, w.h, 0) || y.w != out(x.w, w.w, 1)) return BAD_PARAM;
  if (conv.mode != 1) { problem("cuDNN: mode %d is a convolution; networks cross-correlate", conv.mode); return BAD_PARAM; }
  // Filters in NHWC need maps in NHWC, fully packed, and one of FLOAT_CONFIG, PSEUDO_HALF_CONFIG, PSEUDO_BFLOAT16_CONFIG.
  if (x.format != NHWC || y.format != NHWC || w.format != NHWC) return NOT_SUPPORTED;
  if (x.type != FLOAT && x.type != HALF && x.type != BFLOAT16) return NOT_SUPPORTED;
  if (conv.compute != FLOAT) return NOT_SUPPORTED;
  return DONE;
}

// An algorithm that the library may offer for a kind of convolution.
struct Algorithm { int number; bool deterministic; size_t workspace; };
// Numbers, and which give the same bits each time, are those of the reference of cudnnConvolution*Algo_t; only those for
// filters in NHWC. The order is that in which `Find` returns them here, the quickest first.
static std::vector<Algorithm> algorithms(const Problem &p) {
  switch (p.kind) {
    case FORWARD: return {{1, true, 4096}, {0, true, 0}};           // IMPLICIT_PRECOMP_GEMM, IMPLICIT_GEMM
    case BACKWARD_DATA: return {{0, false, 0}, {1, true, 8192}};    // ALGO_0, ALGO_1
    default: return {{0, false, 0}, {3, false, 4096}, {1, true, 8192}};  // ALGO_0, ALGO_3, ALGO_1
  }
}
static const Algorithm *find_algorithm(const std::vector<Algorithm> &all, int number) { for (auto &a : all) if (a.number == number) return &a; return nullptr; }

static size_t bytes_of(int type) { return type == FLOAT ? 4 : 2; }

template <class T> static std::vector<float> load(Address at, size_t n) { std::vector<float> v(n); for (size_t i = 0; i < n; i++) v[i] = ((const T *)at)[i]; return v; }
template <class T> static void store(Address at, const std::vector<float> &v) { for (size_t i = 0; i < v.size(); i++) ((T *)at)[i] = T(v[i]); }

// Sums are formed in f32, and rounded once. Maps are [n, h, w, c], filters [k, h, w, c / groups].
template <class T> static void convolve(const Problem &p, Address xp, Address wp, Address yp) {
  const auto &[kind, x, w, conv, y] = p;
  std::vector<float> xs = kind == BACKWARD_DATA ? std::vector<float>(x.size()) : load<T>(xp, x.size());
  std::vector<float> ws = kind == BACKWARD_FILTER ? std::vector<float>(w.size()) : load<T>(wp, w.size());
  std::vector<float> ys = kind == FORWARD ? std::vector<float>(y.size()) : load<T>(yp, y.size());
  const int c_in = w.c, c_out = w.k / conv.groups;
  for (int n = 0; n < y.n; n++) for (int oy = 0; oy < y.h; oy++) for (int ox = 0; ox < y.w; ox++) {
    float *yr = &ys[((size_t)(n * y.h + oy) * y.w + ox) * y.c];
    for (int ky = 0; ky < w.h; ky++) {
      int iy = oy * conv.stride[0] - conv.pad[0] + ky * conv.dilation[0];
      if (iy < 0 || iy >= x.h) continue;
      for (int kx = 0; kx < w.w; kx++) {
        int ix = ox * conv.stride[1] - conv.pad[1] + kx * conv.dilation[1];
        if (ix < 0 || ix >= x.w) continue;
        float *xr = &xs[((size_t)(n * x.h + iy) * x.w + ix) * x.c];
        for (int k = 0; k < w.k; k++) {
          float *wr = &ws[((size_t)(k * w.h + ky) * w.w + kx) * c_in], *xg = xr + (size_t)(k / c_out) * c_in;
          if (kind == FORWARD) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int i = 0; i < c_in; i++) sum += xg[i] * wr[i];
            yr[k] += sum;
          } else if (kind == BACKWARD_DATA) {
            for (int i = 0; i < c_in; i++) xg[i] += yr[k] * wr[i];
          } else {
            for (int i = 0; i < c_in; i++) wr[i] += yr[k] * xg[i];
          }
        }
      }
    }
  }
  if (kind == FORWARD) store<T>(yp, ys);
  else if (kind == BACKWARD_DATA) store<T>(xp, xs);
  else store<T>(wp, ws);
}
static void convolve_any(const Problem &p, Address x, Address w, Address y) {
  if (p.x.type == FLOAT) convolve<float>(p, x, w, y);
  else if (p.x.type == HALF) convolve<f16>(p, x, w, y);
  else convolve<bf16>(p, x, w, y);
}

static bool operands(const Problem &p, Address x, Address w, Address y) {
  size_t each = bytes_of(p.x.type);
  for (Address operand : {x, w, y}) if (operand % 16) problem("cuDNN: an operand at %lx is not aligned to 16 bytes", (long)operand);
  return check_range(x, p.x.size() * each, "cuDNN, x") && check_range(w, p.w.size() * each, "cuDNN, w") && check_range(y, p.y.size() * each, "cuDNN, y");
}

static const char *const NAMES[] = {"cuDNN forward", "cuDNN backward data", "cuDNN backward filter"};

static int launch(const Problem &p, void *handle, const void *alpha, const void *beta, int number, Address x, Address w, Address y, Address workspace, size_t size) {
  count(NAMES[p.kind]);
  if (lost()) return 5000;  // CUDNN_STATUS_EXECUTION_FAILED
  auto *h = (DnnHandle *)handle;
  if (h->device != current_device()) problem("cuDNN: a handle of device %d in a context of device %d", h->device, current_device());
  if (int status = check(p)) return status;
  auto all = algorithms(p);
  const Algorithm *algorithm = find_algorithm(all, number);
  if (!algorithm) { fprintf(stderr, "emulated GPU: %s has no algorithm %d for filters in NHWC\n", NAMES[p.kind], number); return NOT_SUPPORTED; }
  if (!algorithm->deterministic) problem("%s: algorithm %d is run, whose bits may differ each time", NAMES[p.kind], number);
  if (*(const float *)alpha != 1 || *(const float *)beta != 0) { problem("cuDNN: factors other than 1 and 0 are not emulated"); return BAD_PARAM; }
  if (size < algorithm->workspace) return BAD_PARAM;
  size_t needed = algorithm->workspace;
  stream_of(h->stream)->push([=] {
    if (!operands(p, x, w, y)) return;
    if (needed && check_range(workspace, needed, "cuDNN, workspace")) memset((void *)workspace, 0xff, needed);
    convolve_any(p, x, w, y);
  });
  return DONE;
}

// struct cudnnConvolution*AlgoPerf_t: algorithm, status, milliseconds, bytes, determinism (0 none, 1 deterministic), math.
struct Performance { int algorithm, status; float ms; size_t memory; int determinism, math, reserved[3]; };

static int list(const Problem &p, int wanted, int *returned, Performance *out, size_t limit) {
  int n = 0;
  float ms = 0.1f;
  for (auto &a : algorithms(p)) {
    if (n == wanted) break;
    int status = a.workspace > limit ? 4000 : DONE;  // CUDNN_STATUS_ALLOC_FAILED
    // With another math type than the default one, `Find` tries both.
    int math = p.conv.math;
    if (math == FMA_MATH && n + 1 < wanted) out[n++] = {a.number, status, ms, a.workspace, a.deterministic, DEFAULT_MATH, {}}, ms += 0.05f;
    out[n++] = {a.number, status, status ? -1.f : ms, a.workspace, a.deterministic, math, {}};
    ms += 0.1f;
  }
  if (n < wanted) out[n++] = {7, NOT_SUPPORTED, -1, (size_t)8 << 30, 1, p.conv.math, {}};
  *returned = n;
  return DONE;
}

static int find(const Problem &p, void *handle, int wanted, int *returned, Performance *out, Address x, Address w, Address y, Address workspace, size_t size) {
  count("cuDNN find");
  if (int status = check(p)) return status;
  if (refuse_in_capture("cudnnFindConvolution…")) return BAD_PARAM;
  stream_of(((DnnHandle *)handle)->stream)->synchronise();
  if (!operands(p, x, w, y)) return BAD_PARAM;
  // It runs them: results and workspace are overwritten.
  size_t each = bytes_of(p.x.type);
  if (p.kind == FORWARD) memset((void *)y, 0xff, p.y.size() * each);
  if (p.kind == BACKWARD_DATA) memset((void *)x, 0xff, p.x.size() * each);
  if (p.kind == BACKWARD_FILTER) memset((void *)w, 0xff, p.w.size() * each);
  if (size && check_range(workspace, size, "cuDNN, workspace")) memset((void *)workspace, 0xff, size);
  return list(p, wanted, returned, out, size);
}

static Problem problem_of(Kind kind, void *x, void *w, void *conv, void *y) { return {kind, *(TensorDescriptor *)x, *(FilterDescriptor *)w, *(ConvolutionDescriptor *)conv, *(TensorDescriptor *)y}; }
static int size_of(const Problem &p, int number, size_t *bytes) {
  if (int status = check(p)) return status;
  auto all = algorithms(p);
  auto *algorithm = find_algorithm(all, number);
  if (!algorithm) return NOT_SUPPORTED;
  *bytes = algorithm->workspace;
  return DONE;
}

API int cudnnConvolutionForward(void *h, const void *alpha, void *xd, Address x, void *wd, Address w, void *c, int algorithm, Address ws, size_t n, const void *beta, void *yd, Address y) { LOCK; return launch(problem_of(FORWARD, xd, wd, c, yd), h, alpha, beta, algorithm, x, w, y, ws, n); }
API int cudnnConvolutionBackwardData(void *h, const void *alpha, void *wd, Address w, void *yd, Address y, void *c, int algorithm, Address ws, size_t n, const void *beta, void *xd, Address x) { LOCK; return launch(problem_of(BACKWARD_DATA, xd, wd, c, yd), h, alpha, beta, algorithm, x, w, y, ws, n); }
API int cudnnConvolutionBackwardFilter(void *h, const void *alpha, void *xd, Address x, void *yd, Address y, void *c, int algorithm, Address ws, size_t n, const void *beta, void *wd, Address w) { LOCK; return launch(problem_of(BACKWARD_FILTER, xd, wd, c, yd), h, alpha, beta, algorithm, x, w, y, ws, n); }
API int cudnnFindConvolutionForwardAlgorithmEx(void *h, void *xd, Address x, void *wd, Address w, void *c, void *yd, Address y, int wanted, int *got, Performance *out, Address ws, size_t n) { LOCK; return find(problem_of(FORWARD, xd, wd, c, yd), h, wanted, got, out, x, w, y, ws, n); }
API int cudnnFindConvolutionBackwardDataAlgorithmEx(void *h, void *wd, Address w, void *yd, Address y, void *c, void *xd, Address x, int wanted, int *got, Performance *out, Address ws, size_t n) { LOCK; return find(problem_of(BACKWARD_DATA, xd, wd, c, yd), h, wanted, got, out, x, w, y, ws, n); }
API int cudnnFindConvolutionBackwardFilterAlgorithmEx(void *h, void *xd, Address x, void *yd, Address y, void *c, void *wd, Address w, int wanted, int *got, Performance *out, Address ws, size_t n) { LOCK; return find(problem_of(BACKWARD_FILTER, xd, wd, c, yd), h, wanted, got, out, x, w, y, ws, n); }
API int cudnnGetConvolutionForwardAlgorithm_v7(void *, void *xd, void *wd, void *c, void *yd, int wanted, int *got, Performance *out) { LOCK; auto p = problem_of(FORWARD, xd, wd, c, yd); if (int s = check(p)) return s; return list(p, wanted, got, out, ~0ul); }
API int cudnnGetConvolutionBackwardDataAlgorithm_v7(void *, void *wd, void *yd, void *c, void *xd, int wanted, int *got, Performance *out) { LOCK; auto p = problem_of(BACKWARD_DATA, xd, wd, c, yd); if (int s = check(p)) return s; return list(p, wanted, got, out, ~0ul); }
API int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *, void *xd, void *yd, void *c, void *wd, int wanted, int *got, Performance *out) { LOCK; auto p = problem_of(BACKWARD_FILTER, xd, wd, c, yd); if (int s = check(p)) return s; return list(p, wanted, got, out, ~0ul); }
API int cudnnGetConvolutionForwardWorkspaceSize(void *, void *xd, void *wd, void *c, void *yd, int algorithm, size_t *bytes) { LOCK; return size_of(problem_of(FORWARD, xd, wd, c, yd), algorithm, bytes); }
API int cudnnGetConvolutionBackwardDataWorkspaceSize(void *, void *wd, void *yd, void *c, void *xd, int algorithm, size_t *bytes) { LOCK; return size_of(problem_of(BACKWARD_DATA, xd, wd, c, yd), algorithm, bytes); }
API int cudnnGetConvolutionBackwardFilterWorkspaceSize(void *, void *xd, void *yd, void *c, void *wd, int algorithm, size_t *bytes) { LOCK; return size_of(problem_of(BACKWARD_FILTER, xd, wd, c, yd), algorithm, bytes); }
