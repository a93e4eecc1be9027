// A backend whose logits depend on every token in a row's cache, on their order, and on the adapter that stood in
// the row when each was run: rows, seats or adapters that are mixed up give other tokens.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "backend.hpp"
#include "bank_support.hpp"
#include "batch_rows.hpp"

namespace adexport::core::testing {

constexpr std::int64_t kVocabulary = 61;

inline std::uint64_t mixed(std::uint64_t left, std::uint64_t right) {
  std::uint64_t value = (left ^ (right + 0x9E3779B97F4A7C15U + (left << 6) + (left >> 2))) * 0xBF58476D1CE4E5B9U;
  value ^= value >> 29;
  return value;
}

// What marks an adapter in a row; padding has no part in it, so it is that of Adapter below.
inline std::uint64_t mark_of(const std::vector<double>& sums) {
  std::uint64_t mark = 1;
  for (const double sum : sums) mark = mixed(mark, static_cast<std::uint64_t>(static_cast<std::int64_t>(sum * 8)));
  return mark;
}

inline std::uint64_t mark_of(const BankArrays& arrays, std::int64_t row) {
  std::vector<double> sums;
  for (const BankArray& array : arrays.arrays) {
    double sum = 0;
    for (const double value : row_of(array, row)) sum += value;
    sums.push_back(sum);
  }
  return mark_of(sums);
}

inline std::uint64_t mark_of(const Adapter& adapter) {
  std::vector<double> sums;
  for (const SlotInput& slot : slots()) {
    auto found = adapter.find(slot.name);
    double sum = slot.ones ? 4 : 0;
    if (found != adapter.end()) {
      sum = static_cast<double>(found->second.value);
      for (const std::int64_t size : found->second.shape) sum *= static_cast<double>(size);
    }
    sums.push_back(sum);
  }
  return mark_of(sums);
}

// The logits behind these entries of a cache.
inline std::vector<float> logits_of(const std::vector<std::uint64_t>& cache) {
  std::uint64_t state = 7;
  for (const std::uint64_t entry : cache) state = mixed(state, entry);
  std::vector<float> logits;
  for (std::int64_t token = 0; token < kVocabulary; ++token) {
    logits.push_back(static_cast<float>(mixed(state, static_cast<std::uint64_t>(token)) % 1000) / 150.0F);
  }
  return logits;
}

class SimulatedCaches : public Caches {
 public:
  SimulatedCaches(std::int64_t count, std::int64_t room)
      : rows(static_cast<std::size_t>(count), std::vector<std::uint64_t>(static_cast<std::size_t>(room))) {}

  void move(std::int64_t source, std::int64_t target, std::int64_t tokens) override {
    const std::vector<std::uint64_t>& from = rows.at(static_cast<std::size_t>(source));
    std::vector<std::uint64_t>& to = rows.at(static_cast<std::size_t>(target));
    std::fill(to.begin(), to.end(), 0xDEAD);
    std::copy_n(from.begin(), tokens, to.begin());
    ++moves;
  }

  std::vector<std::vector<std::uint64_t>> rows;
  int moves = 0;
};

class SimulatedBackend : public Backend {
 public:
  struct Binding : StepBinding {
    int steps = 0;
  };
  struct Step {
    std::int64_t first, rows, width, tokens;
  };

  std::vector<Step> steps;
  std::int64_t room = 0, rows = 0;
  int bindings = 0;
  bool no_memory = false;
  std::set<std::uint64_t> broken;                // marks of adapters whose logits are NaN
  std::function<void(std::size_t)> before_step;  // may throw, as a provider does

  std::string provider() const override { return "simulated"; }
  std::vector<Array> run(const std::vector<Feed>&, const Lease&) override {
    throw std::logic_error("not asked for");
  }

  std::unique_ptr<Caches> caches(std::int64_t count, std::int64_t tokens) override {
    if (no_memory) throw std::bad_alloc();
    rows = count;
    room = tokens;
    return std::make_unique<SimulatedCaches>(count, tokens);
  }

  std::unique_ptr<StepBinding> binding() override {
    ++bindings;
    return std::make_unique<Binding>();
  }

  Array step(const std::vector<Feed>& feeds, const BatchRows& slots, Caches& caches, std::int64_t first,
             std::int64_t last, StepBinding& binding) override {
    if (before_step) before_step(steps.size());
    const Feed& ids = feed(feeds, "input_ids", {last - first, -1});
    const std::int64_t *lengths = values(feed(feeds, "lengths", {last - first})),
                       *pasts = values(feed(feeds, "past_lengths", {last - first})),
                       *wanted = values(feed(feeds, "logits_at", {last - first, 1}));
    EXPECT_EQ(feeds.size(), 4U);
    EXPECT_TRUE(first >= 0 && last <= rows && slots.size() == rows);
    auto& memory = dynamic_cast<SimulatedCaches&>(caches);
    const std::int64_t width = ids.shape[1];
    ++dynamic_cast<Binding&>(binding).steps;
    std::vector<float> logits;
    std::int64_t tokens = 0;
    for (std::int64_t row = 0; row < last - first; ++row) {
      const std::uint64_t mark = mark_of(slots.arrays(), first + row);
      std::vector<std::uint64_t>& cache = memory.rows.at(static_cast<std::size_t>(first + row));
      EXPECT_LE(pasts[row] + lengths[row], room);
      EXPECT_TRUE(lengths[row] >= 1 && lengths[row] <= width);
      for (std::int64_t at = 0; at < lengths[row]; ++at) {
        const auto id = static_cast<std::uint64_t>(values(ids)[row * width + at]);
        cache.at(static_cast<std::size_t>(pasts[row] + at)) = mixed(mark, id);
      }
      tokens += lengths[row];
      const auto end = static_cast<std::ptrdiff_t>(pasts[row] + wanted[row] + 1);
      std::vector<float> made = logits_of({cache.begin(), cache.begin() + end});
      if (broken.count(mark) != 0) made[3] = std::nanf("");
      logits.insert(logits.end(), made.begin(), made.end());
    }
    steps.push_back({first, last - first, width, tokens});
    return {"logits", {last - first, 1, kVocabulary}, std::move(logits)};
  }

 private:
  static const Feed& feed(const std::vector<Feed>& feeds, const std::string& name,
                          const std::vector<std::int64_t>& shape) {
    for (const Feed& each : feeds) {
      if (each.name != name) continue;
      bool fits = each.element == Element::int64 && each.shape.size() == shape.size();
      for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
        fits = shape[axis] < 0 || shape[axis] == each.shape[axis];
      }
      if (!fits) throw std::invalid_argument(name + " is of another shape");
      return each;
    }
    throw std::invalid_argument("no " + name);
  }

  static const std::int64_t* values(const Feed& given) { return static_cast<const std::int64_t*>(given.data); }
};

}  // namespace adexport::core::testing
