# frozen_string_literal: true

# CRC-32C (Castagnoli), as Ruby has none of its own; the gem digest-crc is a faster one.
module Crc32c
  TABLE = Array.new(256) do |byte|
    8.times.reduce(byte) { |crc, _| crc.odd? ? (crc >> 1) ^ 0x82F63B78 : crc >> 1 }
  end.freeze

  def self.of(bytes)
    bytes.each_byte.reduce(0xFFFFFFFF) { |crc, byte| TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8) } ^ 0xFFFFFFFF
  end
end
