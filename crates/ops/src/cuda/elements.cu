// Kernels on feature maps of one element type E, compiled once for each: LOAD gives a float, STORE rounds one, NAME adds
// the type to a kernel's name.

// Bytes [n / c, c] through a table of 256 values for each channel.
KERNEL NAME(from_bytes)(const unsigned char *bytes, const float *tables, E *xs, int c, int n) {
  int i = INDEX;
  if (i < n) xs[i] = STORE(tables[i % c * 256 + bytes[i]]);
}

// Which of `side` rows or columns is seen at `at`; -1 is black.
INLINE int NAME(seen)(int at, int side, int reflect) {
  if (at >= 0 && at < side) return at;
  if (!reflect) return -1;
  if (at < 0) return -at < side ? -at : side - 1;
  return 2 * (side - 1) - at > 0 ? 2 * (side - 1) - at : 0;
}

// Images of bytes [h, w, c], each as a row of `picks` says: which, the first row and column seen, whether it is mirrored, and
// whether it goes on beyond its edge by its reflection.
KERNEL NAME(from_stored)(const unsigned char *bytes, const int *picks, const float *tables, E *xs, int h, int w, int c,
                         int n) {
  int i = INDEX;
  if (i >= n) return;
  const int *pick = picks + i / (h * w * c) * 5;
  int ch = i % c, x = i / c % w, y = i / (c * w) % h;
  y = NAME(seen)(y + pick[1], h, pick[4]);
  x = NAME(seen)((pick[3] ? w - 1 - x : x) + pick[2], w, pick[4]);
  unsigned char byte = y < 0 || x < 0 ? 0 : bytes[((pick[0] * h + y) * w + x) * c + ch];
  xs[i] = STORE(tables[ch * 256 + byte]);
}

// Of words of a stream of ChaCha8 (Bernstein 2008) whose key is k0 to k5 and two zeros, the first being word `skipped` of
// block (high, low), those below the threshold as `scale`, the others as 0.
#define QUARTER(a, b, c, d)                              \
  x[a] += x[b]; x[d] ^= x[a]; x[d] = x[d] << 16 | x[d] >> 16; \
  x[c] += x[d]; x[b] ^= x[c]; x[b] = x[b] << 12 | x[b] >> 20; \
  x[a] += x[b]; x[d] ^= x[a]; x[d] = x[d] << 8 | x[d] >> 24;  \
  x[c] += x[d]; x[b] ^= x[c]; x[b] = x[b] << 7 | x[b] >> 25;
KERNEL NAME(keep_mask)(E *mask, int k0, int k1, int k2, int k3, int k4, int k5, int low, int high, int skipped,
                       int threshold, float scale, int count, int n) {
  int i = INDEX;
  if (i >= n) return;
  unsigned long long block = ((unsigned long long)(unsigned)high << 32 | (unsigned)low) + i;
  unsigned start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u, (unsigned)k0, (unsigned)k1,
                        (unsigned)k2, (unsigned)k3, (unsigned)k4, (unsigned)k5, 0u, 0u, (unsigned)block,
                        (unsigned)(block >> 32), 0u, 0u};
  unsigned x[16];
  UNROLL for (int w = 0; w < 16; w++) x[w] = start[w];
  UNROLL for (int round = 0; round < 4; round++) {
    QUARTER(0, 4, 8, 12) QUARTER(1, 5, 9, 13) QUARTER(2, 6, 10, 14) QUARTER(3, 7, 11, 15)
    QUARTER(0, 5, 10, 15) QUARTER(1, 6, 11, 12) QUARTER(2, 7, 8, 13) QUARTER(3, 4, 9, 14)
  }
  UNROLL for (int w = 0; w < 16; w++) {
    int at = i * 16 + w - skipped;
    if (at >= 0 && at < count) mask[at] = STORE(x[w] + start[w] < (unsigned)threshold ? scale : 0.0f);
  }
}
#undef QUARTER

// Weights [o, i, taps] in f32 as [o, taps, i].
KERNEL NAME(pack_weight)(const float *weight, E *packed, int c_in, int taps, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ci = i % c_in, tap = i / c_in % taps, o = i / (c_in * taps);
  packed[i] = STORE(weight[(o * c_in + ci) * taps + tap]);
}

