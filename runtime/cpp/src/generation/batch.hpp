// Continuous batching: texts join and leave a batch that decodes, each with its own adapter.
//
// A step takes in waiting prompts, then runs one token of every text that decodes. Each text has a seat: a
// row of the caches and of the slot inputs. Prompts run in a span of seats of their own, so nothing is
// copied between the two; when a text ends, the last seat moves into its place. The rows of a graph never
// meet, and sampling looks at a row alone: a text that fails, ends or is cancelled disturbs no other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "backend.hpp"
#include "bank.hpp"
#include "batch_rows.hpp"
#include "generation/request.hpp"
#include "manifest.hpp"

namespace adexport::core {

// Texts that are generated side by side. Not for several threads at once. What it is given must outlive it.
class Batch {
 public:
  // `rows`: texts at once; `room`: tokens of a text, its prompt included; `prompt_tokens`: the most that a
  // step takes in of prompts, so that texts under way need not wait long; longer ones go in by pieces.
  // Throws Kind::request where the caches have no memory.
  Batch(Backend& backend, const Manifest& manifest, Bank& bank, std::int64_t rows, std::int64_t room,
        std::int64_t prompt_tokens);

  // Let a text join as soon as a seat is free.
  void add(Request& request) { waiting_.push_back(&request); }
  // Run one token of every text; returns whether there is more to do.
  bool step();

 private:
  // The logits behind the last new token of each row of a run.
  struct Logits {
    Floats values;
    std::size_t vocabulary = 0;
    [[nodiscard]] const float* row(std::size_t at) const { return values.data() + at * vocabulary; }
  };

  void take_in();
  std::vector<std::size_t> admit();
  bool seat_next(std::size_t seat);
  void decode();
  std::optional<Logits> run(StepBinding& binding, std::size_t first, const std::vector<std::int64_t>& ids,
                            const std::vector<std::int64_t>& lengths);
  Logits run_graph(StepBinding& binding, std::size_t first, const std::vector<std::int64_t>& ids,
                   const std::vector<std::int64_t>& lengths);
  void leave();
  void close_gaps();

  Backend& backend_;
  const Generation& generation_;
  Bank& bank_;
  std::int64_t prompt_tokens_;
  std::deque<Request*> waiting_;
  std::vector<Request*> seats_;
  std::unique_ptr<Caches> caches_;
  std::unique_ptr<BatchRows> slots_;
  std::unique_ptr<StepBinding> decoding_;
};

}  // namespace adexport::core
