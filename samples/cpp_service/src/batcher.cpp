#include "batcher.hpp"

#include <algorithm>

#include "refused.hpp"

Batcher::Batcher(adexport::Engine& engine, Limits limits)
    : engine_(engine), limits_(limits), thread_([this] { serve(); }) {}

Batcher::~Batcher() {
  close();
}

std::future<std::vector<Answer>> Batcher::submit(std::vector<Row> rows) {
  const std::lock_guard<std::mutex> lock(state_);
  if (closed_) {
    throw Refused(503, adexport::Kind::request, "not taken",
                  {{"closed", "the service", "it is ending", "", "", ""}});
  }
  if (pending_ >= limits_.requests) {
    throw Refused(503, adexport::Kind::request, "not taken",
                  {{"session-full", "the service", std::to_string(pending_) + " requests under way",
                    "at most " + std::to_string(limits_.requests), "", "ask again in a moment"}});
  }
  waiting_ += rows.size();
  jobs_.push_back({std::move(rows), {}});
  ++pending_;
  changed_.notify_all();
  return jobs_.back().answers.get_future();
}

void Batcher::close() {
  {
    const std::lock_guard<std::mutex> lock(state_);
    closed_ = true;
    changed_.notify_all();
  }
  if (thread_.joinable()) {
    thread_.join();
  }
}

void Batcher::serve() {
  for (std::vector<Job> batch = gather(); !batch.empty(); batch = gather()) {
    std::vector<Job*> jobs;
    for (Job& job : batch) {
      jobs.push_back(&job);
    }
    answer(jobs);
    const std::lock_guard<std::mutex> lock(state_);
    pending_ -= batch.size();
  }
  alive_ = false;
}

// The next jobs, whole ones that fit together; none: the batcher is closed.
std::vector<Batcher::Job> Batcher::gather() {
  std::unique_lock<std::mutex> lock(state_);
  changed_.wait(lock, [this] { return !jobs_.empty() || closed_; });
  changed_.wait_for(lock, limits_.wait, [this] { return waiting_ >= limits_.rows || closed_; });
  std::vector<Job> batch;
  std::size_t taken = 0;
  while (!jobs_.empty() && (batch.empty() || taken + jobs_.front().rows.size() <= limits_.rows)) {
    taken += jobs_.front().rows.size();
    batch.push_back(std::move(jobs_.front()));
    jobs_.pop_front();
  }
  waiting_ -= taken;
  return batch;
}

void Batcher::answer(std::vector<Job*> jobs) {
  std::vector<const Row*> rows;
  for (const Job* job : jobs) {
    for (const Row& row : job->rows) {
      rows.push_back(&row);
    }
  }
  std::vector<Answer> answers;
  try {
    answers = run(rows);
  } catch (...) {
    if (jobs.size() == 1) {
      jobs.front()->answers.set_exception(std::current_exception());
    } else {  // one request's fault is not the others'
      for (Job* job : jobs) {
        answer({job});
      }
    }
    return;
  }
  auto next = std::make_move_iterator(answers.begin());
  for (Job* job : jobs) {
    const auto end = next + static_cast<std::ptrdiff_t>(job->rows.size());
    job->answers.set_value(std::vector<Answer>(next, end));
    next = end;
  }
}

std::vector<Answer> Batcher::run(const std::vector<const Row*>& rows) {
  std::size_t width = 0;
  for (const Row* row : rows) {
    width = std::max(width, row->ids.size());
  }
  std::vector<std::int64_t> ids(rows.size() * width, 0);
  std::vector<std::int64_t> mask(rows.size() * width, 0);
  std::vector<std::optional<std::string>> adapters;
  for (std::size_t number = 0; number < rows.size(); ++number) {
    const auto at = static_cast<std::ptrdiff_t>(number * width);
    const std::vector<std::int64_t>& own = rows[number]->ids;
    std::copy(own.begin(), own.end(), ids.begin() + at);
    std::fill_n(mask.begin() + at, own.size(), 1);
    adapters.push_back(rows[number]->tenant);
  }
  ++batches_;
  const std::vector<std::int64_t> shape = {static_cast<std::int64_t>(rows.size()),
                                           static_cast<std::int64_t>(width)};
  const adexport::Outputs outputs =
      engine_.run({{"input_ids", ids, shape}, {"attention_mask", mask, shape}}, adapters);
  const adexport::Output logits = outputs["logits"];
  const auto widest = static_cast<std::size_t>(logits.shape().back());
  std::vector<Answer> answers;
  for (std::size_t number = 0; number < rows.size(); ++number) {
    Answer answer{rows[number]->tenant, {}};
    const std::vector<std::string> labels = outputs.labels(number);
    for (std::size_t label = 0; label < labels.size(); ++label) {
      answer.logits.emplace_back(labels[label], logits[number * widest + label]);
    }
    answers.push_back(std::move(answer));
  }
  return answers;
}
