// Kernels on feature maps [rows, c] of one element type E, compiled once for each: LOAD gives a float, STORE rounds
// one, NAME adds the type to a kernel's name.

KERNEL NAME(add_into)(E *sum, const E *xs, long long n) {
  long long i = INDEX;
  if (i < n) sum[i] = STORE(LOAD(sum[i]) + LOAD(xs[i]));
}

// sum += factor · x for a sum that another map's elements start.
KERNEL NAME(scaled_sum)(const E *as, const E *bs, E *sums, float factor, long long n) {
  long long i = INDEX;
  if (i < n) sums[i] = STORE(LOAD(as[i]) + factor * LOAD(bs[i]));
}

KERNEL NAME(scaled)(const E *xs, E *ys, float factor, long long n) {
  long long i = INDEX;
  if (i < n) ys[i] = STORE(factor * LOAD(xs[i]));
}

// Bytes [n / c, c] through a table of 256 values for each channel.
KERNEL NAME(from_bytes)(const unsigned char *bytes, const float *tables, E *xs, long long c, long long n) {
  long long i = INDEX;
  if (i < n) xs[i] = STORE(tables[i % c * 256 + bytes[i]]);
}

// Weights [o, i, taps] in f32 as [o, taps, i].
KERNEL NAME(pack_weight)(const float *weight, E *packed, long long c_in, long long taps, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ci = i % c_in, tap = i / c_in % taps, o = i / (c_in * taps);
  packed[i] = STORE(weight[(o * c_in + ci) * taps + tap]);
}

// Weights [c, taps] in f32 as [taps, c].
KERNEL NAME(pack_depthwise)(const float *weight, E *packed, long long c, long long taps, long long n) {
  long long i = INDEX;
  if (i < n) packed[i] = STORE(weight[i % c * taps + i / c]);
}

// The gradient of packed weights as that of the weights.
KERNEL NAME(unpack_weight)(const E *packed, float *weight, long long c_in, long long taps, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long tap = i % taps, ci = i / taps % c_in, o = i / (c_in * taps);
  weight[i] = LOAD(packed[(o * taps + tap) * c_in + ci]);
}

KERNEL NAME(add_bias)(E *ys, const float *bias, long long c, long long n) {
  long long i = INDEX;
  if (i < n) ys[i] = STORE(LOAD(ys[i]) + bias[i % c]);
}

// The sum of each column over every `per` rows: [parts, c].
KERNEL NAME(column_sums)(const E *xs, float *parts, long long rows, long long per, long long c, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, first = i / c * per, end = first + per < rows ? first + per : rows;
  float sum = 0.0f;
  for (long long row = first; row < end; row++) sum += LOAD(xs[row * c + ch]);
  parts[i] = sum;
}

// Mean and sum of squared deviations of each column over every `per` rows.
KERNEL NAME(moments)(const E *xs, float *means, float *m2s, long long rows, long long per, long long c, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, first = i / c * per, end = first + per < rows ? first + per : rows;
  float sum = 0.0f, squares = 0.0f;
  for (long long row = first; row < end; row++) sum += LOAD(xs[row * c + ch]);
  float mean = sum / (float)(end - first);
  for (long long row = first; row < end; row++) {
    float d = LOAD(xs[row * c + ch]) - mean;
    squares += d * d;
  }
  means[i] = mean;
  m2s[i] = squares;
}

KERNEL NAME(normalise)(const E *xs, const E *residual, const float *scale, const float *shift, E *ys, int activation,
                       float slope, long long c, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  float z = LOAD(xs[i]) * scale[i % c] + shift[i % c];
  if (residual) z += LOAD(residual[i]);
  ys[i] = STORE(activated(activation, slope, z));
}

// The gradient of what goes into the activation of a normalisation.
INLINE float NAME(through)(const E *xs, const E *ys, const E *residual, const E *dys, const float *scale,
                           const float *shift, int activation, float slope, long long i, long long ch) {
  float at;
  if (activation <= RELU6) {
    at = LOAD(ys[i]);
  } else {
    at = LOAD(xs[i]) * scale[ch] + shift[ch];
    if (residual) at += LOAD(residual[i]);
  }
  return LOAD(dys[i]) * derivative(activation, slope, at);
}

KERNEL NAME(gradient_sums)(const E *xs, const E *ys, const E *residual, const E *dys, const float *mean,
                           const float *scale, const float *shift, float *sums, float *dots, int activation,
                           float slope, long long rows, long long per, long long c, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, first = i / c * per, end = first + per < rows ? first + per : rows;
  float sum = 0.0f, dot = 0.0f;
  for (long long at = first * c + ch; at < end * c; at += c) {
    float dz = NAME(through)(xs, ys, residual, dys, scale, shift, activation, slope, at, ch);
    sum += dz;
    dot += dz * (LOAD(xs[at]) - mean[ch]);
  }
  sums[i] = sum;
  dots[i] = dot;
}

