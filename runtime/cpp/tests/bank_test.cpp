// Rows, leases and paging: a row belongs to one generation, and a leased row never changes.
#include "bank.hpp"

#include <gtest/gtest.h>

#include <random>
#include <stdexcept>
#include <thread>

#include "bank_support.hpp"
#include "errors.hpp"

namespace adexport::core {
namespace {

using namespace testing;

TEST(Bank, AnEmptyOneIsTheIdentity) {
  Bank bank(slots(), Element::fp32);
  const Lease lease = bank.lease({});
  EXPECT_EQ(wrong_identity(lease), "");
  EXPECT_EQ(size_in(lease, 0, 2), 0);
  EXPECT_THROW(static_cast<void>(lease.held("a")), std::out_of_range);
  EXPECT_TRUE(bank.names().empty());
}

TEST(Bank, RowsHoldWhatWasPut) {
  Bank bank(slots(), Element::fp32);
  bank.put("a", tensors_of(lora(1, 2)));
  bank.put("b", tensors_of(lora(2, 9, "s")));
  const Lease lease = bank.lease({"a", "b"});
  EXPECT_EQ(wrong(lease, "a", lora(1, 2)), "");
  EXPECT_EQ(wrong(lease, "b", lora(2, 9, "s")), "");
  EXPECT_EQ(lease.held("a").row, 1);
  EXPECT_EQ(lease.held("b").row, 2);
  EXPECT_EQ(size_in(lease, 0, 2), 16);  // the rank, in steps of eight
  EXPECT_EQ(size_in(lease, 2, 2), 8);
  EXPECT_EQ(lease.held("b").sizes, (Sizes{{"s.rank", 9}}));
  EXPECT_EQ(wrong_identity(lease), "");
  EXPECT_EQ(bank.names(), (std::vector<std::string>{"a", "b"}));
}

TEST(Bank, ArraysAreAligned) {
  Bank bank(slots(), Element::fp16);
  for (int index = 0; index < 20; ++index) {
    bank.put("n" + std::to_string(index), tensors_of(of_family(index % kFamilies, 1, 1 + index)));
    const Lease lease = bank.lease({});
    for (const BankArray& array : lease.arrays()->arrays) {
      EXPECT_EQ(reinterpret_cast<std::uintptr_t>(array.data.get()) % 64, 0U);
    }
  }
}

TEST(Bank, ANarrowTypeIsKept) {
  for (const Element element : {Element::fp16, Element::bf16}) {
    Bank bank(slots(), element);
    Adapter adapter = lora(0.1F, 3);
    adapter.merge(scale(-2.5F));
    adapter.merge(bottleneck(7, 2));
    bank.put("a", tensors_of(adapter));
    const Lease lease = bank.lease({"a"});
    const auto row = static_cast<std::size_t>(lease.held("a").row);
    const BankArray& factor = lease.arrays()->arrays[0];
    const auto* values = static_cast<const std::uint16_t*>(factor.data.get()) + row * 3 * 8;
    const bool half = element == Element::fp16;
    EXPECT_EQ(factor.element, element);
    EXPECT_EQ(factor.bytes, 2U * 2 * 3 * 8);
    EXPECT_EQ(values[0], half ? to_fp16(0.1F) : to_bf16(0.1F));
    EXPECT_EQ(values[3], 0);
    EXPECT_EQ(values[8], values[0]);
    const auto* scales = static_cast<const std::uint16_t*>(lease.arrays()->arrays[4].data.get());
    EXPECT_EQ(scales[0], half ? to_fp16(1) : to_bf16(1));
    EXPECT_EQ(scales[row * 4], half ? to_fp16(-2.5F) : to_bf16(-2.5F));
    EXPECT_EQ(lease.arrays()->arrays[7].element, Element::int64);
    EXPECT_EQ(static_cast<const std::int64_t*>(lease.arrays()->arrays[7].data.get())[row], 7);
  }
}

TEST(Bank, TheRankShrinksWithTheWidestAdapter) {
  Bank bank(slots(), Element::fp32);
  bank.put("narrow", tensors_of(lora(1, 3)));
  bank.put("wide", tensors_of(lora(2, 60)));
  EXPECT_EQ(size_in(bank.lease({}), 0, 2), 64);
  bank.drop("wide");
  const Lease lease = bank.lease({"narrow"});
  EXPECT_EQ(size_in(lease, 0, 2), 8);
  EXPECT_EQ(wrong(lease, "narrow", lora(1, 3)), "");
}

TEST(Bank, ARebindIsAnotherRowAndAnotherGeneration) {
  Bank bank(slots(), Element::fp32);
  bank.put("a", tensors_of(lora(1, 2)));
  const Lease old = bank.lease({"a"});
  bank.put("a", tensors_of(lora(2, 2)));
  {
    const Lease made = bank.lease({"a"});
    EXPECT_GT(made.held("a").generation, old.held("a").generation);
    EXPECT_NE(made.held("a").row, old.held("a").row);
    EXPECT_EQ(wrong(made, "a", lora(2, 2)), "");
  }
  bank.put("a", tensors_of(lora(3, 40)));
  bank.drop("a");
  EXPECT_EQ(wrong(old, "a", lora(1, 2)), "");
}

TEST(Bank, RowsAreUsedAgain) {
  Bank bank(slots(), Element::fp32);
  for (int value = 1; value < 200; ++value) bank.put("a", tensors_of(lora(static_cast<float>(value), 2)));
  EXPECT_LE(bank.capacity(), 4);
  for (int value = 0; value < 100; ++value) {
    const std::string name = "n" + std::to_string(value);
    bank.put(name, tensors_of(lora(1, 2)));
    bank.drop(name);
  }
  EXPECT_LE(bank.capacity(), 8);
}

TEST(Bank, ItGrowsByDoubling) {
  Bank bank(slots(), Element::fp32);
  std::vector<std::int64_t> capacities{bank.capacity()};
  for (int index = 0; index < 8; ++index) {
    bank.put("n" + std::to_string(index), tensors_of(lora(1, 2)));
    capacities.push_back(bank.capacity());
  }
  EXPECT_EQ(capacities, (std::vector<std::int64_t>{1, 1, 3, 3, 7, 7, 7, 7, 15}));
}

TEST(Bank, ALayoutChangesOnlyWithTheArrays) {
  Bank bank(slots(), Element::fp32);
  for (const char* name : {"a", "b", "c"}) bank.put(name, tensors_of(lora(1, 2)));
  bank.drop("c");
  const auto before = bank.lease({"a"}).arrays();
  bank.put("b", tensors_of(lora(2, 2)));
  EXPECT_EQ(bank.lease({"a"}).arrays(), before);
  bank.put("b", tensors_of(lora(2, 20)));
  const auto after = bank.lease({"a"}).arrays();
  EXPECT_NE(after, before);
  EXPECT_GT(after->layout, before->layout);
}

TEST(Bank, LabelsComeBack) {
  Bank bank(slots(), Element::fp32);
  RowTensors row = tensors_of(head(1, 2));
  row.labels = std::vector<std::string>{"no", "yes"};
  bank.put("a", row);
  bank.put("b", tensors_of(lora(1, 2)));
  bank.put_lazily("c", [row] { return row; });
  const Lease lease = bank.lease({"a", "b", "c"});
  EXPECT_EQ(lease.held("a").labels, row.labels);
  EXPECT_EQ(lease.held("b").labels, std::nullopt);
  EXPECT_EQ(lease.held("c").labels, row.labels);
}

TEST(Bank, UnknownNamesAreAllNamed) {
  Bank bank(slots(), Element::fp32);
  bank.put("a", tensors_of(lora(1, 2)));
  const Error error = error_of([&] { bank.lease({"x", "a", "y"}); });
  EXPECT_EQ(error.kind(), Kind::unknown_adapter);
  ASSERT_EQ(error.problems().size(), 2U);
  EXPECT_EQ(error.problems()[0].subject, "x");
  EXPECT_EQ(error.problems()[1].subject, "y");
  EXPECT_EQ(error.problems()[0].code, code::unknown_adapter);
  EXPECT_EQ(error.problems()[0].expected, "a bound name (a)");
  EXPECT_EQ(error_of([&] { bank.drop("x"); }).kind(), Kind::unknown_adapter);
  EXPECT_EQ(error_of([&] { bank.check({"a", "x"}); }).problems().size(), 1U);
  bank.check({"a"});
  EXPECT_EQ(wrong(bank.lease({"a"}), "a", lora(1, 2)), "");
}

TEST(Bank, TensorsThatDoNotFitAreAllNamedAndChangeNothing) {
  Bank bank(slots(), Element::fp32);
  bank.put("a", tensors_of(lora(1, 2)));
  const Adapter bad = {{"nowhere", {{1}, 1}},
                       {"t.scale_out", {{5}, 1}},
                       {"s.lora_A", {{3}, 1}},
                       {"head.code", {{}, 1, false}},
                       {"head.out", {{4, 1}, 1, true}}};
  const Error error = error_of([&] { bank.put("a", tensors_of(bad)); });
  EXPECT_EQ(error.kind(), Kind::adapter);
  std::map<std::string, std::string> codes;
  for (const Problem& problem : error.problems()) codes[problem.subject] = problem.code;
  EXPECT_EQ(codes, (std::map<std::string, std::string>{{"nowhere", code::no_slot},
                                                       {"t.scale_out", code::wrong_shape},
                                                       {"s.lora_A", code::wrong_shape},
                                                       {"head.code", code::wrong_dtype},
                                                       {"head.out", code::wrong_dtype}}));
  bank.put_lazily("b", loading(bad));
  EXPECT_EQ(error_of([&] { bank.lease({"b"}); }).kind(), Kind::adapter);
  EXPECT_EQ(wrong(bank.lease({"a"}), "a", lora(1, 2)), "");
}

TEST(Bank, SizesBeyondTheMemoryChangeNothing) {
  Bank bank(slots(), Element::fp32);
  bank.put("a", tensors_of(lora(1, 2)));
  RowTensors huge;
  const float value = 1;
  huge.tensors["s.lora_A"] = {{3, std::int64_t{1} << 60}, &value, 0};
  EXPECT_THROW(bank.put("a", huge), std::bad_alloc);
  EXPECT_THROW(bank.put("b", huge), std::bad_alloc);
  EXPECT_EQ(bank.names(), std::vector<std::string>{"a"});
  EXPECT_EQ(wrong(bank.lease({"a"}), "a", lora(1, 2)), "");
}

TEST(Bank, ANegativeNumberOfRowsIsRefused) {
  EXPECT_EQ(error_of([] { Bank(slots(), Element::fp32, -1); }).problems().front().subject, "rows");
}

TEST(Lease, GivesBackOnceWhereverItIsMoved) {
  Bank bank(slots(), Element::fp32, 1);
  bank.put("a", tensors_of(lora(1, 2)));
  bank.put("b", tensors_of(lora(2, 2)));
  Lease first = bank.lease({"a"});
  Lease second = std::move(first);
  Lease third = bank.lease({"a"});
  third = std::move(second);  // gives its own lease of the row back
  third = bank.lease({"a"});  // and that of the first
  EXPECT_EQ(wrong(third, "a", lora(1, 2)), "");
  Lease& same = third;
  third = std::move(same);
  EXPECT_EQ(third.held("a").row, 1);
  {
    const Lease last = std::move(third);
    EXPECT_EQ(wrong(last, "a", lora(1, 2)), "");
  }
  // a row that is still held, or given back twice, would leave "b" waiting or "a" overwritten
  Lease other = bank.lease({"b"});
  EXPECT_EQ(wrong(other, "b", lora(2, 2)), "");
  std::thread waiting([&] { EXPECT_EQ(wrong(bank.lease({"a"}), "a", lora(1, 2)), ""); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(wrong(other, "b", lora(2, 2)), "");
  other = Lease();
  waiting.join();
}

TEST(BankPaging, MoreAdaptersThanRows) {
  Bank bank(slots(), Element::fp32, 2);
  for (int value = 1; value < 8; ++value) {
    bank.put("n" + std::to_string(value), tensors_of(lora(static_cast<float>(value), value)));
  }
  EXPECT_EQ(bank.capacity(), 2);
  for (const int value : {1, 7, 3, 5, 1, 2, 6, 4}) {
    const std::string name = "n" + std::to_string(value);
    EXPECT_EQ(wrong(bank.lease({name}), name, lora(static_cast<float>(value), value)), "");
  }
  EXPECT_EQ(bank.capacity(), 2);
}

TEST(BankPaging, TheLeastRecentlyUsedGoes) {
  std::string loads;
  Bank bank(slots(), Element::fp32, 2);
  for (const char* name : {"a", "b", "c"}) {
    bank.put_lazily(name, [&loads, name] {
      loads += name;
      return tensors_of(lora(1, 2));
    });
  }
  std::vector<std::int64_t> rows;
  for (const char* name : {"a", "b", "a", "c", "a", "b"}) rows.push_back(bank.lease({name}).held(name).row);
  EXPECT_EQ(rows, (std::vector<std::int64_t>{1, 2, 1, 2, 1, 2}));
  EXPECT_EQ(loads, "abc");  // b was read again from host memory, not from its file
}

TEST(BankPaging, ABatchThatDoesNotFit) {
  Bank bank(slots(), Element::fp32, 2);
  for (const char* name : {"a", "b", "c"}) bank.put(name, tensors_of(lora(1, 2)));
  const Error error = error_of([&] { bank.lease({"a", "b", "c"}); });
  EXPECT_EQ(error.kind(), Kind::bank_full);
  EXPECT_EQ(error.problems().front().code, code::bank_full);
  EXPECT_EQ(error.problems().front().expected, "at most 2 (rows=2)");
  EXPECT_EQ(wrong(bank.lease({"a", "b"}), "b", lora(1, 2)), "");
}

TEST(BankPaging, AFailedLoadDisturbsNobody) {
  Bank bank(slots(), Element::fp32, 2);
  bank.put("a", tensors_of(lora(1, 2)));
  bool damaged = true;
  bank.put_lazily("bad", [&] {
    if (damaged) throw std::runtime_error("damaged");
    return tensors_of(lora(5, 3));
  });
  for (int again = 0; again < 3; ++again) {
    EXPECT_THROW(bank.lease({"a", "bad"}), std::runtime_error);
    EXPECT_EQ(wrong(bank.lease({"a"}), "a", lora(1, 2)), "");
  }
  damaged = false;
  EXPECT_EQ(wrong(bank.lease({"a", "bad"}), "bad", lora(5, 3)), "");
  bank.drop("bad");
  bank.put("b", tensors_of(lora(2, 2)));
  const Lease lease = bank.lease({"a", "b"});
  EXPECT_EQ(wrong(lease, "a", lora(1, 2)), "");
  EXPECT_EQ(wrong(lease, "b", lora(2, 2)), "");
}

TEST(Bank, ARowForgetsTheKindThatItHeld) {
  Bank bank(slots(), Element::fp32, 1);
  for (int value = 2; value < 40; ++value) {
    const Adapter adapter = of_family(value % kFamilies, static_cast<float>(value), 1 + value % 9);
    bank.put("a", tensors_of(adapter));
    const Lease lease = bank.lease({"a"});
    EXPECT_EQ(wrong(lease, "a", adapter), "");
    EXPECT_EQ(wrong_identity(lease), "");
  }
}

}  // namespace
}  // namespace adexport::core
