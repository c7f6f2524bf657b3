// Kernels on maps [rows, c] in which a thread takes W neighbouring channels at once: 8, in accesses of 16 bytes, where
// the channels are a multiple of that, else 1. `cols` is c / W.

typedef struct PACKED { E v[W]; } NAME(pack);
typedef struct PACKED { float v[W]; } NAME(floats);
#define PACK NAME(pack)
#define FLOATS NAME(floats)
#define PACK_AT(xs, i) (((const PACK *)(xs))[i])
#define FLOATS_AT(xs, i) (((const FLOATS *)(xs))[i])
#define EACH(k) UNROLL for (int k = 0; k < W; k++)
#define ADD_UP_PACKS(sums)                                                       \
  for (int half = depth / 2; half > 0; half /= 2) {                              \
    BARRIER;                                                                     \
    FOR_THREADS(t) {                                                             \
      if (t / lanes < half) EACH(k) (sums)[k][t] += (sums)[k][t + half * lanes]; \
    }                                                                            \
  }                                                                              \
  BARRIER

INLINE void NAME(put)(E *ys, int i, const float *values) {
  PACK y;
  EACH(k) y.v[k] = STORE(values[k]);
  ((PACK *)ys)[i] = y;
}

// The frequent ones do not ask which it is for every element.
INLINE void NAME(activate_all)(int activation, float slope, float *z) {
  if (activation == IDENTITY) return;
  if (activation == RELU) {
    EACH(k) z[k] = activated(RELU, slope, z[k]);
  } else {
    EACH(k) z[k] = activated(activation, slope, z[k]);
  }
}

// dz times the derivative at z.
INLINE void NAME(derive_all)(int activation, float slope, const float *z, float *dz) {
  if (activation == IDENTITY) return;
  if (activation == RELU) {
    EACH(k) dz[k] *= derivative(RELU, slope, z[k]);
  } else {
    EACH(k) dz[k] *= derivative(activation, slope, z[k]);
  }
}

KERNEL NAME(add_into)(E *sum, const E *xs, int n) {
  int i = INDEX;
  if (i >= n) return;
  PACK a = PACK_AT(sum, i), b = PACK_AT(xs, i);
  float z[W];
  EACH(k) z[k] = LOAD(a.v[k]) + LOAD(b.v[k]);
  NAME(put)(sum, i, z);
}

// a + factor · b.
KERNEL NAME(scaled_sum)(const E *as, const E *bs, E *sums, float factor, int n) {
  int i = INDEX;
  if (i >= n) return;
  PACK a = PACK_AT(as, i), b = PACK_AT(bs, i);
  float z[W];
  EACH(k) z[k] = LOAD(a.v[k]) + factor * LOAD(b.v[k]);
  NAME(put)(sums, i, z);
}

KERNEL NAME(scaled)(const E *xs, E *ys, float factor, int n) {
  int i = INDEX;
  if (i >= n) return;
  PACK x = PACK_AT(xs, i);
  float z[W];
  EACH(k) z[k] = factor * LOAD(x.v[k]);
  NAME(put)(ys, i, z);
}

KERNEL NAME(activate)(const E *xs, E *ys, int activation, float slope, int n) {
  int i = INDEX;
  if (i >= n) return;
  PACK x = PACK_AT(xs, i);
  float z[W];
  EACH(k) z[k] = LOAD(x.v[k]);
  NAME(activate_all)(activation, slope, z);
  NAME(put)(ys, i, z);
}

KERNEL NAME(activate_gradient)(const E *xs, const E *dys, E *dxs, int activation, float slope, int n) {
  int i = INDEX;
  if (i >= n) return;
  PACK x = PACK_AT(xs, i), dy = PACK_AT(dys, i);
  float z[W], dz[W];
  EACH(k) {
    z[k] = LOAD(x.v[k]);
    dz[k] = LOAD(dy.v[k]);
  }
  NAME(derive_all)(activation, slope, z, dz);
  NAME(put)(dxs, i, dz);
}

KERNEL NAME(add_bias)(E *ys, const float *bias, int cols, int n) {
  int i = INDEX;
  if (i >= n) return;
  PACK y = PACK_AT(ys, i);
  FLOATS b = FLOATS_AT(bias, i % cols);
  float z[W];
  EACH(k) z[k] = LOAD(y.v[k]) + b.v[k];
  NAME(put)(ys, i, z);
}

