// Requests that come together run together: a thread gathers their rows into one mixed batch.
#pragma once

#include <adexport/adexport.hpp>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <future>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// Token ids, and the tenant whose adapter reads them; none is the base.
struct Row {
  std::vector<std::int64_t> ids;
  std::optional<std::string> tenant;
};

// A row's logit for each of its own labels.
struct Answer {
  std::optional<std::string> tenant;
  std::vector<std::pair<std::string, float>> logits;
};

// One thread that runs the engine; any thread may submit.
class Batcher {
 public:
  struct Limits {
    std::size_t rows = 32;                                              // of a batch
    std::size_t requests = 64;                                          // under way
    std::chrono::duration<double> wait = std::chrono::milliseconds(3);  // for others to join
  };

  Batcher(adexport::Engine& engine, Limits limits);
  ~Batcher();
  Batcher(const Batcher&) = delete;
  Batcher& operator=(const Batcher&) = delete;

  // Have rows answered, at most as many as a batch takes. Throws Refused: too many requests are under way,
  // or the batcher is closed.
  std::future<std::vector<Answer>> submit(std::vector<Row> rows);
  // Answer what was submitted, take no more, and end the thread.
  void close();
  [[nodiscard]] bool alive() const { return alive_; }
  // Requests under way.
  [[nodiscard]] std::size_t pending() const { return pending_; }
  // Runs of the engine.
  [[nodiscard]] std::uint64_t batches() const { return batches_; }
  [[nodiscard]] const Limits& limits() const { return limits_; }

 private:
  struct Job {
    std::vector<Row> rows;
    std::promise<std::vector<Answer>> answers;
  };

  void serve();
  std::vector<Job> gather();
  void answer(std::vector<Job*> jobs);
  std::vector<Answer> run(const std::vector<const Row*>& rows);

  adexport::Engine& engine_;
  const Limits limits_;
  std::mutex state_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;
  std::size_t waiting_ = 0;  // rows of jobs_
  std::atomic<std::size_t> pending_{0};
  bool closed_ = false;
  std::atomic<bool> alive_{true};
  std::atomic<std::uint64_t> batches_{0};
  std::thread thread_;
};
