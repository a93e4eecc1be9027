// Rows of a batch, side by side: filled, moved, emptied; as wide as the widest of them.
#include "batch_rows.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>

#include "bank_support.hpp"

namespace adexport::core {
namespace {

using namespace testing;

// Every row holds its adapter, and no ragged size is larger than the widest needs.
void check(const BatchRows& rows, const std::vector<Adapter>& expected) {
  Sizes widest;
  for (std::size_t row = 0; row < expected.size(); ++row) {
    ASSERT_EQ(wrong_in_row(rows.arrays(), static_cast<std::int64_t>(row), expected[row]), "") << row;
    for (const SlotInput& slot : slots()) {
      auto found = expected[row].find(slot.name);
      for (std::size_t axis = 1; found != expected[row].end() && axis < slot.shape.size(); ++axis) {
        const auto* symbol = std::get_if<std::string>(&slot.shape[axis]);
        if (symbol != nullptr) widest[*symbol] = std::max(widest[*symbol], found->second.shape[axis - 1]);
      }
    }
  }
  widest = rounded(widest);
  for (std::size_t slot = 0; slot < slots().size(); ++slot) {
    const BankArray& array = rows.arrays().arrays[slot];
    ASSERT_EQ(array.shape[0], rows.size());
    for (std::size_t axis = 1; axis < array.shape.size(); ++axis) {
      const auto* symbol = std::get_if<std::string>(&slots()[slot].shape[axis]);
      if (symbol == nullptr) continue;
      ASSERT_EQ(array.shape[axis], widest[*symbol]) << *symbol;
    }
  }
}

TEST(BatchRows, AreIdentitiesAtFirst) {
  const BatchRows rows(slots(), Element::fp32, 3);
  EXPECT_EQ(rows.size(), 3);
  EXPECT_EQ(rows.slots().size(), slots().size());
  check(rows, {{}, {}, {}});
}

TEST(BatchRows, KeepWhatALeaseHeld) {
  Bank bank(slots(), Element::fp32);
  bank.put("a", tensors_of(lora(1, 3)));
  bank.put("wide", tensors_of(lora(2, 40)));
  BatchRows rows(slots(), Element::fp32, 2);
  rows.put(1, bank.lease({"a"}), "a");
  check(rows, {{}, lora(1, 3)});  // as wide as its own rank, not as the bank's arrays
  bank.put("a", tensors_of(lora(9, 5)));
  bank.drop("wide");
  check(rows, {{}, lora(1, 3)});
  rows.put(0, bank.lease({"a"}), "a");
  check(rows, {lora(9, 5), lora(1, 3)});
}

TEST(BatchRows, ALayoutChangesOnlyWithTheArrays) {
  Bank bank(slots(), Element::fp32);
  bank.put("a", tensors_of(lora(1, 3)));
  bank.put("b", tensors_of(lora(2, 8)));
  bank.put("c", tensors_of(lora(3, 9, "s")));
  BatchRows rows(slots(), Element::fp32, 3);
  rows.put(0, bank.lease({"a"}), "a");
  const std::uint64_t layout = rows.arrays().layout;
  rows.put(1, bank.lease({"b"}), "b");
  rows.clear(0);
  rows.move(1, 0);
  EXPECT_EQ(rows.arrays().layout, layout);
  const void* kept = rows.arrays().arrays[2].data.get();
  rows.put(2, bank.lease({"c"}), "c");
  EXPECT_GT(rows.arrays().layout, layout);
  EXPECT_EQ(rows.arrays().arrays[2].data.get(), kept);  // those whose shape stays are not replaced
  check(rows, {lora(2, 8), {}, lora(3, 9, "s")});
}

TEST(BatchRows, ANarrowTypeIsKept) {
  Bank bank(slots(), Element::bf16);
  Adapter adapter = lora(0.3F, 2);
  adapter.merge(head(5, 3));
  bank.put("a", tensors_of(adapter));
  BatchRows rows(slots(), Element::bf16, 2);
  rows.put(1, bank.lease({"a"}), "a");
  const auto* values = static_cast<const std::uint16_t*>(rows.arrays().arrays[0].data.get());
  EXPECT_EQ(values[3 * 8], to_bf16(0.3F));
  EXPECT_EQ(values[3 * 8 + 2], 0);
  EXPECT_EQ(static_cast<const std::int64_t*>(rows.arrays().arrays[11].data.get())[1], 5);
}

TEST(BatchRows, ALeaseOfAnotherBankIsRefused) {
  Bank bank(slots(), Element::fp16);
  bank.put("a", tensors_of(lora(1, 3)));
  BatchRows rows(slots(), Element::fp32, 1);
  EXPECT_THROW(rows.put(0, bank.lease({"a"}), "a"), std::invalid_argument);
  EXPECT_THROW(rows.put(0, bank.lease({}), "a"), std::out_of_range);
  Bank right(slots(), Element::fp32);
  right.put("a", tensors_of(lora(1, 3)));
  EXPECT_THROW(rows.put(1, right.lease({"a"}), "a"), std::out_of_range);
  check(rows, {{}});
}

TEST(BatchRows, RandomSequencesAgreeWithAList) {
  for (std::uint32_t seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    constexpr std::size_t kRows = 4;
    Bank bank(slots(), Element::fp32, seed % 2 == 0 ? 0 : 2);
    BatchRows rows(slots(), Element::fp32, kRows);
    std::vector<Adapter> model(kRows);
    for (int step = 1; step <= 60; ++step) {
      const std::size_t row = random() % kRows;
      switch (random() % 4) {
        case 0:
          rows.clear(static_cast<std::int64_t>(row));
          model[row].clear();
          break;
        case 1: {
          const std::size_t target = random() % kRows;
          if (target == row) break;
          rows.move(static_cast<std::int64_t>(row), static_cast<std::int64_t>(target));
          model[target] = std::exchange(model[row], {});
          break;
        }
        default: {
          const std::string name(1, static_cast<char>('a' + random() % 3));
          model[row] = of_family(static_cast<int>(random() % kFamilies), static_cast<float>(step),
                                 static_cast<std::int64_t>(1 + random() % 20));
          bank.put(name, tensors_of(model[row]));
          rows.put(static_cast<std::int64_t>(row), bank.lease({name}), name);
        }
      }
      check(rows, model);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace adexport::core
