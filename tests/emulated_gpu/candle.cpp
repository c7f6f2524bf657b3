// Candle's own kernels, by the names, parameters and types that candle-kernels 0.11.1 gives them. A build for the emulated
// device has none of their PTX, so they are written here in C++.
#include "device.h"
#include <cmath>
#include <limits>
#include <type_traits>

namespace emu {

static std::map<std::string, Function *> &table() { static auto *t = new std::map<std::string, Function *>; return *t; }

// Registers a function of (blocks, parameters…) as a kernel; sizes and kinds of parameters come from its type.
template <class... A, size_t... I>
static void add_kernel(const std::string &name, void (*kernel)(size_t, A...), std::index_sequence<I...>) {
  auto *function = new Function{name, {int(sizeof(A))...}, {std::is_pointer_v<A>...}, nullptr};
  function->run = [kernel](void **p, unsigned blocks, unsigned) { kernel(blocks, *(A *)p[I]...); };
  table()[name] = function;
}
template <class... A>
static void add(const std::string &name, void (*kernel)(size_t, A...)) { add_kernel(name, kernel, std::index_sequence_for<A...>{}); }

// Where element i of a tensor lies whose dimensions and strides follow each other in `info`; null means contiguous.
struct Strided {
  size_t n;
  const size_t *dims, *strides;
  Strided(size_t n, const size_t *info, size_t which = 1) : n(info ? n : 0), dims(info), strides(info ? info + which * n : nullptr) {}
  size_t operator()(size_t i) const {
    if (!n) return i;
    size_t at = 0;
    for (size_t k = n; k-- > 0; i /= dims[k]) at += i % dims[k] * strides[k];
    return at;
  }
};

// The type that a type's arithmetic is done in.
template <class T> struct Wide { using type = T; };
template <> struct Wide<bf16> { using type = float; };
template <> struct Wide<f16> { using type = float; };
template <class T> using wide = typename Wide<T>::type;
template <class T> static wide<T> lowest() {
  if constexpr (std::numeric_limits<wide<T>>::has_infinity) return -std::numeric_limits<wide<T>>::infinity();
  return std::numeric_limits<wide<T>>::lowest();
}

template <class T, class F>
static void unary(size_t n, const T *in, T *out, const Strided &at, F f) { for (size_t i = 0; i < n; i++) out[i] = T(f(wide<T>(in ? in[at(i)] : out[i]))); }
#define UNARY(name, type, T, expression) \
  add(std::string("u" name "_") + type, +[](size_t, size_t n, size_t dims, const size_t *info, const T *in, T *out) { \
    unary(n, in, out, Strided(dims, info), [](wide<T> x) -> wide<T> { return expression; }); })
#define BINARY(name, type, T, R, expression) \
  add(std::string("b" name "_") + type, +[](size_t, size_t n, size_t dims, const size_t *info, const T *lhs, const T *rhs, R *out) { \
    Strided at_l(dims, info), at_r(dims, info, 2); \
    for (size_t i = 0; i < n; i++) { wide<T> x = lhs[at_l(i)], y = rhs[at_r(i)]; out[i] = R(expression); } })
#define COMPARISON(name, type, T, expression) \
  add(std::string(name "_") + type, +[](size_t, size_t n, size_t dims, const size_t *info, const T *lhs, const T *rhs, uint8_t *out) { \
    Strided at_l(dims, info), at_r(dims, info, 2); \
    for (size_t i = 0; i < n; i++) { wide<T> x = lhs[at_l(i)], y = rhs[at_r(i)]; out[i] = expression; } })
#define REDUCTION(name, type, T, start, combine) \
  add(std::string(name "_") + type, +[](size_t blocks, size_t, size_t per, size_t dims, const size_t *info, const T *in, T *out) { \
    Strided at(dims, info); \
    for (size_t b = 0; b < blocks; b++) { wide<T> a = start; for (size_t i = 0; i < per; i++) { wide<T> x = in[at(b * per + i)]; a = combine; } out[b] = T(a); } })

template <class I, class T> static void index_kernels(const std::string &index, const std::string &type) {
  const I none = std::numeric_limits<I>::max();
  (void)none;
  add("is_" + index + "_" + type, +[](size_t, size_t n, size_t dims, const size_t *info, const I *ids, const T *in, T *out, size_t, size_t source, size_t count, size_t right) {
    Strided at(dims, info);
    for (size_t i = 0; i < n; i++) {
      I id = ids[i / right % count];
      if (id == std::numeric_limits<I>::max()) { out[i] = T(0); continue; }
      if (size_t(id) >= source) { problem("index_select: index %ld of %zu", long(id), source); continue; }
      out[i] = in[at((i / (count * right) * source + id) * right + i % right)];
    }
  });
  add("gather_" + index + "_" + type, +[](size_t, size_t n, const I *ids, const T *in, T *out, size_t, size_t source, size_t count, size_t right) {
    for (size_t i = 0; i < n; i++) {
      if (ids[i] == std::numeric_limits<I>::max()) { out[i] = T(0); continue; }
      if (size_t(ids[i]) >= source) { problem("gather: index %ld of %zu", long(ids[i]), source); continue; }
      out[i] = in[(i / (right * count) * source + ids[i]) * right + i % right];
    }
  });
  add("ia_" + index + "_" + type, +[](size_t, const I *ids, size_t count, const T *in, T *out, size_t left, size_t, size_t target, size_t right) {
    for (size_t i = 0; i < left * right; i++) for (size_t j = 0; j < count; j++) {
      if (ids[j] == std::numeric_limits<I>::max()) continue;
      if (size_t(ids[j]) >= target) { problem("index_add: index %ld of %zu", long(ids[j]), target); continue; }
      T &sum = out[(i / right * target + ids[j]) * right + i % right];
      sum = T(wide<T>(sum) + wide<T>(in[(i / right * count + j) * right + i % right]));
    }
  });
  add("sa_" + index + "_" + type, +[](size_t, const I *ids, const T *in, T *out, size_t left, size_t source, size_t target, size_t right) {
    for (size_t i = 0; i < left * right; i++) for (size_t j = 0; j < source; j++) {
      size_t from = (i / right * source + j) * right + i % right;
      if (ids[from] == std::numeric_limits<I>::max()) continue;
      if (size_t(ids[from]) >= target) { problem("scatter_add: index %ld of %zu", long(ids[from]), target); continue; }
      T &sum = out[(i / right * target + ids[from]) * right + i % right];
      sum = T(wide<T>(sum) + wide<T>(in[from]));
    }
  });
}

// What there is for every type of elements.
template <class T> static void any_type(const std::string &type) {
  UNARY("copy", type, T, x);
  BINARY("add", type, T, T, x + y);
  BINARY("sub", type, T, T, x - y);
  BINARY("mul", type, T, T, x * y);
  BINARY("div", type, T, T, x / y);
  BINARY("minimum", type, T, T, x < y ? x : y);
  BINARY("maximum", type, T, T, x > y ? x : y);
  COMPARISON("eq", type, T, x == y);
  COMPARISON("ne", type, T, x != y);
  COMPARISON("lt", type, T, x < y);
  COMPARISON("le", type, T, x <= y);
  COMPARISON("gt", type, T, x > y);
  COMPARISON("ge", type, T, x >= y);
  REDUCTION("fast_sum", type, T, 0, a + x);
  REDUCTION("fast_max", type, T, lowest<T>(), x > a ? x : a);
  REDUCTION("fast_min", type, T, -lowest<T>(), x < a ? x : a);
  add("fast_sum_small_" + type, +[](size_t, size_t n, size_t per, size_t dims, const size_t *info, const T *in, T *out) {
    Strided at(dims, info);
    for (size_t b = 0; b < n; b++) { wide<T> a = 0; for (size_t i = 0; i < per; i++) a += wide<T>(in[at(b * per + i)]); out[b] = T(a); }
  });
  add("fast_argmax_" + type, +[](size_t blocks, size_t, size_t per, size_t dims, const size_t *info, const T *in, uint32_t *out) {
    Strided at(dims, info);
    for (size_t b = 0; b < blocks; b++) { size_t best = 0; for (size_t i = 1; i < per; i++) if (wide<T>(in[at(b * per + i)]) > wide<T>(in[at(b * per + best)])) best = i; out[b] = best; }
  });
  add("affine_" + type, +[](size_t, size_t n, size_t dims, const size_t *info, const T *in, T *out, T factor, T term) {
    unary(n, in, out, Strided(dims, info), [=](wide<T> x) -> wide<T> { return x * wide<T>(factor) + wide<T>(term); });
  });
  add("const_set_" + type, +[](size_t, size_t n, size_t dims, const size_t *info, T value, T *out) { Strided at(dims, info); for (size_t i = 0; i < n; i++) out[at(i)] = value; });
  add("copy2d_" + type, +[](size_t, const T *from, T *to, uint32_t rows, uint32_t columns, uint32_t from_stride, uint32_t to_stride) {
    for (size_t i = 0; i < rows; i++) memcpy(to + i * to_stride, from + i * from_stride, columns * sizeof(T));
  });
  add("where_u8_" + type, +[](size_t, size_t n, size_t dims, const size_t *info, const uint8_t *which, const T *yes, const T *no, T *out) {
    Strided at(dims, info), at_yes(dims, info, 2), at_no(dims, info, 3);
    for (size_t i = 0; i < n; i++) out[i] = which[at(i)] ? yes[at_yes(i)] : no[at_no(i)];
  });
  index_kernels<uint32_t, T>("u32", type);
  index_kernels<int64_t, T>("i64", type);
  index_kernels<uint8_t, T>("u8", type);
}

template <class T> static void float_type(const std::string &type) {
  UNARY("neg", type, T, -x);
  UNARY("recip", type, T, 1 / x);
  UNARY("exp", type, T, std::exp(x));
  UNARY("log", type, T, std::log(x));
  UNARY("sin", type, T, std::sin(x));
  UNARY("cos", type, T, std::cos(x));
  UNARY("tanh", type, T, std::tanh(x));
  UNARY("erf", type, T, std::erf(x));
  UNARY("abs", type, T, std::fabs(x));
  UNARY("sqr", type, T, x * x);
  UNARY("sqrt", type, T, std::sqrt(x));
  UNARY("relu", type, T, x > 0 ? x : 0);
  UNARY("floor", type, T, std::floor(x));
  UNARY("ceil", type, T, std::ceil(x));
  UNARY("sign", type, T, wide<T>((x > 0) - (x < 0)));
  UNARY("silu", type, T, x / (1 + std::exp(-x)));
  UNARY("sigmoid", type, T, 1 / (1 + std::exp(-x)));
  UNARY("gelu_erf", type, T, x * (1 + std::erf(x * wide<T>(M_SQRT1_2))) / 2);
  add("upowf_" + type, +[](size_t, size_t n, size_t dims, const size_t *info, T power, const T *in, T *out) {
    unary(n, in, out, Strided(dims, info), [=](wide<T> x) -> wide<T> { return std::pow(x, wide<T>(power)); });
  });
}

template <class A, class B> static void cast(const std::string &from, const std::string &to) {
  add("cast_" + from + "_" + to, +[](size_t, size_t n, size_t dims, const size_t *info, const A *in, B *out) {
    Strided at(dims, info);
    for (size_t i = 0; i < n; i++) out[i] = B(wide<A>(in[at(i)]));
  });
}
template <class A> static void casts(const std::string &from) {
  cast<A, float>(from, "f32"); cast<A, double>(from, "f64"); cast<A, bf16>(from, "bf16"); cast<A, f16>(from, "f16");
  cast<A, uint8_t>(from, "u8"); cast<A, uint32_t>(from, "u32"); cast<A, int64_t>(from, "i64");
}

Function *candle_kernel(const std::string &name) {
  static bool filled = [] {
    any_type<float>("f32"); any_type<double>("f64"); any_type<bf16>("bf16"); any_type<f16>("f16");
    any_type<uint8_t>("u8"); any_type<uint32_t>("u32"); any_type<int64_t>("i64");
    float_type<float>("f32"); float_type<double>("f64"); float_type<bf16>("bf16"); float_type<f16>("f16");
    casts<float>("f32"); casts<double>("f64"); casts<bf16>("bf16"); casts<f16>("f16");
    casts<uint8_t>("u8"); casts<uint32_t>("u32"); casts<int64_t>("i64");
    return true;
  }();
  (void)filled;
  auto it = table().find(name);
  return it == table().end() ? nullptr : it->second;
}

}  // namespace emu
