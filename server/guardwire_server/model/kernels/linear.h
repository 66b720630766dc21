// Products of a few rows with large weights that lie in memory as bfloat16.
//
// A panel is two vectors of outputs, of kLanes each (or, in a gated pair, the gate and the up projection of kLanes
// outputs). Its weights lie input by input, in an order that the arithmetic asks for. Rows are cut into tiles whose sums
// fit into the registers, and lie interleaved, factor by factor: [factors][rows of the tile].

#pragma once

#include <algorithm>
#include <utility>

#include "team.h"
#include "vectors.h"

constexpr int kPanel = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kRowTile = 12;  // 24 accumulators of 32 registers
#else
constexpr int kRowTile = 6;  // 12 accumulators of 16 registers
#endif

constexpr int64_t kBlockBytes = 256 * 1024;  // half of a usual second-level cache
constexpr int64_t kPanelsInARow = 8;         // of a small product that a thread takes at a time
constexpr int64_t kAheadBytes = 4096;

enum class Epilogue { kStore = 0, kAdd = 1, kGate = 2 };

// The two kinds of arithmetic: what activations are rounded to before they are multiplied.
template <typename X>
struct Arithmetic;

// One 32-bit word of a panel holds an input's weight of two outputs, `lane` and `kLanes + lane`, so that a shift and a
// mask give both as float32.
template <>
struct Arithmetic<float> {
  typedef float Factor;
  typedef Floats Weights;
  static constexpr int kInputs = 1;  // of a factor

  static uint32_t word(const uint16_t* first, const uint16_t* second, int64_t input, int) {
    return first[input] | (uint32_t)second[input] << 16;
  }
  static void read(const uint32_t* words, Weights& first, Weights& second) {
    load_pair((const BFloat16*)words, first, second);
  }
  static void round(Floats x, Factor* factors) { store(factors, x); }
  static Floats add(Floats sum, Factor factor, Weights weights) { return sum + splat(factor) * weights; }
};

// A word holds two inputs' weights of one output, as the instruction for pairs takes them: a vector of the panel's first
// outputs, then one of the second. A factor is two inputs, too.
template <>
struct Arithmetic<BFloat16> {
  typedef uint32_t Factor;
  typedef Words Weights;
  static constexpr int kInputs = 2;

  static uint32_t word(const uint16_t* first, const uint16_t* second, int64_t input, int vector) {
    const uint16_t* from = (vector ? second : first) + input;
    return from[0] | (uint32_t)from[1] << 16;
  }
  static void read(const uint32_t* words, Weights& first, Weights& second) {
    std::memcpy(&first, words, sizeof first);
    std::memcpy(&second, words + kLanes, sizeof second);
  }
  static void round(Floats x, Factor* factors) { store((BFloat16*)factors, x); }
  static Floats add(Floats sum, Factor factor, Weights weights) { return add_products(sum, splat(factor), weights); }
};

// Lays out one panel: the weights [inputs] of its outputs, `first` and `second` each kLanes neighbours.
template <typename X>
void pack_panel(const uint16_t* first, const uint16_t* second, int64_t inputs, uint32_t* panel) {
  constexpr int kInputs = Arithmetic<X>::kInputs;
  for (int64_t i = 0; i < inputs; i += kInputs)
    for (int vector = 0; vector < kInputs; vector++)
      for (int64_t lane = 0; lane < kLanes; lane++)
        *panel++ = Arithmetic<X>::word(first + lane * inputs, second + lane * inputs, i, vector);
}

// `ahead` points to what a later call will read, `lines` cache lines of it for every kStride inputs here: the memory
// works while the arithmetic does.
constexpr int kStride = 8;