// Weights [c, taps] in f32 as [taps, c].
KERNEL NAME(pack_depthwise)(const float *weight, E *packed, int c, int taps, int n) {
  int i = INDEX;
  if (i < n) packed[i] = STORE(weight[i % c * taps + i / c]);
}

// The gradient of packed weights as that of the weights.
KERNEL NAME(unpack_weight)(const E *packed, float *weight, int c_in, int taps, int n) {
  int i = INDEX;
  if (i >= n) return;
  int tap = i % taps, ci = i / taps % c_in, o = i / (c_in * taps);
  weight[i] = LOAD(packed[(o * taps + tap) * c_in + ci]);
}

// Maps of `image` elements to an image times factors [n / image, c].
KERNEL NAME(times)(const E *xs, const E *factors, E *ys, int image, int c, int n) {
  int i = INDEX;
  if (i < n) ys[i] = STORE(LOAD(xs[i]) * LOAD(factors[i / image * c + i % c]));
}

// Σ xs · dys over every `per` pixels of each image: [parts, columns], a column for each image and channel.
KERNEL NAME(image_dots)(const E *xs, const E *dys, float *parts, int pixels, int per, int columns,
                        int c, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, image = i % columns / c, first = i / columns * per;
  int end = first + per < pixels ? first + per : pixels;
  float sum = 0.0f;
  for (int at = image * pixels + first; at < image * pixels + end; at++)
    sum += LOAD(xs[at * c + ch]) * LOAD(dys[at * c + ch]);
  parts[i] = sum;
}

