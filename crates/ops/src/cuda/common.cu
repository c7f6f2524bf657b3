// What kernels of all element types share. Sums have one order: no thread adds to what another adds to. The file is C,
// too: the tests run it on the CPU. INDEX is the number of the thread; where the threads of a block work together,
// BLOCK_INDEX is the block's, FOR_THREADS is what each of its BLOCK threads t does, and BARRIER stands between two such
// where one needs what other threads wrote to SHARED memory in the other.

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

// bf16 is the upper half of an f32.
INLINE float bf16_to_float(unsigned short x) { return bits_to_float((unsigned)x << 16); }

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

// The threads of a block as `depth` rows of `lanes` columns, `depth` a power of two: the sum of each column in its first row.
#define ADD_UP(sums)                                                 \
  for (int half = depth / 2; half > 0; half /= 2) {                  \
    BARRIER;                                                         \
    FOR_THREADS(t) {                                                 \
      if (t / lanes < half) (sums)[t] += (sums)[t + half * lanes];   \
    }                                                                \
  }                                                                  \
  BARRIER

// Sums of `parts` rows of [parts, c].
KERNEL sum_parts(const float *parts_of, float *sums, int parts, int c, int lanes, int depth, int n) {
  SHARED double s[BLOCK];
  int block = BLOCK_INDEX;
  if (block >= n) return;
  FOR_THREADS(t) {
    int ch = block * lanes + t % lanes;
    s[t] = 0.0;
    if (t / lanes < depth && ch < c)
      for (int p = t / lanes; p < parts; p += depth) s[t] += parts_of[p * c + ch];
  }
  ADD_UP(s);
  FOR_THREADS(t) {
    if (t < lanes && block * lanes + t < c) sums[block * lanes + t] = (float)s[t];
  }
}

// Mean and biased variance from the moments of parts of `per` rows, and the normalisation by them as x · scale + shift;
// moves the running statistics by `momentum` towards them, the variance being the unbiased one there.
KERNEL merge_moments(const float *means, const float *m2s, const float *gamma, const float *beta, float *mean,
                     float *inv_std, float *scale, float *shift, float *running_mean, float *running_var,
                     float momentum, float eps, int rows, int per, int c, int lanes, int depth, int n) {
  SHARED double s[BLOCK], deviations[BLOCK];
  int block = BLOCK_INDEX, parts = (rows + per - 1) / per;
  if (block >= n) return;
  FOR_THREADS(t) {
    int ch = block * lanes + t % lanes;
    s[t] = 0.0;
    if (t / lanes < depth && ch < c)
      for (int p = t / lanes; p < parts; p += depth)
        s[t] += (double)(p + 1 < parts ? per : rows - p * per) * means[p * c + ch];
  }
  ADD_UP(s);
  FOR_THREADS(t) {
    int ch = block * lanes + t % lanes;
    double m = s[t % lanes] / rows;
    deviations[t] = 0.0;
    if (t / lanes < depth && ch < c)
      for (int p = t / lanes; p < parts; p += depth) {
        double d = means[p * c + ch] - m;
        deviations[t] += m2s[p * c + ch] + (double)(p + 1 < parts ? per : rows - p * per) * d * d;
      }
  }
  ADD_UP(deviations);
  FOR_THREADS(t) {
    int ch = block * lanes + t;
    if (t < lanes && ch < c) {
      double m = s[t] / rows, v = deviations[t] / rows;
      mean[ch] = (float)m;
      inv_std[ch] = (float)(1.0 / sqrt(v + eps));
      scale[ch] = inv_std[ch] * (gamma ? gamma[ch] : 1.0f);
      shift[ch] = (beta ? beta[ch] : 0.0f) - mean[ch] * scale[ch];
      running_mean[ch] = running_mean[ch] * (1.0f - momentum) + mean[ch] * momentum;
      running_var[ch] = running_var[ch] * (1.0f - momentum) + (float)(deviations[t] / (rows - 1)) * momentum;
    }
  }
}

// A normalisation as x · scale + shift.
KERNEL norm_factors(const float *mean, const float *var, const float *gamma, const float *beta, float *inv_std,
                    float *scale, float *shift, float eps, int c) {
  int ch = INDEX;
  if (ch >= c) return;
  inv_std[ch] = (float)(1.0 / sqrt((double)var[ch] + eps));
  scale[ch] = inv_std[ch] * (gamma ? gamma[ch] : 1.0f);
  shift[ch] = (beta ? beta[ch] : 0.0f) - mean[ch] * scale[ch];
}

// The sums over the pixels of dz and of dz · (x - mean): from them the gradients of γ and β, and what is taken from dz,
// which is lift + (x - mean) · pull, with `moving` 1 / rows where mean and variance are the batch's, else 0.
KERNEL merge_gradient_sums(const float *sums, const float *dots, const float *inv_std, float *lift, float *pull,
                           float *of_gamma, float *of_beta, float moving, int parts, int c, int lanes, int depth, int n) {
  SHARED double s[BLOCK], d[BLOCK];
  int block = BLOCK_INDEX;
  if (block >= n) return;
  FOR_THREADS(t) {
    int ch = block * lanes + t % lanes;
    s[t] = d[t] = 0.0;
    if (t / lanes < depth && ch < c)
      for (int p = t / lanes; p < parts; p += depth) {
        s[t] += sums[p * c + ch];
        d[t] += dots[p * c + ch];
      }
  }
  ADD_UP(s);
  ADD_UP(d);
  FOR_THREADS(t) {
    int ch = block * lanes + t;
    if (t < lanes && ch < c) {
      lift[ch] = (float)(moving * s[t]);
      pull[ch] = (float)(moving * d[t] * inv_std[ch] * inv_std[ch]);
      of_gamma[ch] = (float)(d[t] * inv_std[ch]);
      of_beta[ch] = (float)s[t];
    }
  }
}

