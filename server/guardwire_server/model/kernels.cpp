// The CPU kernels of a Qwen3 step: what torch does in many small passes, done in one.
//
// Plain C++ with GCC/Clang vector extensions, so one source gives AVX2, AVX-512 or NEON code with -march=native. No
// torch headers: tensors come as pointers (native/library.py says who keeps them alive), and threads come from the
// OpenMP runtime that torch has loaded. Arithmetic is float32 throughout; `T` is what lies in memory, float or bfloat16.
//
// Shapes: T rows (new tokens of all sequences), H hidden size, N query heads, K key-value heads, G = N / K, D head
// dimension, S slots of the arena, I inputs and O outputs of a linear layer.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};

// `value - 0` is exactly `value`, signed zeros included, so compilers make it one broadcast.
inline Floats splat(float value) { return value - Floats{}; }

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Floats load(const BFloat16* from) {
  Halves bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// Rounds to nearest, ties to even, as torch does.
inline void store(BFloat16* to, Floats value) {
  Words bits = (Words)value;
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  Halves halves = __builtin_convertvector(bits, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

inline float sum(Floats value) {
  float total = 0;
  for (int lane = 0; lane < kLanes; lane++) total += value[lane];
  return total;
}

// exp(x), with x held to [-87, 88] where float32 has normal numbers; relative error below 2e-7. Range reduction by ln 2 in two parts and the Taylor polynomial of
// degree 6 on [-ln 2 / 2, ln 2 / 2] (W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980).
inline Floats exponential(Floats x) {
  const Floats lowest = splat(-87.0f), highest = splat(88.0f);
  x = x > lowest ? x : lowest;
  x = x < highest ? x : highest;
  const Floats shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Floats scaled = x * 1.44269504088896341f + shifter;
  Ints exponent = (Ints)scaled - 0x4b400000;
  Floats n = scaled - shifter;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = splat(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (Floats)((Ints)p + (exponent << 23));
}

// ---- linear layers over bfloat16 weights ------------------------------------------------------------------------

// A panel is 2 * kLanes outputs. Its weights lie input by input; one 32-bit word holds two outputs, so that a shift and
// a mask give both as float32: the low half is output `lane`, the high half output `kLanes + lane` (or, in a gated
// pair, the gate and the up projection of one and the same output).

constexpr int kPanel = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kRowTile = 12;  // 24 accumulators of 32 registers
#else
constexpr int kRowTile = 6;  // 12 accumulators of 16 registers
#endif

constexpr int64_t kBlockBytes = 256 * 1024;  // half of a usual second-level cache

enum class Epilogue { kStore = 0, kAdd = 1, kGate = 2 };

// `ahead` points to what a later call will read, `lines` cache lines of it for every kStride inputs here: the memory
// works while the arithmetic does.
constexpr int kStride = 8;

template <int R, int U>
inline void multiply(const uint32_t* panel, const float* x, int64_t inputs, const char* ahead, int lines,
                     Floats low[R], Floats high[R]) {
  Floats a[U][R], b[U][R];
  for (int u = 0; u < U; u++)
    for (int r = 0; r < R; r++) a[u][r] = b[u][r] = splat(0);
  for (int64_t block = 0; block < inputs; block += kStride) {
    for (int line = 0; line < lines; line++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    for (int64_t i = block; i < block + kStride; i += U) {
#pragma GCC unroll 4
      for (int u = 0; u < U; u++) {
        Words words;
        std::memcpy(&words, panel + (i + u) * kLanes, sizeof words);
        const Floats first = (Floats)(words << 16), second = (Floats)(words & 0xffff0000u);
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
          const Floats factor = splat(x[(i + u) * R + r]);
          a[u][r] += factor * first;
          b[u][r] += factor * second;
        }
      }
    }
  }
  for (int r = 0; r < R; r++) {
    low[r] = a[0][r];
    high[r] = b[0][r];
    for (int u = 1; u < U; u++) low[r] += a[u][r], high[r] += b[u][r];
  }
}

// One panel times R rows. `x` holds the rows interleaved, [inputs][R].
template <int R>
void panel_times_rows(const uint32_t* panel, const float* x, int64_t inputs, const char* ahead, int lines,
                      Epilogue epilogue, float* out, int64_t stride) {
  constexpr int kChains = R == 1 ? 4 : R <= 3 ? 2 : 1;  // enough independent sums to hide the latency of an addition
  Floats low[R], high[R];
  multiply<R, kChains>(panel, x, inputs, ahead, lines, low, high);
  for (int r = 0; r < R; r++) {
    float* row = out + r * stride;
    if (epilogue == Epilogue::kGate) {
      store(row, low[r] / (1.0f + exponential(-low[r])) * high[r]);
    } else if (epilogue == Epilogue::kAdd) {
      store(row, load(row) + low[r]);
      store(row + kLanes, load(row + kLanes) + high[r]);
    } else {
      store(row, low[r]);
      store(row + kLanes, high[r]);
    }
  }
}

typedef void (*PanelFunction)(const uint32_t*, const float*, int64_t, const char*, int, Epilogue, float*, int64_t);

template <int... R>
PanelFunction choose(int rows, std::integer_sequence<int, R...>) {
  static const PanelFunction functions[] = {panel_times_rows<R + 1>...};
  return functions[rows - 1];
}

// ---- attention ---------------------------------------------------------------------------------------------------

// Scores of R query rows with `count` keys from `keys` on; all R rows see the same keys.
template <int R, typename T>
inline void score_keys(const float* query, const T* keys, int64_t count, int64_t dim, float scale, float* scores,
                       int64_t stride) {
  constexpr int kKeys = 4;
  int64_t j = 0;
  for (; j + kKeys <= count; j += kKeys) {
    Floats sums[kKeys][R];
    for (int k = 0; k < kKeys; k++)
      for (int r = 0; r < R; r++) sums[k][r] = splat(0);
    for (int64_t c = 0; c < dim; c += kLanes) {
      Floats q[R];
      for (int r = 0; r < R; r++) q[r] = load(query + r * dim + c);
      for (int k = 0; k < kKeys; k++) {
        const Floats key = load(keys + (j + k) * dim + c);
        for (int r = 0; r < R; r++) sums[k][r] += key * q[r];
      }
    }
    for (int k = 0; k < kKeys; k++)
      for (int r = 0; r < R; r++) scores[r * stride + j + k] = sum(sums[k][r]) * scale;
  }
  for (; j < count; j++)
    for (int r = 0; r < R; r++) {
      Floats total = splat(0);
      for (int64_t c = 0; c < dim; c += kLanes) total += load(keys + j * dim + c) * load(query + r * dim + c);
      scores[r * stride + j] = sum(total) * scale;
    }
}

// Turns `count` scores into weights that add up to 1. The row has room for a whole number of vectors.
inline void softmax(float* scores, int64_t count) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t j = count; j < padded; j++) scores[j] = -INFINITY;
  Floats highest = load(scores);
  for (int64_t j = kLanes; j < padded; j += kLanes) {
    const Floats value = load(scores + j);
    highest = value > highest ? value : highest;
  }
  float top = highest[0];
  for (int lane = 1; lane < kLanes; lane++) top = std::max(top, highest[lane]);
  Floats total = splat(0);
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Floats value = exponential(load(scores + j) - top);
    store(scores + j, value);
    total += value;
  }
  // Padding adds exp(-87) at most, which float32 cannot see beside the 1 of the highest score.
  const float inverse = 1.0f / sum(total);
  for (int64_t j = 0; j < padded; j += kLanes) store(scores + j, load(scores + j) * inverse);
}

// Weighted sum of values for R rows, a slice of the head dimension at a time so that the sums stay in registers.
template <int R, typename T>
inline void weigh_values(const float* weights, int64_t stride, const T* values, int64_t count, int64_t dim, T* out,
                         int64_t out_stride) {
  constexpr int kSlice = 4;
  int64_t c = 0;
  for (; c + kSlice * kLanes <= dim; c += kSlice * kLanes) {
    Floats sums[R][kSlice];
    for (int r = 0; r < R; r++)
      for (int s = 0; s < kSlice; s++) sums[r][s] = splat(0);
    for (int64_t j = 0; j < count; j++) {
      const T* value = values + j * dim + c;
      Floats v[kSlice];
      for (int s = 0; s < kSlice; s++) v[s] = load(value + s * kLanes);
      for (int r = 0; r < R; r++) {
        const Floats weight = splat(weights[r * stride + j]);
        for (int s = 0; s < kSlice; s++) sums[r][s] += weight * v[s];
      }
    }
    for (int r = 0; r < R; r++)
      for (int s = 0; s < kSlice; s++) store(out + r * out_stride + c + s * kLanes, sums[r][s]);
  }
  for (; c < dim; c += kLanes)
    for (int r = 0; r < R; r++) {
      Floats total = splat(0);
      for (int64_t j = 0; j < count; j++) total += weights[r * stride + j] * load(values + j * dim + c);
      store(out + r * out_stride + c, total);
    }
}

template <int R, typename T>
inline void attend(const float* query, const T* keys, const T* values, int64_t count, int64_t dim, float scale,
                   std::vector<float>& scores, T* out) {
  const int64_t stride = (count + kLanes - 1) / kLanes * kLanes;
  if ((int64_t)scores.size() < R * stride) scores.resize(R * stride);
  score_keys<R>(query, keys, count, dim, scale, scores.data(), stride);
  for (int r = 0; r < R; r++) softmax(scores.data() + r * stride, count);
  weigh_values<R>(scores.data(), stride, values, count, dim, out, dim);
}

template <typename T>
void ragged_attention(const float* query, const T* keys, const T* values, const int64_t* segments, int64_t num_segments,
                      int64_t heads, int64_t kv_heads, int64_t dim, int64_t head_stride, float scale, T* out,
                      int threads) {
  const int64_t groups = heads / kv_heads, items = num_segments * kv_heads;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scores;
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < items; item++) {
      const int64_t* segment = segments + item / kv_heads * 4;
      const int64_t kv_head = item % kv_heads, slot = segment[0], past = segment[1];
      const T* first_key = keys + kv_head * head_stride + slot * dim;
      const T* first_value = values + kv_head * head_stride + slot * dim;
      for (int64_t row = segment[2]; row < segment[3]; row++) {
        const int64_t count = past + row - segment[2] + 1;
        const int64_t first = (row * heads + kv_head * groups) * dim;
        int64_t g = 0;
        for (; g + 2 <= groups; g += 2)
          attend<2>(query + first + g * dim, first_key, first_value, count, dim, scale, scores, out + first + g * dim);
        for (; g < groups; g++)
          attend<1>(query + first + g * dim, first_key, first_value, count, dim, scale, scores, out + first + g * dim);
      }
    }
  }
}

