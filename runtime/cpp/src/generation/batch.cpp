#include "generation/batch.hpp"

#include <algorithm>
#include <iomanip>
#include <new>
#include <sstream>
#include <string>
#include <utility>

#include "errors.hpp"

namespace adexport::core {

namespace {

// How much of a batch of prompts may be padding.
constexpr double kPadding = 1.25;

using Ids = std::vector<std::int64_t>;

std::int64_t length(const Ids& ids) {
  return static_cast<std::int64_t>(ids.size());
}

// The exception that is being handled as an error of the library's.
Error current_error(const char* headline, const std::string& subject) {
  const auto made = [&](const char* got) {
    return Error(Kind::request, headline, Problem{code::run_failed, subject, got});
  };
  try {
    throw;
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return made(error.what());
  } catch (...) {
    return made("an exception that says nothing of itself");
  }
}

Error no_memory(const Manifest& manifest, std::int64_t rows, std::int64_t room) {
  auto bytes = static_cast<double>(size_of(manifest.dtype)) * static_cast<double>(rows) * static_cast<double>(room);
  double values = 0;
  for (const Cache& cache : manifest.generation->caches) {
    values += 2.0 * static_cast<double>(cache.kv_heads) * static_cast<double>(cache.size);
  }
  bytes *= values;  // may be more than 64 bits count
  std::ostringstream shown;
  shown << std::fixed << std::setprecision(0) << bytes;
  return Error(Kind::request, "the batch does not fit",
               Problem{code::bad_input, std::to_string(rows) + " rows of " + std::to_string(room) + " tokens",
                       shown.str() + " bytes of KV cache", "what the memory holds", "",
                       "fewer rows (max_batch), or shorter ones (max_new_tokens)"});
}

}  // namespace

Batch::Batch(Backend& backend, const Manifest& manifest, Bank& bank, std::int64_t rows, std::int64_t room,
             std::int64_t prompt_tokens)
    : backend_(backend),
      generation_(*manifest.generation),
      bank_(bank),
      prompt_tokens_(prompt_tokens),
      seats_(static_cast<std::size_t>(rows), nullptr) {
  try {
    caches_ = backend.caches(rows, room);  // first: it fails where too much is asked for
    slots_ = std::make_unique<BatchRows>(manifest.slot_inputs, manifest.dtype, rows);
  } catch (const std::bad_alloc&) {
    throw no_memory(manifest, rows, room);
  }
  decoding_ = backend.binding();
}

bool Batch::step() {
  take_in();
  decode();
  leave();
  return !waiting_.empty() || std::any_of(seats_.begin(), seats_.end(), [](auto* seat) { return seat != nullptr; });
}

namespace {

void sample(Request& request, const float* logits, std::size_t vocabulary) {
  std::int64_t token = 0;
  try {
    token = request.sampler.next(logits, vocabulary);
  } catch (const Error& error) {
    return request.end(Reason::failed, error);
  }
  request.take(token);
}

}  // namespace

// Run the prompts that wait, or the next piece of a long one.
void Batch::take_in() {
  std::vector<std::size_t> seats;
  const auto partial = std::find_if(seats_.begin(), seats_.end(),
                                    [](const Request* seat) { return seat != nullptr && !seat->prefilled(); });
  if (partial != seats_.end()) {
    seats.push_back(static_cast<std::size_t>(partial - seats_.begin()));
  } else {
    seats = admit();
  }
  if (seats.empty()) return;
  Ids lengths;
  for (const std::size_t seat : seats) {
    lengths.push_back(std::min(length(seats_[seat]->ids) - seats_[seat]->past, prompt_tokens_));
  }
  const std::int64_t width = *std::max_element(lengths.begin(), lengths.end());
  Ids ids(seats.size() * static_cast<std::size_t>(width), 0);
  for (std::size_t row = 0; row < seats.size(); ++row) {
    const Request& request = *seats_[seats[row]];
    std::copy_n(request.ids.begin() + request.past, lengths[row],
                ids.begin() + static_cast<std::ptrdiff_t>(row) * width);
  }
  const std::unique_ptr<StepBinding> binding = backend_.binding();
  const std::optional<Logits> logits = run(*binding, seats.front(), ids, lengths);
  if (!logits) return;
  for (std::size_t row = 0; row < seats.size(); ++row) {
    Request& request = *seats_[seats[row]];
    request.past += lengths[row];
    if (request.prefilled()) sample(request, logits->row(row), logits->vocabulary);
  }
}

// Give seats side by side to the next texts whose prompts go well together.
std::vector<std::size_t> Batch::admit() {
  std::size_t seat = 0;
  while (seat < seats_.size() && seats_[seat] != nullptr) ++seat;  // the first free span
  std::vector<std::size_t> seats;
  std::int64_t longest = 0, total = 0;
  while (!waiting_.empty() && seat < seats_.size() && seats_[seat] == nullptr) {
    const std::int64_t tokens = length(waiting_.front()->ids);
    const std::int64_t wide = std::max(longest, tokens);
    const std::int64_t padded = wide * static_cast<std::int64_t>(seats.size() + 1);
    const double most = kPadding * static_cast<double>(total + tokens);
    if (!seats.empty() && (padded > prompt_tokens_ || static_cast<double>(padded) > most)) break;
    if (!seat_next(seat)) continue;
    seats.push_back(seat++);
    longest = wide;
    total += tokens;
  }
  return seats;
}

// Let the next text have a seat; false if its adapter has no row, which ends that text.
bool Batch::seat_next(std::size_t seat) {
  Request& request = *waiting_.front();
  waiting_.pop_front();
  try {
    if (request.adapter) {
      slots_->put(static_cast<std::int64_t>(seat), bank_.lease({*request.adapter}), *request.adapter);
    }
  } catch (...) {  // the request sits nowhere yet: nobody else would end it
    request.end(Reason::failed, current_error("no row for the adapter", *request.adapter));
    return false;
  }
  seats_[seat] = &request;
  return true;
}

// One token of every text whose prompt is in the cache.
void Batch::decode() {
  std::vector<std::size_t> decoding;
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    const Request* request = seats_[seat];
    if (request != nullptr && request->prefilled() && !request->ended()) decoding.push_back(seat);
  }
  if (decoding.empty()) return;
  Ids ids(decoding.back() + 1, 0);
  for (const std::size_t seat : decoding) ids[seat] = seats_[seat]->last();
  const std::optional<Logits> logits = run(*decoding_, 0, ids, Ids(ids.size(), 1));
  if (!logits) return;
  for (const std::size_t seat : decoding) {
    ++seats_[seat]->past;
    sample(*seats_[seat], logits->row(seat), logits->vocabulary);
  }
}

