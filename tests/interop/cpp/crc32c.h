#pragma once

#include <array>
#include <cstdint>
#include <string>

// CRC-32C (Castagnoli), a byte at a time. Where speed matters, take a library that uses the processor's instruction.
inline uint32_t crc32c(const std::string& bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made{};
    for (uint32_t byte = 0; byte < made.size(); ++byte) {
      made[byte] = byte;
      for (int bit = 0; bit < 8; ++bit) made[byte] = (made[byte] >> 1) ^ (made[byte] & 1 ? 0x82F63B78 : 0);
    }
    return made;
  }();
  uint32_t crc = 0xFFFFFFFF;
  for (unsigned char byte : bytes) crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8);
  return crc ^ 0xFFFFFFFF;
}