// dx = γ·s · (dz - moving · Σ dz - (x - mean) · s² · moving · Σ dz · (x - mean)), with s the inverse deviation and
// `moving` 1 / rows where mean and variance are the batch's, else 0. The residual's gradient is dz.
KERNEL NAME(norm_gradient)(const E *xs, const E *ys, const E *residual, const E *dys, const float *mean,
                           const float *inv_std, const float *scale, const float *shift, const float *sum,
                           const float *dot, E *dxs, E *of_residual, int activation, float slope, float moving,
                           long long c, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c;
  float dz = NAME(through)(xs, ys, residual, dys, scale, shift, activation, slope, i, ch);
  float pull = (LOAD(xs[i]) - mean[ch]) * inv_std[ch] * inv_std[ch] * dot[ch];
  if (of_residual) of_residual[i] = STORE(dz);
  dxs[i] = STORE(scale[ch] * (dz - moving * (sum[ch] + pull)));
}

// Maps of `image` elements to an image times factors [n / image, c].
KERNEL NAME(times)(const E *xs, const E *factors, E *ys, long long image, long long c, long long n) {
  long long i = INDEX;
  if (i < n) ys[i] = STORE(LOAD(xs[i]) * LOAD(factors[i / image * c + i % c]));
}

// Σ xs · dys over every `per` pixels of each image: [parts, columns], a column for each image and channel.
KERNEL NAME(image_dots)(const E *xs, const E *dys, float *parts, long long pixels, long long per, long long columns,
                        long long c, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, image = i % columns / c, first = i / columns * per;
  long long end = first + per < pixels ? first + per : pixels;
  float sum = 0.0f;
  for (long long at = image * pixels + first; at < image * pixels + end; at++)
    sum += LOAD(xs[at * c + ch]) * LOAD(dys[at * c + ch]);
  parts[i] = sum;
}

KERNEL NAME(activate)(const E *xs, E *ys, int activation, float slope, long long n) {
  long long i = INDEX;
  if (i < n) ys[i] = STORE(activated(activation, slope, LOAD(xs[i])));
}

KERNEL NAME(activate_gradient)(const E *xs, const E *dys, E *dxs, int activation, float slope, long long n) {
  long long i = INDEX;
  if (i < n) dxs[i] = STORE(LOAD(dys[i]) * derivative(activation, slope, LOAD(xs[i])));
}

// The largest value under each window and its tap, the first of equal ones; NaN is larger than all.
KERNEL NAME(max_pool)(const E *xs, E *ys, int *winners, long long h, long long w, long long c, long long ho,
                      long long wo, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, x = i / c % wo, y = i / (c * wo) % ho, image = i / (c * wo * ho);
  float best = 0.0f;
  int winner = -1;
  for (int ky = 0; ky < kh; ky++) {
    long long row = y * sh + (long long)ky * dh - ph;
    if (row < 0 || row >= h) continue;
    for (int kx = 0; kx < kw; kx++) {
      long long column = x * sw + (long long)kx * dw - pw;
      if (column < 0 || column >= w) continue;
      float v = LOAD(xs[((image * h + row) * w + column) * c + ch]);
      if (winner < 0 || v > best || (v != v && best == best)) {
        best = v;
        winner = ky * kw + kx;
      }
    }
  }
  ys[i] = STORE(best);
  winners[i] = winner;
}

// Each input's share of the outputs that it has won.
KERNEL NAME(max_pool_gradient)(const E *dys, const int *winners, E *dxs, long long h, long long w, long long c,
                               long long ho, long long wo, int kh, int kw, int sh, int sw, int ph, int pw, int dh,
                               int dw, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, column = i / c % w, row = i / (c * w) % h, image = i / (c * w * h);
  float sum = 0.0f;
  for (int ky = 0; ky < kh; ky++) {
    long long top = row + ph - (long long)ky * dh;
    if (top < 0 || top % sh != 0 || top / sh >= ho) continue;
    for (int kx = 0; kx < kw; kx++) {
      long long left = column + pw - (long long)kx * dw;
      if (left < 0 || left % sw != 0 || left / sw >= wo) continue;
      long long at = ((image * ho + top / sh) * wo + left / sw) * c + ch;
      if (winners[at] == ky * kw + kx) sum += LOAD(dys[at]);
    }
  }
  dxs[i] = STORE(sum);
}

// `len` channels of each pixel of [n / len, c_x] to those of [n / len, c_y], from the first ones on in steps.
KERNEL NAME(copy_channels)(const E *xs, E *ys, long long c_x, long long first_x, long long step_x, long long c_y,
                           long long first_y, long long step_y, long long len, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long pixel = i / len, k = i % len;
  ys[pixel * c_y + first_y + k * step_y] = xs[pixel * c_x + first_x + k * step_x];
}