// One panel times R rows.
template <typename X, int R>
void panel_times_rows(const uint32_t* panel, const typename Arithmetic<X>::Factor* x, int64_t inputs, const char* ahead,
                      int lines, Epilogue epilogue, float* out, int64_t stride) {
  constexpr int kChains = R == 1 ? 4 : R <= 3 ? 2 : 1;  // enough independent sums to hide the latency of an addition
  constexpr int kInputs = Arithmetic<X>::kInputs;
  Floats low[kChains][R], high[kChains][R];
  repeat<kChains * R>([&](auto sum) INLINE { low[sum / R][sum % R] = high[sum / R][sum % R] = splat(0.0f); });
  for (int64_t block = 0; block < inputs; block += kStride) {
    for (int line = 0; line < lines; line++, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    for (int64_t i = block; i < block + kStride; i += kChains * kInputs, x += kChains * R)
      repeat<kChains>([&](auto chain) INLINE {
        typename Arithmetic<X>::Weights first, second;
        Arithmetic<X>::read(panel + (i + chain * kInputs) * kLanes, first, second);
        repeat<R>([&](auto r) INLINE {
          low[chain][r] = Arithmetic<X>::add(low[chain][r], x[chain * R + r], first);
          high[chain][r] = Arithmetic<X>::add(high[chain][r], x[chain * R + r], second);
        });
      });
  }
  repeat<(kChains - 1) * R>([&](auto sum) INLINE {
    low[0][sum % R] += low[1 + sum / R][sum % R];
    high[0][sum % R] += high[1 + sum / R][sum % R];
  });
  repeat<R>([&](auto r) INLINE {
    float* row = out + r * stride;
    if (epilogue == Epilogue::kGate) {
      store(row, low[0][r] / (1.0f + exponential(-low[0][r])) * high[0][r]);
    } else if (epilogue == Epilogue::kAdd) {
      store(row, load(row) + low[0][r]);
      store(row + kLanes, load(row + kLanes) + high[0][r]);
    } else {
      store(row, low[0][r]);
      store(row + kLanes, high[0][r]);
    }
  });
}

template <typename X, int... R>
auto choose(int64_t rows, std::integer_sequence<int, R...>) {
  static constexpr decltype(&panel_times_rows<X, 1>) functions[] = {panel_times_rows<X, R + 1>...};
  return functions[rows - 1];
}

// The rows of a product, cut into tiles of nearly equal height.
struct Tiles {
  int64_t rows, count;
  explicit Tiles(int64_t all) : rows(all), count((all + kRowTile - 1) / kRowTile) {}
  int64_t first(int64_t tile) const { return tile * rows / count; }
  int64_t height(int64_t tile) const { return first(tile + 1) - first(tile); }
};

// Lays the rows of x [T, I] out in tiles, each value times `scale(row)`, which is asked once a row, and those of
// `weight(i)`, a vector.
template <typename X, typename Scale, typename Weight>
void interleave(Team& team, const Tiles& tiles, const float* x, int64_t inputs, Scale scale, Weight weight,
                typename Arithmetic<X>::Factor* to) {
  constexpr int kInputs = Arithmetic<X>::kInputs;
  constexpr int64_t kChunk = 512;  // of a tile's rows, so that what is written stays in the first-level cache
  team.share(tiles.count, 1, [&](int64_t tile) {
    const int64_t first = tiles.first(tile), height = tiles.height(tile);
    float scales[kRowTile];
    for (int64_t r = 0; r < height; r++) scales[r] = scale(x + (first + r) * inputs);
    for (int64_t begin = 0; begin < inputs; begin += kChunk)
      for (int64_t r = 0; r < height; r++) {
        const float* row = x + (first + r) * inputs;
        auto* out = to + (first * inputs + begin * height) / kInputs + r;
        for (int64_t i = begin; i < std::min(inputs, begin + kChunk); i += kLanes) {
          typename Arithmetic<X>::Factor factors[kLanes / kInputs];
          Arithmetic<X>::round(load(row + i) * scales[r] * weight(i), factors);
          for (int f = 0; f < kLanes / kInputs; f++, out += height) *out = factors[f];
        }
      }
  });
}

template <typename X>
void interleave(Team& team, const Tiles& tiles, const float* x, int64_t inputs, typename Arithmetic<X>::Factor* to) {
  interleave<X>(team, tiles, x, inputs, [](const float*) { return 1.0f; }, [](int64_t) { return 1.0f; }, to);
}

// Interleaved rows times packed weights -> out [T, O].
template <typename X>
void multiply_panels(Team& team, const uint32_t* panels, const typename Arithmetic<X>::Factor* interleaved,
                     const Tiles& tiles, int64_t inputs, int64_t outputs, Epilogue epilogue, float* out) {
  const int64_t factors = inputs / Arithmetic<X>::kInputs;
  const int64_t step = epilogue == Epilogue::kGate ? kLanes : kPanel, num_panels = outputs / step;
  // Tiles in blocks that stay in the second-level cache; the weights are read again for each, which is little work
  // beside the arithmetic of a whole block.
  const int64_t block = std::max<int64_t>(1, kBlockBytes / (kRowTile * factors * (int64_t)sizeof(float)));
  const int64_t num_blocks = (tiles.count + block - 1) / block, in_block = std::min(block, tiles.count);
  // The tiles of a panel fetch the next panel together, each its share. A single one comes to it soon enough to fetch a
  // few thousand bytes ahead, which is faster by a twentieth.
  const int lines = (int)((kStride * kLanes * 4 / 64 + in_block - 1) / in_block);
  const int64_t grain = std::max<int64_t>(1, kPanelsInARow / in_block);
  team.share(num_blocks * num_panels, grain, [&](int64_t item) {
    const int64_t begin = item / num_panels * block, panel = item % num_panels;
    const uint32_t* weights = panels + panel * inputs * kLanes;
    const char* ahead = (const char*)weights + (tiles.count == 1 ? kAheadBytes : inputs * kLanes * 4);
    for (int64_t tile = begin; tile < std::min(tiles.count, begin + block); tile++) {
      const int64_t first = tiles.first(tile), height = tiles.height(tile);
      choose<X>(height, std::make_integer_sequence<int, kRowTile>())(
          weights, interleaved + first * factors, inputs, ahead, lines, epilogue, out + first * outputs + panel * step,
          outputs);
      ahead += inputs / kStride * lines * 64;
    }
  });
}