// ---- norms, rotation, cache --------------------------------------------------------------------------------------

template <typename T>
inline float inverse_rms(const T* x, int64_t size, float eps) {
  Floats total = splat(0);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Floats value = load(x + i);
    total += value * value;
  }
  return 1.0f / std::sqrt(sum(total) / size + eps);
}

template <typename T>
void rms_norm(const T* x, const T* weight, int64_t rows, int64_t size, float eps, T* out) {
  for (int64_t row = 0; row < rows; row++) {
    const T* from = x + row * size;
    const float scale = inverse_rms(from, size, eps);
    for (int64_t i = 0; i < size; i += kLanes) store(out + row * size + i, load(from + i) * scale * load(weight + i));
  }
}

// Normalises and rotates one head: (a, b) -> (a cos - b sin, b cos + a sin) over its two halves (the Qwen3 code).
template <typename T, typename Out>
inline void norm_and_rotate(const T* x, const T* weight, const float* cosines, const float* sines, int64_t dim,
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

template <typename T>
void prepare_attention(const T* qkv, const T* query_weight, const T* key_weight, const float* cosines,
                       const float* sines, const int64_t* slots, int64_t rows, int64_t heads, int64_t kv_heads,
                       int64_t dim, int64_t head_stride, float eps, float* query, T* keys, T* values, int threads) {
  const int64_t width = (heads + 2 * kv_heads) * dim;
#pragma omp parallel for num_threads(threads) if (rows >= 32)
  for (int64_t row = 0; row < rows; row++) {
    const T* from = qkv + row * width;
    const float *cosine = cosines + row * dim / 2, *sine = sines + row * dim / 2;
    for (int64_t head = 0; head < heads; head++)
      norm_and_rotate(from + head * dim, query_weight, cosine, sine, dim, eps, query + (row * heads + head) * dim);
    for (int64_t head = 0; head < kv_heads; head++) {
      const int64_t to = head * head_stride + slots[row] * dim;
      norm_and_rotate(from + (heads + head) * dim, key_weight, cosine, sine, dim, eps, keys + to);
      std::memcpy(values + to, from + (heads + kv_heads + head) * dim, dim * sizeof(T));
    }
  }
}

}  // namespace