KERNEL NAME(normalise)(const E *xs, const E *residual, const float *scale, const float *shift, E *ys, int activation,
                       float slope, int cols, int n) {
  int i = INDEX;
  if (i >= n) return;
  PACK x = PACK_AT(xs, i);
  FLOATS a = FLOATS_AT(scale, i % cols), b = FLOATS_AT(shift, i % cols);
  float z[W];
  EACH(k) z[k] = LOAD(x.v[k]) * a.v[k] + b.v[k];
  if (residual) {
    PACK r = PACK_AT(residual, i);
    EACH(k) z[k] += LOAD(r.v[k]);
  }
  NAME(activate_all)(activation, slope, z);
  NAME(put)(ys, i, z);
}

// Pack i of a normalisation's input, and the gradient of what goes into its activation. Where it was in the activation
// comes from the output `ys` if that is kept, which does for ReLU and ReLU6, else it is computed again.
INLINE void NAME(through)(const E *xs, const E *ys, const E *residual, const E *dys, const FLOATS *scale,
                          const FLOATS *shift, int activation, float slope, int i, float *x, float *dz) {
  PACK x_pack = PACK_AT(xs, i), dy = PACK_AT(dys, i);
  EACH(k) {
    x[k] = LOAD(x_pack.v[k]);
    dz[k] = LOAD(dy.v[k]);
  }
  if (activation == IDENTITY) return;
  float z[W];
  if (ys) {
    PACK y = PACK_AT(ys, i);
    EACH(k) z[k] = LOAD(y.v[k]);
  } else {
    EACH(k) z[k] = x[k] * scale->v[k] + shift->v[k];
    if (residual) {
      PACK r = PACK_AT(residual, i);
      EACH(k) z[k] += LOAD(r.v[k]);
    }
  }
  NAME(derive_all)(activation, slope, z, dz);
}

// dx = scale · (dz - lift - (x - mean) · pull); see merge_gradient_sums. The residual's gradient is dz.
KERNEL NAME(norm_gradient)(const E *xs, const E *ys, const E *residual, const E *dys, const float *mean,
                           const float *scale, const float *shift, const float *lift, const float *pull, E *dxs,
                           E *of_residual, int activation, float slope, int cols, int n) {
  int i = INDEX;
  if (i >= n) return;
  int col = i % cols;
  FLOATS a = FLOATS_AT(scale, col), b = FLOATS_AT(shift, col), m = FLOATS_AT(mean, col);
  FLOATS l = FLOATS_AT(lift, col), p = FLOATS_AT(pull, col);
  float x[W], dz[W];
  NAME(through)(xs, ys, residual, dys, &a, &b, activation, slope, i, x, dz);
  if (of_residual) NAME(put)(of_residual, i, dz);
  EACH(k) dz[k] = a.v[k] * (dz[k] - l.v[k] - (x[k] - m.v[k]) * p.v[k]);
  NAME(put)(dxs, i, dz);
}

// Below, a block sums over `per` rows of `lanes` packs of channels. `depth` threads, a power of two, share the rows of a
// pack; their parts are added up in shared memory.

KERNEL NAME(column_sums)(const E *xs, float *parts, int rows, int per, int cols, int lanes, int depth, int n) {
  SHARED float s[W][BLOCK];
  int block = BLOCK_INDEX, blocks = (cols + lanes - 1) / lanes;
  if (block >= n) return;
  int part = block / blocks, start = block % blocks * lanes, end = part * per + per < rows ? part * per + per : rows;
  FOR_THREADS(t) {
    int col = start + t % lanes;
    float sum[W];
    EACH(k) sum[k] = 0.0f;
    if (t / lanes < depth && col < cols)
      for (int row = part * per + t / lanes; row < end; row += depth) {
        PACK x = PACK_AT(xs, row * cols + col);
        EACH(k) sum[k] += LOAD(x.v[k]);
      }
    EACH(k) s[k][t] = sum[k];
  }
  ADD_UP_PACKS(s);
  FOR_THREADS(t) {
    if (t < lanes && start + t < cols)
      EACH(k) parts[(part * cols + start + t) * W + k] = s[k][t];
  }
}

