// Random sequences of what a bank does, against what a map would hold.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <random>

#include "bank.hpp"
#include "bank_support.hpp"
#include "errors.hpp"

namespace adexport::core {
namespace {

using namespace testing;

// A bank against a map, with leases held across whatever happens meanwhile.
class Machine {
 public:
  Machine(std::uint32_t seed, std::int64_t rows)
      : random_(seed), rows_(rows), bank_(slots(), Element::fp32, rows) {}

  void step() {
    const std::string name(1, static_cast<char>('a' + below(5)));
    switch (below(6)) {
      case 0:
      case 1:
        model_[name] = next();
        bank_.put(name, tensors_of(model_[name]));
        break;
      case 2:
        model_[name] = next();
        bank_.put_lazily(name, loading(model_[name]));
        break;
      case 3:
        if (model_.erase(name) != 0) {
          bank_.drop(name);
        } else {
          EXPECT_THROW(bank_.drop(name), Error);
        }
        break;
      case 4:
        lease();
        break;
      default:
        if (!open_.empty()) open_.erase(open_.begin() + below(static_cast<int>(open_.size())));
    }
    check();
  }

 private:
  struct Open {
    Lease lease;
    std::map<std::string, Adapter> expected;
  };

  int below(int end) { return std::uniform_int_distribution<int>(0, end - 1)(random_); }

  Adapter next() { return of_family(below(kFamilies), ++value_, 1 + below(20)); }

  void lease() {
    std::set<std::string> wanted;
    std::map<std::string, Adapter> expected;
    for (int count = below(4); count > 0; --count) wanted.insert(std::string(1, static_cast<char>('a' + below(5))));
    bool bound = true;
    for (const std::string& name : wanted) {
      auto found = model_.find(name);
      bound = bound && found != model_.end();
      if (found != model_.end()) expected.insert(*found);
    }
    if (!bound) {
      EXPECT_EQ(error_of([&] { bank_.lease(wanted); }).kind(), Kind::unknown_adapter);
    } else if (rows_ > 0 && static_cast<std::int64_t>(wanted.size()) > rows_) {
      EXPECT_EQ(error_of([&] { bank_.lease(wanted); }).kind(), Kind::bank_full);
    } else if (rows_ == 0 || open_.empty()) {  // else it might wait for a lease that this thread holds
      open_.push_back({bank_.lease(wanted), expected});
    }
  }

  void check() {
    for (const Open& open : open_) {
      for (const auto& [name, adapter] : open.expected) ASSERT_EQ(wrong(open.lease, name, adapter), "");
      ASSERT_EQ(wrong_identity(open.lease), "");
    }
    std::vector<std::string> names;
    for (const auto& [name, adapter] : model_) names.push_back(name);
    ASSERT_EQ(bank_.names(), names);
    if (rows_ > 0) {
      ASSERT_EQ(bank_.capacity(), rows_);
    }
  }

  std::mt19937 random_;
  std::int64_t rows_;
  Bank bank_;
  std::map<std::string, Adapter> model_;
  std::vector<Open> open_;
  float value_ = 0;
};

TEST(Bank, RandomSequencesAgreeWithAMap) {
  for (std::uint32_t seed = 0; seed < 90; ++seed) {
    SCOPED_TRACE(seed);
    Machine machine(seed, std::array<std::int64_t, 3>{0, 2, 3}[seed % 3]);
    for (int step = 0; step < 60; ++step) {
      machine.step();
      if (::testing::Test::HasFailure()) return;
    }
  }
}

// What a tenant pays for is as wide as the widest of those that are resident, in steps of eight.
TEST(Bank, NoSizeIsLargerThanNeeded) {
  std::mt19937 random(5);
  Bank bank(slots(), Element::fp32);
  std::map<std::string, Adapter> model;
  for (int step = 0; step < 300; ++step) {
    const std::string name(1, static_cast<char>('a' + random() % 5));
    if (random() % 3 == 0 && model.erase(name) != 0) {
      bank.drop(name);
    } else {
      model[name] = of_family(static_cast<int>(random() % kFamilies), static_cast<float>(step + 1),
                              static_cast<std::int64_t>(1 + random() % 20));
      bank.put(name, tensors_of(model[name]));
    }
    Sizes widest;
    for (const auto& [bound, adapter] : model) {
      const Lease lease = bank.lease({bound});
      for (const auto& [symbol, size] : lease.held(bound).sizes) widest[symbol] = std::max(widest[symbol], size);
    }
    widest = rounded(widest);
    const Lease lease = bank.lease({});
    for (std::size_t slot = 0; slot < slots().size(); ++slot) {
      for (std::size_t axis = 1; axis < slots()[slot].shape.size(); ++axis) {
        const auto* symbol = std::get_if<std::string>(&slots()[slot].shape[axis]);
        if (symbol == nullptr) continue;
        ASSERT_EQ(size_in(lease, slot, axis), widest[*symbol]) << *symbol;
      }
    }
  }
}

}  // namespace
}  // namespace adexport::core
