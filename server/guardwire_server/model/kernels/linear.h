// Products of a few rows with large weights that lie in memory as bfloat16.
//
// A panel is 2 * kLanes outputs. Its weights lie input by input; one 32-bit word holds two outputs, so that a shift and
// a mask give both as float32: the low half is output `lane`, the high half output `kLanes + lane` (or, in a gated
// pair, the gate and the up projection of one and the same output). Rows are cut into tiles whose sums fit into the
// registers, and lie interleaved, [inputs][rows of the tile].

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

// One panel times R rows.
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
PanelFunction choose(int64_t rows, std::integer_sequence<int, R...>) {
  static const PanelFunction functions[] = {panel_times_rows<R + 1>...};
  return functions[rows - 1];
}

// The rows of a product, cut into tiles of nearly equal height.
struct Tiles {
  int64_t rows, count;
  explicit Tiles(int64_t all) : rows(all), count((all + kRowTile - 1) / kRowTile) {}
  int64_t first(int64_t tile) const { return tile * rows / count; }
  int64_t height(int64_t tile) const { return first(tile + 1) - first(tile); }
};

// Lays the rows of x [T, I] out in tiles, each value times `scale(row)`, which is asked once a row, and `weight(i)`.
template <typename Scale, typename Weight>
void interleave(Team& team, const Tiles& tiles, const float* x, int64_t inputs, Scale scale, Weight weight, float* to) {
  team.share(tiles.count, 1, [&](int64_t tile) {
    const int64_t first = tiles.first(tile), height = tiles.height(tile);
    float* out = to + first * inputs;
    for (int64_t r = 0; r < height; r++) {
      const float* row = x + (first + r) * inputs;
      const float factor = scale(row);
      for (int64_t i = 0; i < inputs; i++) out[i * height + r] = row[i] * factor * weight(i);
    }
  });
}

inline void interleave(Team& team, const Tiles& tiles, const float* x, int64_t inputs, float* to) {
  interleave(team, tiles, x, inputs, [](const float*) { return 1.0f; }, [](int64_t) { return 1.0f; }, to);
}

// Interleaved rows times packed weights -> out [T, O].
inline void multiply_panels(Team& team, const uint32_t* panels, const float* interleaved, const Tiles& tiles,
                            int64_t inputs, int64_t outputs, Epilogue epilogue, float* out) {
  const int64_t step = epilogue == Epilogue::kGate ? kLanes : kPanel, num_panels = outputs / step;
  // Tiles in blocks that stay in the second-level cache; the weights are read again for each, which is little work
  // beside the arithmetic of a whole block.
  const int64_t block = std::max<int64_t>(1, kBlockBytes / (kRowTile * inputs * (int64_t)sizeof(float)));
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
      choose(height, std::make_integer_sequence<int, kRowTile>())(
          weights, interleaved + first * inputs, inputs, ahead, lines, epilogue, out + first * outputs + panel * step,
          outputs);
      ahead += inputs / kStride * lines * 64;
    }
  });
}