// Mean and sum of squared deviations (Welford 1962; parts are merged after Chan, Golub and LeVeque 1983).
KERNEL NAME(moments)(const E *xs, float *means, float *m2s, int rows, int per, int cols, int lanes, int depth, int n) {
  SHARED float mean_of[W][BLOCK], m2_of[W][BLOCK], count_of[BLOCK];
  int block = BLOCK_INDEX, blocks = (cols + lanes - 1) / lanes;
  if (block >= n) return;
  int part = block / blocks, start = block % blocks * lanes, end = part * per + per < rows ? part * per + per : rows;
  FOR_THREADS(t) {
    int col = start + t % lanes;
    float mean[W], m2[W], count = 0.0f;
    EACH(k) mean[k] = m2[k] = 0.0f;
    if (t / lanes < depth && col < cols)
      for (int row = part * per + t / lanes; row < end; row += depth) {
        PACK x = PACK_AT(xs, row * cols + col);
        count += 1.0f;
        float share = 1.0f / count;
        EACH(k) {
          float d = LOAD(x.v[k]) - mean[k];
          mean[k] += d * share;
          m2[k] += d * (LOAD(x.v[k]) - mean[k]);
        }
      }
    count_of[t] = count;
    EACH(k) {
      mean_of[k][t] = mean[k];
      m2_of[k][t] = m2[k];
    }
  }
  for (int half = depth / 2; half > 0; half /= 2) {
    BARRIER;
    FOR_THREADS(t) {
      if (t / lanes < half && count_of[t + half * lanes] > 0.0f) {
        int other = t + half * lanes;
        float total = count_of[t] + count_of[other], share = count_of[other] / total;
        EACH(k) {
          float d = mean_of[k][other] - mean_of[k][t];
          mean_of[k][t] += d * share;
          m2_of[k][t] += m2_of[k][other] + d * d * count_of[t] * share;
        }
        count_of[t] = total;
      }
    }
  }
  FOR_THREADS(t) {
    if (t < lanes && start + t < cols)
      EACH(k) {
        means[(part * cols + start + t) * W + k] = mean_of[k][t];
        m2s[(part * cols + start + t) * W + k] = m2_of[k][t];
      }
  }
}

// Sums of dz and of dz · (x - mean).
KERNEL NAME(gradient_sums)(const E *xs, const E *ys, const E *residual, const E *dys, const float *mean,
                           const float *scale, const float *shift, float *sums, float *dots, int activation,
                           float slope, int rows, int per, int cols, int lanes, int depth, int n) {
  SHARED float s[W][BLOCK], d[W][BLOCK];
  int block = BLOCK_INDEX, blocks = (cols + lanes - 1) / lanes;
  if (block >= n) return;
  int part = block / blocks, start = block % blocks * lanes, end = part * per + per < rows ? part * per + per : rows;
  FOR_THREADS(t) {
    int col = start + t % lanes;
    float sum[W], dot[W];
    EACH(k) sum[k] = dot[k] = 0.0f;
    if (t / lanes < depth && col < cols) {
      FLOATS a = FLOATS_AT(scale, col), b = FLOATS_AT(shift, col), m = FLOATS_AT(mean, col);
      for (int row = part * per + t / lanes; row < end; row += depth) {
        float x[W], dz[W];
        NAME(through)(xs, ys, residual, dys, &a, &b, activation, slope, row * cols + col, x, dz);
        EACH(k) {
          sum[k] += dz[k];
          dot[k] += dz[k] * (x[k] - m.v[k]);
        }
      }
    }
    EACH(k) {
      s[k][t] = sum[k];
      d[k][t] = dot[k];
    }
  }
  ADD_UP_PACKS(s);
  ADD_UP_PACKS(d);
  FOR_THREADS(t) {
    if (t < lanes && start + t < cols)
      EACH(k) {
        sums[(part * cols + start + t) * W + k] = s[k][t];
        dots[(part * cols + start + t) * W + k] = d[k][t];
      }
  }
}

#undef PACK
#undef FLOATS
#undef PACK_AT
#undef FLOATS_AT
#undef EACH
#undef ADD_UP_PACKS
