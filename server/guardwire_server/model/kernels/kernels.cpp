// The CPU kernels of a Qwen3 step: what torch does in many small passes, done in one.
//
// No torch headers: tensors come as pointers, which native_kernels.py keeps alive, and threads come from the OpenMP
// runtime that torch has loaded.
//
// Shapes: T rows (new tokens of all sequences), H hidden size, N query heads, K key-value heads, G = N / K, D head
// dimension, M segments, S slots of the arena, I inputs and O outputs of a linear layer.

#include "attention.h"
#include "layers.h"
#include "linear.h"
#include "norms.h"
#include "team.h"
#include "vectors.h"

extern "C" {

int guardwire_lanes() { return kLanes; }

int64_t guardwire_room(const Shape* shape, int64_t rows) { return room_for(*shape, rows); }

#define GUARDWIRE_DEFINE_NORM(X, SUFFIX)                                                                           \
  void guardwire_rms_norm_##SUFFIX(const X* x, const X* weight, int64_t rows, int64_t size, float eps, X* out) {   \
    rms_norm(x, weight, rows, size, eps, out);                                                                     \
  }

// Activations X and cache T.
#define GUARDWIRE_DEFINE(X, T, SUFFIX)                                                                             \
  void guardwire_prepare_##SUFFIX(const Heads* heads, const X* qkv, const X* query_weight, const X* key_weight,    \
                                  const float* cosines, const float* sines, const int64_t* slots, int64_t rows,    \
                                  float* query, T* keys, T* values, int threads) {                                 \
    const int64_t dim = heads->dim, width = (heads->queries + 2 * heads->kv) * dim;                                \
    Team::run(rows < 32 ? 1 : threads, [&](Team& team) {                                                           \
      team.share(rows, 1, [&](int64_t row) {                                                                       \
        prepare_token(*heads, qkv + row * width, query_weight, key_weight, cosines + row * dim / 2,                \
                      sines + row * dim / 2, slots[row], query + row * heads->queries * dim, keys, values);        \
      });                                                                                                          \
    });                                                                                                            \
  }                                                                                                                \
  void guardwire_attend_##SUFFIX(const Heads* heads, const float* query, const T* keys, const T* values,           \
                                 const int64_t* segments, int64_t num_segments, X* out, int threads) {             \
    const auto pieces = cut_into_pieces(*heads, segments, num_segments, has_wide<X, T>());                         \
    Team::run(threads, [&](Team& team) {                                                                           \
      std::vector<float> room;                                                                                     \
      attend<X>(team, *heads, pieces, query, keys, values, out, room);                                             \
    });                                                                                                            \
  }

// Products in the arithmetic of X. `pack`: weight [O, I] bfloat16 -> panels; `second` is null, or the up projection of a
// gated pair. `linear`: x [T, I] times packed weights -> out [T, O]; epilogue: 0 store, 1 add to out, 2 silu(gate) * up.
#define GUARDWIRE_DEFINE_PRODUCTS(X, SUFFIX)                                                                       \
  void guardwire_pack_##SUFFIX(const uint16_t* weight, const uint16_t* second, int64_t outputs, int64_t inputs,    \
                               uint32_t* panels, int threads) {                                                    \
    const int64_t step = second ? kLanes : kPanel;                                                                 \
    Team::run(threads, [&](Team& team) {                                                                           \
      team.share(outputs / step, 1, [&](int64_t panel) {                                                           \
        const uint16_t* first = weight + panel * step * inputs;                                                    \
        pack_panel<X>(first, second ? second + panel * step * inputs : first + kLanes * inputs, inputs,            \
                      panels + panel * kLanes * inputs);                                                           \
      });                                                                                                          \
    });                                                                                                            \
  }                                                                                                                \
  void guardwire_linear_##SUFFIX(const uint32_t* panels, const float* x, int64_t rows, int64_t inputs,             \
                                 int64_t outputs, int epilogue, float* out, int threads) {                         \
    if (rows == 0) return;                                                                                         \
    const Tiles tiles(rows);                                                                                       \
    std::vector<Arithmetic<X>::Factor> interleaved(rows * inputs / Arithmetic<X>::kInputs);                        \
    Team::run(threads, [&](Team& team) {                                                                           \
      interleave<X>(team, tiles, x, inputs, interleaved.data());                                                   \
      multiply_panels<X>(team, panels, interleaved.data(), tiles, inputs, outputs, (Epilogue)epilogue, out);       \
    });                                                                                                            \
  }

#define GUARDWIRE_DEFINE_LAYERS(X, T, SUFFIX)                                                                      \
  void guardwire_layers_##SUFFIX(const Layer* layers, const Shape* shape, const Batch* batch, float* x, T* keys,   \
                                 T* values, float* room, int threads) {                                            \
    run_layers<X>(layers, *shape, *batch, x, keys, values, room, threads);                                         \
  }

GUARDWIRE_DEFINE_NORM(float, f32)
GUARDWIRE_DEFINE_NORM(BFloat16, bf16)
GUARDWIRE_DEFINE(float, float, f32_f32)
GUARDWIRE_DEFINE(float, BFloat16, f32_bf16)
GUARDWIRE_DEFINE(BFloat16, BFloat16, bf16_bf16)
GUARDWIRE_DEFINE_PRODUCTS(float, f32)
GUARDWIRE_DEFINE_PRODUCTS(BFloat16, bf16)
GUARDWIRE_DEFINE_LAYERS(float, float, f32_f32)
GUARDWIRE_DEFINE_LAYERS(float, BFloat16, f32_bf16)
GUARDWIRE_DEFINE_LAYERS(BFloat16, BFloat16, bf16_bf16)
}