extern "C" {

int guardwire_lanes() { return kLanes; }

// weight [O, I] bfloat16 -> panels; `second` is null, or the up projection of a gated pair.
void guardwire_pack(const uint16_t* weight, const uint16_t* second, int64_t outputs, int64_t inputs, uint32_t* panels,
                    int threads) {
  const int64_t step = second ? kLanes : kPanel;
#pragma omp parallel for num_threads(threads)
  for (int64_t panel = 0; panel < outputs / step; panel++)
    for (int64_t i = 0; i < inputs; i++)
      for (int lane = 0; lane < kLanes; lane++) {
        const int64_t low = (panel * step + lane) * inputs + i;
        const uint32_t high = second ? second[low] : weight[low + kLanes * inputs];
        panels[(panel * inputs + i) * kLanes + lane] = weight[low] | high << 16;
      }
}

// x [T, I] float32 times packed weights -> out [T, O] float32; epilogue: 0 store, 1 add to out, 2 silu(gate) * up.
void guardwire_linear(const uint32_t* panels, const float* x, int64_t rows, int64_t inputs, int64_t outputs,
                      int epilogue, float* out, int threads) {
  if (rows == 0) return;
  const int64_t step = epilogue == (int)Epilogue::kGate ? kLanes : kPanel;
  const int64_t tiles = (rows + kRowTile - 1) / kRowTile;
  const int64_t block = std::max<int64_t>(1, kBlockBytes / (kRowTile * inputs * (int64_t)sizeof(float)));
  // The tiles of a panel fetch the next panel together, each its share.
  const int lines = (kStride * kLanes * 4 / 64 + std::min(block, tiles) - 1) / std::min(block, tiles);
  const int64_t share = inputs / kStride * lines * 64;
  std::vector<float> interleaved(rows * inputs);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++) {
      const int64_t first = tile * rows / tiles, count = (tile + 1) * rows / tiles - first;
      float* to = interleaved.data() + first * inputs;
      for (int64_t i = 0; i < inputs; i++)
        for (int64_t r = 0; r < count; r++) to[i * count + r] = x[(first + r) * inputs + i];
    }
    // Rows in blocks that stay in the second-level cache; the weights are read again for each, which is little work
    // beside the arithmetic of a whole block.
    for (int64_t begin = 0; begin < tiles; begin += block)
#pragma omp for schedule(static) nowait
      for (int64_t panel = 0; panel < outputs / step; panel++)
        for (int64_t tile = begin; tile < std::min(tiles, begin + block); tile++) {
          const int64_t first = tile * rows / tiles, count = (tile + 1) * rows / tiles - first;
          const char* ahead = (const char*)(panels + (panel + 1) * inputs * kLanes) + (tile - begin) * share;
          choose((int)count, std::make_integer_sequence<int, kRowTile>())(
              panels + panel * inputs * kLanes, interleaved.data() + first * inputs, inputs, ahead, lines,
              (Epilogue)epilogue, out + first * outputs + panel * step, outputs);
        }
  }
}

