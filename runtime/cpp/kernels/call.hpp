// One call of an operator: its tensors, whether they fit, and its work. Knows nothing of ONNX Runtime.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "table.hpp"

namespace adexport::kernels {

// What does not fit in a call; the message is for the caller of the model.
class Misfit : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tensor of up to three axes; null where an optional one was left out.
struct View {
  const void* data = nullptr;
  std::array<std::int64_t, 3> shape{};
  std::size_t axes = 0;
  bool there = false;

  [[nodiscard]] std::size_t at(std::size_t axis) const { return static_cast<std::size_t>(shape[axis]); }
};

// Runs task(data, 0 … total - 1), in about `batches` portions side by side.
class Pool {
 public:
  using Task = void (*)(void* data, std::size_t index);
  virtual void run(std::size_t total, std::size_t batches, Task task, void* data) const = 0;

 protected:
  ~Pool() = default;
};

// Which adapter each row of a batch has.
class Rows {
 public:
  // Refuses ids that are no row of the banks, and banks that do not fit the batch.
  Rows(const char* where, const View& ids, std::size_t batch, std::size_t rows);

  // The row of the banks for row `row` of the batch.
  std::size_t operator[](std::size_t row) const;
  [[nodiscard]] bool skipped(std::size_t row) const { return ids_ != nullptr && operator[](row) == 0; }
  [[nodiscard]] std::size_t batch() const { return batch_; }

 private:
  const std::int64_t* ids_ = nullptr;
  bool one_;
  std::size_t batch_;
};

struct LowRankCall {
  const char* where;
  Pair pair;
  View y, x, bias, down, down_bias, up, up_bias, code, ids;
  const std::vector<Activation>* activations = nullptr;
  bool used = true;

  // Refuses what does not fit, before anything is written.
  [[nodiscard]] Rows checked() const;
  void run(const Rows& rows, void* out, const Table& table, const Pool& pool) const;
};

struct ElementwiseCall {
  const char* where;
  Pair pair;
  View x, vector, ids;
  bool scales;

  [[nodiscard]] Rows checked() const;
  void run(const Rows& rows, void* out, const Table& table, const Pool& pool) const;
};

}  // namespace adexport::kernels
