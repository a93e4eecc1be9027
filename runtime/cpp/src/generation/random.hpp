// Random numbers as numpy draws them: numpy.random.Generator(numpy.random.PCG64(seed)).random().
//
// PCG64 is O'Neill's pcg64 (XSL RR 128/64, 2014); a seed is spread over its 256 bits as numpy's SeedSequence
// does it, after O'Neill's seed_seq_fe.
#pragma once

#include <cstdint>
#include <optional>

namespace adexport::core {

class Random {
 public:
  // None: a seed from the system.
  explicit Random(std::optional<std::uint64_t> seed);

  // From 0 to below 1, a multiple of 2**-53.
  double next();

 private:
  __extension__ using Wide = unsigned __int128;

  std::uint64_t bits();

  Wide state_ = 0, increment_ = 0;
};

}  // namespace adexport::core
