// A batch cut into pieces that threads take: consecutive tokens that have one adapter.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "call.hpp"

namespace adexport::kernels {

struct Piece {
  std::size_t token;  // the first, of all tokens of the batch
  std::size_t tokens;
  std::size_t row;  // of the banks
  bool skipped;
};

class Pieces {
 public:
  // Of at most `most` tokens; rows side by side that have one adapter are joined.
  Pieces(const Rows& rows, std::size_t tokens, std::size_t most);
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;

  [[nodiscard]] std::size_t size() const { return size_; }
  const Piece& operator[](std::size_t index) const {
    return index < few_.size() ? few_[index] : more_[index - few_.size()];
  }

 private:
  void add(const Piece& piece);

  std::array<Piece, 32> few_;  // so that a small batch allocates nothing
  std::vector<Piece> more_;
  std::size_t size_ = 0;
};

// Memory of this thread on a boundary of 64 bytes, which later calls have again.
float* thread_scratch(std::size_t floats);

}  // namespace adexport::kernels