#define GUARDWIRE_DEFINE(T, SUFFIX)                                                                                    \
  void guardwire_rms_norm_##SUFFIX(const T* x, const T* weight, int64_t rows, int64_t size, float eps, T* out) {       \
    rms_norm(x, weight, rows, size, eps, out);                                                                         \
  }                                                                                                                    \
  void guardwire_prepare_##SUFFIX(const T* qkv, const T* query_weight, const T* key_weight, const float* cosines,      \
                                  const float* sines, const int64_t* slots, int64_t rows, int64_t heads,               \
                                  int64_t kv_heads, int64_t dim, int64_t head_stride, float eps, float* query, T* keys,\
                                  T* values, int threads) {                                                            \
    prepare_attention(qkv, query_weight, key_weight, cosines, sines, slots, rows, heads, kv_heads, dim, head_stride,   \
                      eps, query, keys, values, threads);                                                              \
  }                                                                                                                    \
  void guardwire_attend_##SUFFIX(const float* query, const T* keys, const T* values, const int64_t* segments,          \
                                 int64_t num_segments, int64_t heads, int64_t kv_heads, int64_t dim,                   \
                                 int64_t head_stride, float scale, T* out, int threads) {                              \
    ragged_attention(query, keys, values, segments, num_segments, heads, kv_heads, dim, head_stride, scale, out,       \
                     threads);                                                                                         \
  }

GUARDWIRE_DEFINE(float, f32)
GUARDWIRE_DEFINE(BFloat16, bf16)
}