// The largest value under each window and its tap, the first of equal ones; NaN is larger than all.
KERNEL NAME(max_pool)(const E *xs, E *ys, int *winners, int h, int w, int c, int ho,
                      int wo, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, x = i / c % wo, y = i / (c * wo) % ho, image = i / (c * wo * ho);
  float best = 0.0f;
  int winner = -1;
  for (int ky = 0; ky < kh; ky++) {
    int row = y * sh + ky * dh - ph;
    if (row < 0 || row >= h) continue;
    for (int kx = 0; kx < kw; kx++) {
      int column = x * sw + kx * dw - pw;
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
KERNEL NAME(max_pool_gradient)(const E *dys, const int *winners, E *dxs, int h, int w, int c,
                               int ho, int wo, int kh, int kw, int sh, int sw, int ph, int pw, int dh,
                               int dw, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, column = i / c % w, row = i / (c * w) % h, image = i / (c * w * h);
  float sum = 0.0f;
  for (int ky = 0; ky < kh; ky++) {
    int top = row + ph - ky * dh;
    if (top < 0 || top % sh != 0 || top / sh >= ho) continue;
    for (int kx = 0; kx < kw; kx++) {
      int left = column + pw - kx * dw;
      if (left < 0 || left % sw != 0 || left / sw >= wo) continue;
      int at = ((image * ho + top / sh) * wo + left / sw) * c + ch;
      if (winners[at] == ky * kw + kx) sum += LOAD(dys[at]);
    }
  }
  dxs[i] = STORE(sum);
}

// `len` channels of each pixel of [n / len, c_x] to those of [n / len, c_y], from the first ones on in steps.
KERNEL NAME(copy_channels)(const E *xs, E *ys, int c_x, int first_x, int step_x, int c_y,
                           int first_y, int step_y, int len, int n) {
  int i = INDEX;
  if (i >= n) return;
  int pixel = i / len, k = i % len;
  ys[pixel * c_y + first_y + k * step_y] = xs[pixel * c_x + first_x + k * step_x];
}

// Each [rows, columns] as [columns, rows].
KERNEL NAME(transpose)(const E *xs, E *ys, int rows, int columns, int n) {
  int i = INDEX;
  if (i >= n) return;
  int row = i % rows, column = i / rows % columns, block = i / (rows * columns);
  ys[i] = xs[(block * rows + row) * columns + column];
}

// A convolution of each channel on its own, with weights [taps, c].
KERNEL NAME(depthwise)(const E *xs, const E *weight, E *ys, int h, int w, int c, int ho,
                       int wo, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, x = i / c % wo, y = i / (c * wo) % ho, image = i / (c * wo * ho);
  float sum = 0.0f;
  for (int ky = 0; ky < kh; ky++) {
    int row = y * sh + ky * dh - ph;
    if (row < 0 || row >= h) continue;
    for (int kx = 0; kx < kw; kx++) {
      int column = x * sw + kx * dw - pw;
      if (column < 0 || column >= w) continue;
      sum += LOAD(xs[((image * h + row) * w + column) * c + ch]) * LOAD(weight[(ky * kw + kx) * c + ch]);
    }
  }
  ys[i] = STORE(sum);
}

KERNEL NAME(depthwise_input)(const E *dys, const E *weight, E *dxs, int h, int w, int c, int ho,
                             int wo, int kh, int kw, int sh, int sw, int ph, int pw, int dh, int dw,
                             int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, column = i / c % w, row = i / (c * w) % h, image = i / (c * w * h);
  float sum = 0.0f;
  for (int ky = 0; ky < kh; ky++) {
    int top = row + ph - ky * dh;
    if (top < 0 || top % sh != 0 || top / sh >= ho) continue;
    for (int kx = 0; kx < kw; kx++) {
      int left = column + pw - kx * dw;
      if (left < 0 || left % sw != 0 || left / sw >= wo) continue;
      int at = ((image * ho + top / sh) * wo + left / sw) * c + ch;
      sum += LOAD(dys[at]) * LOAD(weight[(ky * kw + kx) * c + ch]);
    }
  }
  dxs[i] = STORE(sum);
}

// Of each weight the gradient over every `per` rows of outputs: [parts, taps, c].
KERNEL NAME(depthwise_weight)(const E *xs, const E *dys, float *parts, int rows, int per, int h,
                              int w, int c, int ho, int wo, int kh, int kw, int sh, int sw,
                              int ph, int pw, int dh, int dw, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, tap = i / c % (kh * kw), first = i / (c * kh * kw) * per;
  int end = first + per < rows ? first + per : rows;
  float sum = 0.0f;
  for (int line = first; line < end; line++) {
    int image = line / ho, row = line % ho * sh + tap / kw * dh - ph;
    if (row < 0 || row >= h) continue;
    for (int x = 0; x < wo; x++) {
      int column = x * sw + tap % kw * dw - pw;
      if (column < 0 || column >= w) continue;
      sum += LOAD(dys[(line * wo + x) * c + ch]) * LOAD(xs[((image * h + row) * w + column) * c + ch]);
    }
  }
  parts[i] = sum;
}

// Averages over spans of rows times spans of columns: start and end of each, rows first, and what to multiply by.
KERNEL NAME(avg_pool)(const E *xs, E *ys, const int *spans, const float *factors, int h, int w,
                      int c, int ho, int wo, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, x = i / c % wo, y = i / (c * wo) % ho, image = i / (c * wo * ho);
  float sum = 0.0f;
  for (int row = spans[2 * y]; row < spans[2 * y + 1]; row++)
    for (int column = spans[2 * (ho + x)]; column < spans[2 * (ho + x) + 1]; column++)
      sum += LOAD(xs[((image * h + row) * w + column) * c + ch]);
  ys[i] = STORE(sum * (factors[y] * factors[ho + x]));
}

KERNEL NAME(avg_pool_gradient)(const E *dys, E *dxs, const int *spans, const float *factors, int h, int w,
                               int c, int ho, int wo, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, column = i / c % w, row = i / (c * w) % h, image = i / (c * w * h);
  float sum = 0.0f;
  for (int y = 0; y < ho; y++) {
    if (row < spans[2 * y] || row >= spans[2 * y + 1]) continue;
    for (int x = 0; x < wo; x++) {
      if (column < spans[2 * (ho + x)] || column >= spans[2 * (ho + x) + 1]) continue;
      sum += factors[y] * factors[ho + x] * LOAD(dys[((image * ho + y) * wo + x) * c + ch]);
    }
  }
  dxs[i] = STORE(sum);
}

// Local response normalisation over `size` neighbouring channels: `factor` times the sum of their squares and k, which is
// kept in `bases` where that is asked for, to the power of -beta.
KERNEL NAME(local_response)(const E *xs, float *bases, E *ys, float factor, float k, float beta, int size, int c, int n) {
  int i = INDEX;
  if (i >= n) return;
  int ch = i % c, first = ch - size / 2, end = ch + (size + 1) / 2;
  const E *pixel = xs + (i - ch);
  float squares = 0.0f;
  for (int near = first > 0 ? first : 0; near < (end < c ? end : c); near++)
    squares += LOAD(pixel[near]) * LOAD(pixel[near]);
  float base = k + factor * squares;
  if (bases) bases[i] = base;
  ys[i] = STORE(LOAD(xs[i]) * powf(base, -beta));
}

// `factor` is 2 · beta times that of the forward.
KERNEL NAME(local_response_gradient)(const E *xs, const E *dys, const float *bases, E *dxs, float factor, float beta,
                                     int size, int c, int n) {
  int i = INDEX;
  if (i >= n) return;
  // Outputs whose neighbourhood holds this channel: the mirror image of the forward one.
  int ch = i % c, first = ch - (size - 1) / 2, end = ch + size / 2 + 1;
  float pull = 0.0f;
  for (int near = first > 0 ? first : 0; near < (end < c ? end : c); near++) {
    int at = i - ch + near;
    pull += LOAD(dys[at]) * LOAD(xs[at]) * powf(bases[at], -beta - 1.0f);
  }
  dxs[i] = STORE(LOAD(dys[i]) * powf(bases[i], -beta) - factor * LOAD(xs[i]) * pull);
}

// Softmax over the splits of pixels of `radix` splits of c channels each: a thread for each pixel and channel.
KERNEL NAME(radix_softmax)(const E *xs, E *ys, int radix, int c, int n) {
  int i = INDEX;
  if (i >= n) return;
  int first = i / c * c * radix + i % c, end = first + radix * c;
  float most = LOAD(xs[first]), sum = 0.0f;
  for (int at = first; at < end; at += c) most = LOAD(xs[at]) > most ? LOAD(xs[at]) : most;
  for (int at = first; at < end; at += c) sum += expf(LOAD(xs[at]) - most);
  for (int at = first; at < end; at += c) ys[at] = STORE(expf(LOAD(xs[at]) - most) / sum);
}

KERNEL NAME(radix_softmax_gradient)(const E *ys, const E *dys, E *dxs, int radix, int c, int n) {
  int i = INDEX;
  if (i >= n) return;
  int first = i / c * c * radix + i % c, end = first + radix * c;
  float dot = 0.0f;
  for (int at = first; at < end; at += c) dot += LOAD(ys[at]) * LOAD(dys[at]);
  for (int at = first; at < end; at += c) dxs[at] = STORE(LOAD(ys[at]) * (LOAD(dys[at]) - dot));
}

// The row that each word's three bytes name, which come normalised to [-1, 1], lowest first.
KERNEL NAME(word_rows)(const E *words, int *rows_of, int rows, int n) {
  int i = INDEX;
  if (i >= n) return;
  int number = 0;
  for (int byte = 2; byte >= 0; byte--) {
    float value = rintf((LOAD(words[3 * i + byte]) + 1.0f) * 127.5f);
    number = number << 8 | (int)(value <= 0.0f ? 0.0f : (value >= 255.0f ? 255.0f : value));
  }
  rows_of[i] = number % rows;
}

// The vectors [n / dim, dim] of words; row 0, of padding, counts as zeros.
KERNEL NAME(word_vectors)(const int *rows_of, const float *weight, E *ys, int dim, int n) {
  int i = INDEX;
  if (i >= n) return;
  int row = rows_of[i / dim];
  ys[i] = STORE(row ? weight[row * dim + i % dim] : 0.0f);
}

// The gradient of the vectors of words that are met, each summed by the first of its words along `next`.
KERNEL NAME(word_gradient)(const int *rows_of, const int *next, const E *dys, float *dweight, int dim, int words, int n) {
  int i = INDEX;
  if (i >= n) return;
  int word = i / dim, row = rows_of[word];
  // Whether it is the first comes behind where each is met next.
  if (row == 0 || !next[words + word]) return;
  float sum = 0.0f;
  for (int at = word; at >= 0; at = next[at]) sum += LOAD(dys[at * dim + i % dim]);
  dweight[row * dim + i % dim] = sum;
}
