// From the number types that operands come in to float32. Included by tile.h and amx.cpp, inside their target regions:
// nothing here may come out of a header of the standard library, see tile.h.

namespace encore::cpu {
namespace {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(float value) { return value; }

inline float widen(Bfloat16 value) { return from_bits(static_cast<uint32_t>(value.bits) << 16); }

inline float widen(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t shifted = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t exponent = shifted & 0x0f800000;
  const uint32_t rebased = shifted + (112u << 23) + (exponent == 0x0f800000 ? 112u << 23 : 0);  // inf and NaN stay so
  const float subnormal = from_bits(shifted + (113u << 23)) - from_bits(113u << 23);
  const float magnitude = exponent == 0 ? subnormal : from_bits(rebased);
  uint32_t bits;
  __builtin_memcpy(&bits, &magnitude, sizeof bits);
  return from_bits(bits | sign);
}

template <int64_t kCount, class Source>
inline void widen(const Source* from, float* to) {
  for (int64_t k = 0; k < kCount; ++k) to[k] = widen(from[k]);
}

template <int64_t kCount>
inline void widen(const float* from, float* to) {
  __builtin_memcpy(to, from, kCount * sizeof(float));
}

}  // namespace
}  // namespace encore::cpu
