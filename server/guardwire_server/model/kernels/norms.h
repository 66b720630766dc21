// Norms, and what happens to queries, keys and values between their projection and attention.

#pragma once

#include "vectors.h"

template <typename X>
inline float inverse_rms(const X* x, int64_t size, float eps) {
  Floats total = splat(0.0f);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats value = load(x + i);
    total += value * value;
  }
  return 1.0f / std::sqrt(sum(total) / size + eps);
}

template <typename X>
void rms_norm(const X* x, const X* weight, int64_t rows, int64_t size, float eps, X* out) {
  for (int64_t row = 0; row < rows; row++) {
    const X* from = x + row * size;
    const float scale = inverse_rms(from, size, eps);
    for (int64_t i = 0; i < size; i += kLanes) store(out + row * size + i, load(from + i) * scale * load(weight + i));
  }
}

// Normalises and rotates one head: (a, b) -> (a cos - b sin, b cos + a sin) over its two halves (the Qwen3 code).
template <typename X, typename Out>
inline void norm_and_rotate(const X* x, const X* weight, const float* cosines, const float* sines, int64_t dim,
                            float eps, Out* out) {
  const float scale = inverse_rms(x, dim, eps);
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const Floats a = load(x + i) * scale * load(weight + i);
    const Floats b = load(x + half + i) * scale * load(weight + half + i);
    const Floats cosine = load(cosines + i), sine = load(sines + i);
    store(out + i, a * cosine - b * sine);
    store(out + half + i, b * cosine + a * sine);
  }
}

// What is the same for all tokens of a step; D = dim.
struct Heads {
  int64_t queries, kv, dim, head_stride;  // head_stride: elements between two heads of one layer of the cache
  float eps, scale;
};

// One token's projections [(N + 2 K) D] -> its queries [N, D], and its keys and values in the cache. `X` is what
// activations are kept in, `T` what the cache is kept in.
template <typename X, typename T>
void prepare_token(const Heads& heads, const X* from, const X* query_weight, const X* key_weight, const float* cosines,
                   const float* sines, int64_t slot, float* query, T* keys, T* values) {
  const int64_t dim = heads.dim;
  for (int64_t head = 0; head < heads.queries; head++, from += dim)
    norm_and_rotate(from, query_weight, cosines, sines, dim, heads.eps, query + head * dim);
  for (int64_t head = 0; head < heads.kv; head++, from += dim)
    norm_and_rotate(from, key_weight, cosines, sines, dim, heads.eps, keys + head * heads.head_stride + slot * dim);
  for (int64_t head = 0; head < heads.kv; head++, from += dim) {
    T* to = values + head * heads.head_stride + slot * dim;
    for (int64_t c = 0; c < dim; c += kLanes) store(to + c, load(from + c));
  }
}