// Run new tokens of the seats from `first` on; none after a failure, which ends their texts.
//
// A seat in the span that nobody decodes on writes one token behind its past, where the next token of
// whoever sits there will overwrite it.
std::optional<Batch::Logits> Batch::run(StepBinding& binding, std::size_t first, const Ids& ids,
                                        const Ids& lengths) {
  try {
    return run_graph(binding, first, ids, lengths);
  } catch (...) {  // whatever a provider throws
    const Error failure = current_error("the batch failed", "the graph");
    for (std::size_t row = 0; row < lengths.size(); ++row) {
      if (Request* request = seats_[first + row]) request->end(Reason::failed, failure);
    }
  }
  return std::nullopt;
}

Batch::Logits Batch::run_graph(StepBinding& binding, std::size_t first, const Ids& ids, const Ids& lengths) {
  const std::int64_t rows = length(lengths);
  Ids pasts, wanted;
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    const Request* request = seats_[first + row];
    pasts.push_back(request == nullptr ? 0 : request->past);
    wanted.push_back(lengths[row] - 1);
  }
  const std::vector<Feed> feeds = {
      {"input_ids", Element::int64, {rows, length(ids) / rows}, ids.data()},
      {generation_.lengths, Element::int64, {rows}, lengths.data()},
      {generation_.past_lengths, Element::int64, {rows}, pasts.data()},
      {generation_.logits_at, Element::int64, {rows, 1}, wanted.data()},
  };
  const auto start = static_cast<std::int64_t>(first);
  Array logits = backend_.step(feeds, *slots_, *caches_, start, start + rows, binding);
  const bool fits = logits.shape.size() == 3 && logits.shape[0] == rows && logits.shape[1] == 1 &&
                    logits.shape[2] > 0 &&
                    rows * logits.shape[2] == static_cast<std::int64_t>(logits.values.size());
  if (!fits) {
    throw Error(Kind::bundle, "the batch failed",
                Problem{code::wrong_shape, logits.name, "logits of another shape", "[rows, 1, vocabulary]"});
  }
  return {std::move(logits.values), static_cast<std::size_t>(logits.shape[2])};
}

// Free the seats of texts that have ended, and close the gaps.
void Batch::leave() {
  for (std::size_t seat = 0; seat < seats_.size(); ++seat) {
    const Request* request = seats_[seat];
    if (request == nullptr || !request->ended()) continue;
    seats_[seat] = nullptr;
    if (request->adapter) slots_->clear(static_cast<std::int64_t>(seat));
  }
  close_gaps();
}

void Batch::close_gaps() {
  std::size_t gap = 0;
  for (std::size_t seat = seats_.size(); seat-- > 0;) {
    if (seats_[seat] == nullptr) continue;
    while (gap < seat && seats_[gap] != nullptr) ++gap;
    if (gap >= seat) return;
    const auto source = static_cast<std::int64_t>(seat), target = static_cast<std::int64_t>(gap);
    caches_->move(source, target, seats_[seat]->past);
    slots_->move(source, target);
    seats_[gap] = std::exchange(seats_[seat], nullptr);
  }
}

}  // namespace adexport::core
