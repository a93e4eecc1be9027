// Adapters of every kind for tests of banks, and what rows that hold them must look like.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bank.hpp"
#include "errors.hpp"

namespace adexport::core::testing {

// A tensor of one value, which is a code where the slot input is int64.
struct Filled {
  std::vector<std::int64_t> shape;
  float value = 0;
  bool code = false;
};
using Adapter = std::map<std::string, Filled>;

inline const std::vector<SlotInput>& slots() {
  static const std::vector<SlotInput> made = {
      {"s.lora_A", {"rows", 3, "s.rank"}, false, std::nullopt},
      {"s.lora_B", {"rows", "s.rank", 2}, false, std::nullopt},
      {"t.lora_A", {"rows", 2, "t.rank"}, false, std::nullopt},
      {"t.lora_B", {"rows", "t.rank", 4}, false, std::nullopt},
      {"t.scale_out", {"rows", 4}, true, std::nullopt},
      {"t.bottleneck.down", {"rows", 4, "t.width"}, false, std::nullopt},
      {"t.bottleneck.up", {"rows", "t.width", 4}, false, std::nullopt},
      {"t.bottleneck.code", {"rows"}, false, Element::int64},
      {"head.dense", {"rows", 4, "head.mid"}, false, std::nullopt},
      {"head.deep", {"rows", "head.mid", "head.labels"}, false, std::nullopt},
      {"head.out", {"rows", 4, "head.labels"}, false, std::nullopt},
      {"head.code", {"rows"}, false, Element::int64},
  };
  return made;
}

inline RowTensors tensors_of(const Adapter& adapter) {
  RowTensors row;
  auto content = std::make_shared<std::vector<std::vector<float>>>();
  content->reserve(adapter.size());
  for (const auto& [name, filled] : adapter) {
    RowTensor tensor;
    tensor.shape = filled.shape;
    if (filled.code) {
      tensor.number = static_cast<std::int64_t>(filled.value);
    } else {
      std::size_t count = 1;
      for (std::int64_t size : filled.shape) count *= static_cast<std::size_t>(size);
      content->emplace_back(count, filled.value);
      tensor.values = content->back().data();
    }
    row.tensors.emplace(name, std::move(tensor));
  }
  row.content = std::move(content);
  return row;
}

inline Adapter lora(float value, std::int64_t rank, const std::string& sites = "st") {
  Adapter made;
  for (char site : sites) {
    const bool first = site == 's';
    made[std::string(1, site) + ".lora_A"] = {{first ? 3 : 2, rank}, value};
    made[std::string(1, site) + ".lora_B"] = {{rank, first ? 2 : 4}, value};
  }
  return made;
}

inline Adapter scale(float value) {
  return {{"t.scale_out", {{4}, value}}};
}

inline Adapter bottleneck(float value, std::int64_t width) {
  return {{"t.bottleneck.down", {{4, width}, value}},
          {"t.bottleneck.up", {{width, 4}, value}},
          {"t.bottleneck.code", {{}, value, true}}};
}

// Of two layers where the number of labels is even, else of one.
inline Adapter head(float value, std::int64_t labels) {
  Adapter made = {{"head.code", {{}, value, true}}};
  if (labels % 2 == 0) {
    made["head.dense"] = {{4, labels + 1}, value};
    made["head.deep"] = {{labels + 1, labels}, value};
  } else {
    made["head.out"] = {{4, labels}, value};
  }
  return made;
}

constexpr int kFamilies = 7;

// An adapter of one of the kinds; the last has several together.
inline Adapter of_family(int family, float value, std::int64_t size) {
  switch (family) {
    case 0:
      return lora(value, size);
    case 1:
      return lora(value, size, "s");
    case 2:
      return lora(value, size, "t");
    case 3:
      return scale(value);
    case 4:
      return bottleneck(value, size);
    case 5:
      return head(value, size);
    default: {
      Adapter made = bottleneck(value, size);
      made.merge(head(value, 21 - size));
      made.merge(scale(value));
      return made;
    }
  }
}

// The elements of one row, as numbers.
inline std::vector<double> row_of(const BankArray& array, std::int64_t row) {
  std::size_t count = 1;
  for (std::size_t axis = 1; axis < array.shape.size(); ++axis)
    count *= static_cast<std::size_t>(array.shape[axis]);
  std::vector<double> made(count);
  const std::size_t start = static_cast<std::size_t>(row) * count;
  for (std::size_t at = 0; at < count; ++at) {
    if (array.element == Element::int64) {
      made[at] = static_cast<double>(static_cast<const std::int64_t*>(array.data.get())[start + at]);
    } else {
      made[at] = static_cast<double>(static_cast<const float*>(array.data.get())[start + at]);
    }
  }
  return made;
}

// What a row of this shape must hold: the tensor, and the identity beyond it.
inline std::vector<double> padded(const Filled* tensor, const std::vector<std::int64_t>& shape, double identity) {
  std::size_t count = 1;
  for (std::int64_t size : shape) count *= static_cast<std::size_t>(size);
  std::vector<double> made(count, identity);
  for (std::size_t at = 0; tensor != nullptr && at < count; ++at) {
    bool inside = true;
    std::size_t rest = at;
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      const auto size = static_cast<std::size_t>(shape[axis]);
      inside = inside && static_cast<std::int64_t>(rest % size) < tensor->shape[axis];
      rest /= size;
    }
    if (inside) made[at] = static_cast<double>(tensor->value);
  }
  return made;
}

// The name of the first array whose row is not this adapter; "" if all are.
inline std::string wrong_in_row(const BankArrays& arrays, std::int64_t row, const Adapter& adapter) {
  for (std::size_t slot = 0; slot < slots().size(); ++slot) {
    const BankArray& array = arrays.arrays[slot];
    auto found = adapter.find(slots()[slot].name);
    const std::vector<std::int64_t> shape(array.shape.begin() + 1, array.shape.end());
    const Filled* tensor = found == adapter.end() ? nullptr : &found->second;
    if (row_of(array, row) != padded(tensor, shape, slots()[slot].ones ? 1 : 0)) return slots()[slot].name;
  }
  return "";
}

inline std::string wrong(const Lease& lease, const std::string& name, const Adapter& adapter) {
  return wrong_in_row(*lease.arrays(), lease.held(name).row, adapter);
}

inline std::string wrong_identity(const Lease& lease) {
  return wrong_in_row(*lease.arrays(), 0, {});
}

inline Bank::Load loading(const Adapter& adapter) {
  return [adapter] { return tensors_of(adapter); };
}

inline std::int64_t size_in(const Lease& lease, std::size_t slot, std::size_t axis) {
  return lease.arrays()->arrays[slot].shape[axis];
}

template <class Call>
Error error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was refused";
  return Error(Kind::internal, "", Problem{});
}

}  // namespace adexport::core::testing
