#include "pieces.hpp"

#include <algorithm>
#include <cstdint>

namespace adexport::kernels {

Pieces::Pieces(const Rows& rows, std::size_t tokens, std::size_t most) {
  if (tokens == 0) return;
  for (std::size_t row = 0; row < rows.batch();) {
    std::size_t end = row + 1;
    while (end < rows.batch() && rows[end] == rows[row]) ++end;
    const std::size_t all = (end - row) * tokens;
    const std::size_t parts = (all + most - 1) / most;
    const std::size_t each = std::min(most, ((all + parts - 1) / parts + 11) / 12 * 12);
    for (std::size_t at = 0; at < all; at += each) {
      add({row * tokens + at, std::min(each, all - at), rows[row], rows.skipped(row)});
    }
    row = end;
  }
}

void Pieces::add(const Piece& piece) {
  if (size_ < few_.size()) {
    few_[size_] = piece;
  } else {
    more_.push_back(piece);
  }
  ++size_;
}

float* thread_scratch(std::size_t floats) {
  constexpr std::size_t line = 64 / sizeof(float);
  thread_local std::vector<float> memory;
  if (memory.size() < floats + line) memory.resize(floats + line);
  const auto start = reinterpret_cast<std::uintptr_t>(memory.data());
  return memory.data() + (64 - start % 64) % 64 / sizeof(float);
}

}  // namespace adexport::kernels
