// Vectors of floats in the width of the processor, and what the standard library has no vector form of.
//
// GCC/Clang vector extensions: one source gives AVX2, AVX-512 or NEON code with -march=native. In memory there is float
// or bfloat16; arithmetic is float32, but for products of pairs of bfloat16 numbers, for which some processors have an
// instruction.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));
typedef float Two __attribute__((vector_size(8)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  uint16_t bits;
};

#define INLINE __attribute__((always_inline))

// Calls body(0), ..., body(kCount - 1) with constants, which index arrays that then become registers; of a loop, even an
// unrolled one, compilers may keep the arrays in memory.
template <int kCount, typename Body>
INLINE inline void repeat(Body body) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) INLINE {
    (body(std::integral_constant<int, kIndex>()), ...);
  }(std::make_integer_sequence<int, kCount>());
}

// `value - 0` is exactly `value`, signed zeros included, so compilers make it one broadcast.
inline Floats splat(float value) { return value - Floats{}; }

inline Words splat(uint32_t value) { return value - Words{}; }

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

// Two vectors' worth of neighbours, in the order in which they are cheapest to have: of bfloat16 the even ones and the odd
// ones, since a shift and a mask then do what takes several shuffles in the order of memory.
inline void load_pair(const float* from, Floats& first, Floats& second) {
  first = load(from);
  second = load(from + kLanes);
}

inline void load_pair(const BFloat16* from, Floats& first, Floats& second) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  first = (Floats)(words << 16);
  second = (Floats)(words & 0xffff0000u);
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// Rounds to nearest, ties to even, as torch does; the instruction takes numbers below 2^-126 for 0.
inline void store(BFloat16* to, Floats value) {
#if defined(__AVX512BF16__)
  const __m256bh halves = _mm512_cvtneps_pbh((__m512)value);
#else
  Words bits = (Words)value;
  bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Halves halves = __builtin_convertvector(bits, Halves);
#endif
  std::memcpy(to, &halves, sizeof halves);
}

// Each lane's two numbers as bfloat16, the first in the low half of a word.
inline Words pair(Floats first, Floats second) {
  Halves low, high;
  store((BFloat16*)&low, first);
  store((BFloat16*)&high, second);
  return __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
}

// Adds to each lane the products of its two pairs of bfloat16 numbers.
inline Floats add_products(Floats sum, Words left, Words right) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
#else
  sum += (Floats)(left << 16) * (Floats)(right << 16);
  return sum + (Floats)(left & 0xffff0000u) * (Floats)(right & 0xffff0000u);
#endif
}

// The sum of a vector's two halves.
template <typename Half, typename Whole>
inline Half fold(Whole value) {
  Half low, high;
  std::memcpy(&low, &value, sizeof low);
  std::memcpy(&high, (const char*)&value + sizeof low, sizeof high);
  return low + high;
}

inline float sum(Floats value) {
#if defined(__AVX512F__)
  const Eight eight = fold<Eight>(value);
#else
  const Eight eight = value;
#endif
  const Two two = fold<Two>(fold<Four>(eight));
  return two[0] + two[1];
}

// What kStep lanes of `first` and of `second` come to with their neighbours: lanes with that bit clear are of `first`.
template <int kStep>
inline Floats merge_sums(Floats first, Floats second) {
#if defined(__clang__) || __GNUC__ >= 12
  return [&]<int... kLane>(std::integer_sequence<int, kLane...>) {
    return __builtin_shufflevector(first, second, (kLane & kStep ? kLanes + (kLane ^ kStep) : kLane)...) +
           __builtin_shufflevector(first, second, (kLane & kStep ? kLanes + kLane : kLane | kStep)...);
  }(std::make_integer_sequence<int, kLanes>());
#else
  Floats sums;
  for (int lane = 0; lane < kLanes; lane++)
    sums[lane] = lane & kStep ? second[lane ^ kStep] + second[lane] : first[lane] + first[lane | kStep];
  return sums;
#endif
}

// Lane i of the result is the sum of vector i's lanes, where kCount vectors of kLanes lanes are given. With fewer vectors
// than lanes, lanes i, i + kCount, ... have the parts of that sum that such lanes had, to be merged with kStep = kCount.
template <int kCount, int kStep = 1>
inline Floats sums_of(const Floats* values) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    Floats merged[kCount / 2];
    for (int i = 0; i < kCount / 2; i++) merged[i] = merge_sums<kStep>(values[2 * i], values[2 * i + 1]);
    return sums_of<kCount / 2, 2 * kStep>(merged);
  }
}

// exp(x), with x held to [-87, 88] where float32 has normal numbers; relative error below 2e-7. Range reduction by ln 2
// in two parts and the Taylor polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (W. J. Cody and W. Waite, Software Manual
// for the Elementary Functions, 1980).
INLINE inline Floats exponential(Floats x) {
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