// The factors q of the terms of a cross-entropy, [n / classes, classes].
KERNEL loss_terms(const unsigned *labels, float *terms, float of_label, float of_each, int classes, int n) {
  int i = INDEX;
  if (i < n) terms[i] = (int)labels[i / classes] == i % classes ? of_label : of_each;
}

// The factors of a loss from a distribution over the classes for each row: `factor` times it plus `term`.
KERNEL soft_terms(const float *soft, float *terms, float factor, float term, int n) {
  int i = INDEX;
  if (i < n) terms[i] = soft[i] * factor + term;
}

// Of each row of logits its largest, the sum of exponentials of the differences to it, and the sum of its factors q, with
// its loss Σ q · (log sum - x).
KERNEL nll_rows(const float *xs, const float *qs, float *rows, float *losses, int classes, int n) {
  SHARED double sums[BLOCK], totals[BLOCK], dots[BLOCK];
  SHARED float most[BLOCK];
  const int lanes = 1, depth = BLOCK;
  int row = BLOCK_INDEX;
  if (row >= n) return;
  xs += (long long)row * classes;
  qs += (long long)row * classes;
  FOR_THREADS(t) {
    most[t] = xs[0];
    for (int c = t; c < classes; c += BLOCK) most[t] = xs[c] > most[t] ? xs[c] : most[t];
  }
  for (int half = BLOCK / 2; half > 0; half /= 2) {
    BARRIER;
    FOR_THREADS(t) {
      if (t < half && most[t + half] > most[t]) most[t] = most[t + half];
    }
  }
  BARRIER;
  FOR_THREADS(t) {
    double sum = 0.0, total = 0.0, dot = 0.0;
    for (int c = t; c < classes; c += BLOCK) {
      sum += expf(xs[c] - most[0]);
      total += qs[c];
      dot += (double)qs[c] * xs[c];
    }
    sums[t] = sum;
    totals[t] = total;
    dots[t] = dot;
  }
  ADD_UP(sums);
  ADD_UP(totals);
  ADD_UP(dots);
  FOR_THREADS(t) {
    if (t == 0) {
      rows[3 * row] = most[0];
      rows[3 * row + 1] = (float)sums[0];
      rows[3 * row + 2] = (float)totals[0];
      losses[row] = (float)(totals[0] * (most[0] + log(sums[0])) - dots[0]);
    }
  }
}

KERNEL nll_gradient(const float *xs, const float *qs, const float *rows, const float *dy, float *dxs, int classes,
                    int n) {
  int i = INDEX;
  if (i >= n) return;
  const float *row = rows + 3 * (i / classes);
  dxs[i] = *dy * (expf(xs[i] - row[0]) / row[1] * row[2] - qs[i]);
}

// 1 for each row of logits that has no NaN and whose label's logit is the highest and the first of equal ones, else 0.
KERNEL hit_rows(const float *xs, const unsigned *labels, float *hits, int classes, int n) {
  SHARED float beaten[BLOCK];
  const int lanes = 1, depth = BLOCK;
  int row = BLOCK_INDEX;
  if (row >= n) return;
  xs += (long long)row * classes;
  FOR_THREADS(t) {
    int label = (int)labels[row];
    beaten[t] = 0.0f;
    for (int c = t; c < classes; c += BLOCK)
      if (xs[c] != xs[c] || xs[c] > xs[label] || (xs[c] == xs[label] && c < label)) beaten[t] = 1.0f;
  }
  ADD_UP(beaten);
  FOR_THREADS(t) {
    if (t == 0) hits[row] = beaten[0] == 0.0f ? 1.0f : 0.0f;
  }
}

// Which of `groups` the element i is of, by where they start in the count of all.
INLINE int group_of(const long long *starts, int groups, int i) {
  int low = 0, high = groups;
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (starts[middle] <= i) low = middle; else high = middle;
  }
  return low;
}

// torch.optim.SGD's step on many tensors. Of each there are the addresses of parameter, velocity and gradient, where it
// starts in the count of all elements (and where the last one ends), its learning rate and its weight decay.
KERNEL sgd(const unsigned long long *addresses, const long long *starts, const float *rates, float momentum,
           int nesterov, int groups, int n) {
  int i = INDEX;
  if (i >= n) return;
  int group = group_of(starts, groups, i), at = i - (int)starts[group];
  float *p = (float *)addresses[3 * group] + at, *v = (float *)addresses[3 * group + 1] + at;
  float g = ((const float *)addresses[3 * group + 2])[at] + rates[2 * group + 1] * *p;
  *v = momentum * *v + g;
  *p -= rates[2 * group] * (nesterov ? g + momentum * *v : *v);
}

// Of each of many tensors there are the addresses of its average and its own.
KERNEL average(const unsigned long long *addresses, const long long *starts, float kept, float taken, int groups,
               int n) {
  int i = INDEX;
  if (i >= n) return;
  int group = group_of(starts, groups, i), at = i - (int)starts[group];
  float *a = (float *)addresses[2 * group] + at;
  *a = kept * *a + taken * ((const float *)addresses[2 * group + 1])[at];
}

// For each of n words the next one of the same row, or -1; behind them, for each, whether it is the first of its row.
KERNEL word_links(const int *rows_of, int *next, int n) {
  int i = INDEX;
  if (i >= n) return;
  int after = i + 1, before = 0;
  while (after < n && rows_of[after] != rows_of[i]) after++;
  while (before < i && rows_of[before] != rows_of[i]) before++;
  next[i] = after < n ? after : -1;
  next[n + i] = before == i;
}
