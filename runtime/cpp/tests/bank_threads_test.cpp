// Many threads lease rows and read them while others bind, bind anew and unbind.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "bank.hpp"
#include "bank_support.hpp"
#include "batch_rows.hpp"
#include "errors.hpp"

namespace adexport::core {
namespace {

using namespace testing;

// What was bound under a name, one content for each value, so that a row tells which it holds.
class Contents {
 public:
  explicit Contents(std::uint32_t seed) : random_(seed) {}

  Adapter next(const std::string& name) {
    const std::lock_guard guard(mutex_);
    const float value = ++last_;
    const Adapter adapter = lora(value, static_cast<std::int64_t>(1 + random_() % 30), "st");
    made_[{name, value}] = adapter;
    return adapter;
  }

  // The adapter of a name whose entries are all `value`; none if that was never bound under it.
  Adapter of(const std::string& name, float value) {
    const std::lock_guard guard(mutex_);
    auto found = made_.find({name, value});
    return found == made_.end() ? Adapter{} : found->second;
  }

 private:
  std::mutex mutex_;
  std::mt19937 random_;
  std::map<std::pair<std::string, float>, Adapter> made_;
  float last_ = 0;
};

float first_value(const BankArrays& arrays, std::int64_t row) {
  return static_cast<float>(row_of(arrays.arrays[0], row).front());
}

const std::vector<std::string> kNames = {"a", "b", "c", "d", "e"};

void disturb(std::int64_t rows, std::size_t per_lease) {
  Bank bank(slots(), Element::fp32, rows);
  Contents contents(1);
  for (const std::string& name : kNames) bank.put(name, tensors_of(contents.next(name)));
  std::atomic<bool> done{false};
  std::atomic<int> failures{0}, read{0};
  // one generation is one content, whoever sees it
  std::mutex seen_mutex;
  std::map<std::uint64_t, float> seen;

  const auto reader = [&](std::uint32_t seed) {
    std::mt19937 random(seed);
    BatchRows own(slots(), Element::fp32, 2);
    while (!done) {
      std::set<std::string> wanted;
      while (wanted.size() < per_lease) wanted.insert(kNames[random() % kNames.size()]);
      try {
        const Lease lease = bank.lease(wanted);
        for (int again = 0; again < 2; ++again) {  // it must not change while it is held
          for (const std::string& name : wanted) {
            const Lease::Held& held = lease.held(name);
            const float value = first_value(*lease.arrays(), held.row);
            const Adapter adapter = contents.of(name, value);
            if (adapter.empty() || !wrong(lease, name, adapter).empty()) ++failures;
            const std::lock_guard guard(seen_mutex);
            if (seen.emplace(held.generation, value).first->second != value) ++failures;
          }
          if (!wrong_identity(lease).empty()) ++failures;
        }
        const std::string& name = *wanted.begin();
        own.put(1, lease, name);
        const Adapter adapter = contents.of(name, first_value(own.arrays(), 1));
        if (adapter.empty() || !wrong_in_row(own.arrays(), 1, adapter).empty()) ++failures;
        ++read;
      } catch (const Error& error) {
        if (error.kind() != Kind::unknown_adapter) ++failures;
      }
    }
  };
  std::vector<std::thread> readers;
  for (std::uint32_t seed = 0; seed < 8; ++seed) readers.emplace_back(reader, seed);

  std::mt19937 random(99);
  for (int step = 0; step < 300 || read < 200; ++step) {
    const std::string& name = kNames[random() % kNames.size()];
    switch (random() % 6) {
      case 0:
        try {
          bank.drop(name);
        } catch (const Error& error) {
          EXPECT_EQ(error.kind(), Kind::unknown_adapter);
        }
        break;
      case 1:
        bank.put_lazily(name, loading(contents.next(name)));
        break;
      default:
        bank.put(name, tensors_of(contents.next(name)));
    }
  }
  done = true;
  for (std::thread& thread : readers) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_GE(read, 200);
}

TEST(BankThreads, NobodySeesAHalfWrittenRow) {
  disturb(0, 3);
}

TEST(BankThreads, NobodySeesAHalfWrittenRowWhilePagesMove) {
  disturb(3, 2);
}

TEST(BankThreads, ARowForEachPageIsEnough) {
  disturb(1, 1);
}

}  // namespace
}  // namespace adexport::core
