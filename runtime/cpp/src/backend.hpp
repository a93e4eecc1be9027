// What runs a bundle's graph. Safe to call from several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bank.hpp"
#include "element.hpp"
#include "floats.hpp"

namespace adexport::core {

// An array that belongs to somebody else, by the name of a graph input.
struct Feed {
  std::string name;
  Element element = Element::int64;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
};

// An output that owns its memory.
struct Array {
  std::string name;
  std::vector<std::int64_t> shape;
  Floats values;
};

// The KV caches of a batch: [rows, kv_heads, room, size] for keys and values of every layer.
class Caches {
 public:
  virtual ~Caches() = default;
  // Copy the first tokens of a row over another row.
  virtual void move(std::int64_t source, std::int64_t target, std::int64_t tokens) = 0;
};

// Slot inputs that come with a row for each row of a batch (see batch_rows.hpp).
class BatchRows;

// What a backend has bound for a batch that decodes; nothing until the first step.
class StepBinding {
 public:
  virtual ~StepBinding() = default;
};

class Backend {
 public:
  virtual ~Backend() = default;
  [[nodiscard]] virtual std::string provider() const = 0;
  // Outputs in the manifest's order; the slot inputs are the lease's.
  virtual std::vector<Array> run(const std::vector<Feed>& feeds, const Lease& lease) = 0;
  virtual std::unique_ptr<Caches> caches(std::int64_t rows, std::int64_t room) = 0;
  virtual std::unique_ptr<StepBinding> binding() = 0;
  // Run new tokens of the rows from `first` to `last` (exclusive), which the caches take up; the logits
  // [rows, wanted, vocabulary]. `binding` is kept by the caller from step to step.
  virtual Array step(const std::vector<Feed>& feeds, const BatchRows& slots, Caches& caches, std::int64_t first,
                     std::int64_t last, StepBinding& binding) = 0;
};

}  // namespace adexport::core
