#include "generation/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "errors.hpp"
#include "generation/choice.hpp"
#include "generation/exponential.hpp"

namespace adexport::core {

namespace {

// The place of the first of the largest; of the first NaN, if there is one.
std::size_t place_of_largest(const float* values, std::size_t count) {
  std::size_t best = 0;
  for (std::size_t at = 1; at < count && !std::isnan(values[best]); ++at) {
    if (!(values[at] <= values[best])) best = at;
  }
  return best;
}

// Refuse logits whose largest is `best`: NaN is the largest of all.
void check_best(float best) {
  if (std::isfinite(best)) return;
  const char* got = std::isnan(best) ? "NaN" : best > 0 ? "infinity" : "minus infinity for every token";
  throw Error(Kind::request, "no next token can be picked",
              Problem{code::not_finite, "logits", got, "finite numbers",
                      "weights of the row's adapter that are damaged or far too large",
                      "train or convert the adapter again"});
}

template <class Value>
std::vector<Value> at_places(const std::vector<Value>& values, const std::vector<std::size_t>& places) {
  std::vector<Value> made;
  made.reserve(places.size());
  for (const std::size_t place : places) made.push_back(values[place]);
  return made;
}

}  // namespace

Sampler::Sampler(Sampling settings, const std::vector<std::int64_t>& prompt)
    : settings_(std::move(settings)),
      random_(settings_.greedy() ? std::optional<std::uint64_t>(0) : settings_.seed) {
  if (penalizes()) seen_.insert(prompt.begin(), prompt.end());
}

std::int64_t Sampler::next(const float* logits, std::size_t count) {
  const auto token =
      static_cast<std::int64_t>(settings_.greedy() ? likeliest(logits, count) : drawn(logits, count));
  if (penalizes()) seen_.insert(token);
  return token;
}

std::size_t Sampler::likeliest(const float* logits, std::size_t count) {
  if (penalizes()) {
    penalize(logits, count);
    logits = scores_.data();
  }
  const std::size_t place = place_of_largest(logits, count);
  check_best(logits[place]);
  return place;
}

std::size_t Sampler::drawn(const float* logits, std::size_t count) {
  penalize(logits, count);
  const auto temperature = static_cast<float>(settings_.temperature);
  for (float& score : scores_) score /= temperature;
  const float best = scores_[place_of_largest(scores_.data(), count)];
  check_best(best);
  std::vector<std::size_t> ids;  // of what is kept, ascending; empty: all
  if (settings_.top_k && static_cast<std::uint64_t>(*settings_.top_k) < count) {
    ids = largest(scores_, static_cast<std::size_t>(*settings_.top_k));
    scores_ = at_places(scores_, ids);
  }
  for (float& score : scores_) score -= best;
  std::vector<float> nucleus_weights;
  const std::vector<float>* weights = &scores_;
  if (!settings_.top_p || *settings_.top_p == 1) {
    exponentiate(scores_.data(), scores_.size());
  } else {
    nucleus_weights = scores_;
    exponentiate(nucleus_weights.data(), nucleus_weights.size());
    const std::vector<std::size_t> kept = nucleus(scores_, nucleus_weights, *settings_.top_p);
    nucleus_weights = at_places(nucleus_weights, kept);
    ids = ids.empty() ? kept : at_places(ids, kept);
    weights = &nucleus_weights;
  }
  const std::size_t place = draw(*weights, random_.next());
  return ids.empty() ? place : ids[place];
}

// Copy the logits to the scores, and make those of seen tokens smaller.
void Sampler::penalize(const float* logits, std::size_t count) {
  scores_.assign(logits, logits + count);
  if (!penalizes()) return;
  const auto penalty = static_cast<float>(settings_.repetition_penalty);
  for (const std::int64_t id : seen_) {
    if (static_cast<std::uint64_t>(id) >= count) continue;  // an embedding may have more rows
    float& score = scores_[static_cast<std::size_t>(id)];
    score = score < 0 ? score * penalty : score / penalty;
  }
}

}  // namespace adexport::core
