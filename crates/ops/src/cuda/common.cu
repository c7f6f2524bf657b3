// What kernels of all element types share. One thread computes one value or one part of a sum; no thread waits for
// another and none adds to what another adds to, so sums have one order, and the file is C, too: the tests run it on
// the CPU. INDEX is the number of the thread.

#define IDENTITY 0
#define RELU 1
#define RELU6 2
#define LEAKY_RELU 3
#define SIGMOID 4
#define TANH 5
#define GELU 6
#define SILU 7
#define HARD_SWISH 8
#define HARD_SIGMOID 9

INLINE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

INLINE float relu6(float x) { return x <= 0.0f ? 0.0f : (x >= 6.0f ? 6.0f : x); }

// Comparisons are turned so that NaN stays NaN.
INLINE float activated(int activation, float slope, float x) {
  switch (activation) {
    case RELU: return x <= 0.0f ? 0.0f : x;
    case RELU6: return relu6(x);
    case LEAKY_RELU: return x > 0.0f ? x : slope * x;
    case SIGMOID: return sigmoid(x);
    case TANH: return tanhf(x);
    case GELU: return x * 0.5f * (1.0f + erff(x * 0.70710678f));
    case SILU: return x * sigmoid(x);
    case HARD_SWISH: return x * relu6(x + 3.0f) / 6.0f;
    case HARD_SIGMOID: return relu6(x + 3.0f) / 6.0f;
    default: return x;
  }
}

// Of the input; for identity, ReLU and ReLU6 the output serves as well.
INLINE float derivative(int activation, float slope, float x) {
  float s;
  switch (activation) {
    case RELU: return x <= 0.0f ? 0.0f : 1.0f;
    case RELU6: return x <= 0.0f || x >= 6.0f ? 0.0f : 1.0f;
    case LEAKY_RELU: return x > 0.0f ? 1.0f : slope;
    case SIGMOID: s = sigmoid(x); return s * (1.0f - s);
    case TANH: s = tanhf(x); return 1.0f - s * s;
    case GELU: return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * expf(-0.5f * x * x) * 0.3989423f;
    case SILU: s = sigmoid(x); return s * (1.0f + x * (1.0f - s));
    case HARD_SWISH: return x > -3.0f ? (x < 3.0f ? (2.0f * x + 3.0f) / 6.0f : 1.0f) : 0.0f;
    case HARD_SIGMOID: return x > -3.0f && x < 3.0f ? 1.0f / 6.0f : 0.0f;
    default: return 1.0f;
  }
}

// Sums of `parts` rows of [parts, c].
KERNEL sum_parts(const float *parts_of, float *sums, long long parts, long long c) {
  long long ch = INDEX;
  if (ch >= c) return;
  double sum = 0.0;
  for (long long p = 0; p < parts; p++) sum += parts_of[p * c + ch];
  sums[ch] = (float)sum;
}

// Mean and biased variance from the moments of parts of `per` rows (Chan, Golub and LeVeque 1983); moves the running
// statistics, if there are any, by `momentum` towards them, the variance being the unbiased one there.
KERNEL merge_moments(const float *means, const float *m2s, float *mean, float *var, float *running_mean,
                     float *running_var, float momentum, long long rows, long long per, long long c) {
  long long ch = INDEX;
  if (ch >= c) return;
  double count = 0.0, m = 0.0, s = 0.0;
  for (long long first = 0, p = 0; first < rows; first += per, p++) {
    double n = (double)(rows - first < per ? rows - first : per), total = count + n;
    double delta = means[p * c + ch] - m;
    m += delta * n / total;
    s += m2s[p * c + ch] + delta * delta * count * n / total;
    count = total;
  }
  mean[ch] = (float)m;
  var[ch] = (float)(s / count);
  if (running_mean) {
    running_mean[ch] = running_mean[ch] * (1.0f - momentum) + mean[ch] * momentum;
    running_var[ch] = running_var[ch] * (1.0f - momentum) + (float)(s / (count - 1.0)) * momentum;
  }
}

// A normalisation as x · scale + shift.
KERNEL norm_factors(const float *mean, const float *var, const float *gamma, const float *beta, float *inv_std,
                    float *scale, float *shift, float eps, long long c) {
  long long ch = INDEX;
  if (ch >= c) return;
  inv_std[ch] = (float)(1.0 / sqrt((double)var[ch] + eps));
  scale[ch] = inv_std[ch] * (gamma ? gamma[ch] : 1.0f);
  shift[ch] = (beta ? beta[ch] : 0.0f) - mean[ch] * scale[ch];
}

// The sums over the pixels of dz and of dz · (x - mean), and from them the gradients of γ and β.
KERNEL merge_gradient_sums(const float *sums, const float *dots, const float *inv_std, float *sum, float *dot,
                           float *of_gamma, float *of_beta, long long parts, long long c) {
  long long ch = INDEX;
  if (ch >= c) return;
  double s = 0.0, d = 0.0;
  for (long long p = 0; p < parts; p++) {
    s += sums[p * c + ch];
    d += dots[p * c + ch];
  }
  sum[ch] = (float)s;
  dot[ch] = (float)d;
  of_gamma[ch] = (float)(d * inv_std[ch]);
  of_beta[ch] = (float)s;
}

// torch.optim.SGD's step on many tensors. Of each there are the addresses of parameter, velocity and gradient, where it
// starts in the count of all elements (and where the last one ends), its learning rate and its weight decay.
KERNEL sgd(const unsigned long long *addresses, const long long *starts, const float *rates, float momentum,
           int nesterov, long long tensors, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long low = 0, high = tensors;
  while (high - low > 1) {
    long long middle = (low + high) / 2;
    if (starts[middle] <= i) low = middle; else high = middle;
  }
  long long at = i - starts[low];
  float *p = (float *)addresses[3 * low] + at, *v = (float *)addresses[3 * low + 1] + at;
  float g = ((const float *)addresses[3 * low + 2])[at] + rates[2 * low + 1] * *p;
  *v = momentum * *v + g;
  *p -= rates[2 * low] * (nesterov ? g + momentum * *v : *v);
}
