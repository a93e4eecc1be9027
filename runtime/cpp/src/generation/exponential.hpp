// e to the power of float32 numbers, to the bit as numpy computes it where it has AVX2 or AVX-512.
//
// On other processors numpy takes the C library's, which may differ in the last places: there a draw that
// falls exactly between two tokens may differ from Python's.
#pragma once

#include <cstddef>

namespace adexport::core {

// For values up to 0 and minus infinity; in place.
void exponentiate(float* values, std::size_t count);

}  // namespace adexport::core