// Each [rows, columns] as [columns, rows].
KERNEL NAME(transpose)(const E *xs, E *ys, long long rows, long long columns, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long row = i % rows, column = i / rows % columns, block = i / (rows * columns);
  ys[i] = xs[(block * rows + row) * columns + column];
}

// A convolution of each channel on its own, with weights [taps, c].
KERNEL NAME(depthwise)(const E *xs, const E *weight, E *ys, long long h, long long w, long long c, long long ho,
                       long long wo, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, x = i / c % wo, y = i / (c * wo) % ho, image = i / (c * wo * ho);
  float sum = 0.0f;
  for (int ky = 0; ky < kh; ky++) {
    long long row = y * sh + (long long)ky * dh - ph;
    if (row < 0 || row >= h) continue;
    for (int kx = 0; kx < kw; kx++) {
      long long column = x * sw + (long long)kx * dw - pw;
      if (column < 0 || column >= w) continue;
      sum += LOAD(xs[((image * h + row) * w + column) * c + ch]) * LOAD(weight[(ky * kw + kx) * c + ch]);
    }
  }
  ys[i] = STORE(sum);
}

KERNEL NAME(depthwise_input)(const E *dys, const E *weight, E *dxs, long long h, long long w, long long c, long long ho,
                             long long wo, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw,
                             long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, column = i / c % w, row = i / (c * w) % h, image = i / (c * w * h);
  float sum = 0.0f;
  for (int ky = 0; ky < kh; ky++) {
    long long top = row + ph - (long long)ky * dh;
    if (top < 0 || top % sh != 0 || top / sh >= ho) continue;
    for (int kx = 0; kx < kw; kx++) {
      long long left = column + pw - (long long)kx * dw;
      if (left < 0 || left % sw != 0 || left / sw >= wo) continue;
      long long at = ((image * ho + top / sh) * wo + left / sw) * c + ch;
      sum += LOAD(dys[at]) * LOAD(weight[(ky * kw + kx) * c + ch]);
    }
  }
  dxs[i] = STORE(sum);
}

// Of each weight the gradient over every `per` rows of outputs: [parts, taps, c].
KERNEL NAME(depthwise_weight)(const E *xs, const E *dys, float *parts, long long rows, long long per, long long h,
                              long long w, long long c, long long ho, long long wo, int kh, int kw, int sh, int sw,
                              int ph, int pw, int dh, int dw, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, tap = i / c % (kh * kw), first = i / (c * kh * kw) * per;
  long long end = first + per < rows ? first + per : rows;
  float sum = 0.0f;
  for (long long line = first; line < end; line++) {
    long long image = line / ho, row = line % ho * sh + tap / kw * dh - ph;
    if (row < 0 || row >= h) continue;
    for (long long x = 0; x < wo; x++) {
      long long column = x * sw + tap % kw * dw - pw;
      if (column < 0 || column >= w) continue;
      sum += LOAD(dys[(line * wo + x) * c + ch]) * LOAD(xs[((image * h + row) * w + column) * c + ch]);
    }
  }
  parts[i] = sum;
}

// Averages over spans of rows times spans of columns: start and end of each, rows first, and what to multiply by.
KERNEL NAME(avg_pool)(const E *xs, E *ys, const int *spans, const float *factors, long long h, long long w,
                      long long c, long long ho, long long wo, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, x = i / c % wo, y = i / (c * wo) % ho, image = i / (c * wo * ho);
  float sum = 0.0f;
  for (long long row = spans[2 * y]; row < spans[2 * y + 1]; row++)
    for (long long column = spans[2 * (ho + x)]; column < spans[2 * (ho + x) + 1]; column++)
      sum += LOAD(xs[((image * h + row) * w + column) * c + ch]);
  ys[i] = STORE(sum * (factors[y] * factors[ho + x]));
}

KERNEL NAME(avg_pool_gradient)(const E *dys, E *dxs, const int *spans, const float *factors, long long h, long long w,
                               long long c, long long ho, long long wo, long long n) {
  long long i = INDEX;
  if (i >= n) return;
  long long ch = i % c, column = i / c % w, row = i / (c * w) % h, image = i / (c * w * h);
  float sum = 0.0f;
  for (long long y = 0; y < ho; y++) {
    if (row < spans[2 * y] || row >= spans[2 * y + 1]) continue;
    for (long long x = 0; x < wo; x++) {
      if (column < spans[2 * (ho + x)] || column >= spans[2 * (ho + x) + 1]) continue;
      sum += factors[y] * factors[ho + x] * LOAD(dys[((image * ho + y) * wo + x) * c + ch]);
    }
  }
  dxs[i] = STORE(sum);
}
