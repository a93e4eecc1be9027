// KV caches in one buffer for each layer's keys and values, in host memory that is taken as texts grow.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"
#include "ort/values.hpp"

namespace adexport::core {

class HostCaches final : public Caches {
 public:
  // Throws std::bad_alloc where the memory does not hold them.
  HostCaches(const std::vector<Cache>& layers, Element dtype, std::int64_t rows, std::int64_t room);

  void move(std::int64_t source, std::int64_t target, std::int64_t tokens) override;
  // Fill a row with zeros.
  void clear(std::int64_t row);

  [[nodiscard]] std::int64_t rows() const { return rows_; }
  // Keys and values, layer by layer, [rows, kv_heads, room, size].
  [[nodiscard]] const std::vector<BankArray>& arrays() const { return arrays_; }

 private:
  std::int64_t rows_, room_;
  std::vector<BankArray> arrays_;
};

}  // namespace adexport::core
