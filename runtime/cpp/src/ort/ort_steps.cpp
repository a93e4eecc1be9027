// Steps of batches that generate: what is bound is the address of the rows, so caches are read and written
// where they lie.
#include <utility>

#include "batch_rows.hpp"
#include "errors.hpp"
#include "ort/ort_backend.hpp"

namespace adexport::core {

namespace {

constexpr const char* logits = "logits";

struct OrtStep final : StepBinding {
  OrtStep(const OrtLibrary& ort, OrtSession* session) : binding(ort, session) {}

  OrtBinding binding;
  // what is bound
  const HostCaches* caches = nullptr;
  const BatchRows* slots = nullptr;
  std::uint64_t layout = 0;
  std::int64_t cache_first = 0, cache_last = 0, slot_first = 0, slot_last = 0;
};

const Feed& feed_named(const std::vector<Feed>& feeds, const std::string& name) {
  for (const auto& feed : feeds) {
    if (feed.name == name) return feed;
  }
  throw Error(Kind::internal, "the step is not complete", Problem{code::bad_input, name, "no such input"});
}

}  // namespace

std::unique_ptr<Caches> OrtBackend::caches(std::int64_t rows, std::int64_t room) {
  return std::make_unique<HostCaches>(generation_.value().caches, dtype_, rows, room);
}

std::unique_ptr<StepBinding> OrtBackend::binding() {
  return std::make_unique<OrtStep>(opened_.ort, opened_.session.get());
}

Array OrtBackend::step(const std::vector<Feed>& feeds, const BatchRows& slots, Caches& caches, std::int64_t first,
                       std::int64_t last, StepBinding& binding) {
  auto& step = dynamic_cast<OrtStep&>(binding);
  auto& held = dynamic_cast<HostCaches&>(caches);
  try {
    if (on_device_) {
      // what a text before left there, NaN too, must not reach a sum
      const auto* past = static_cast<const std::int64_t*>(feed_named(feeds, generation_->past_lengths).data);
      for (auto row = first; row < last; ++row) {
        if (past[row - first] == 0) held.clear(row);
      }
    }
    // a device's inputs are copied when they are bound
    if (on_device_ || step.caches != &held || step.cache_first != first || step.cache_last != last) {
      step.caches = nullptr;
      bind_caches(step.binding, held, first, last);
      step.caches = &held;
      step.cache_first = first;
      step.cache_last = last;
    }
    if (on_device_ || step.slots != &slots || step.layout != slots.arrays().layout || step.slot_first != first ||
        step.slot_last != last) {
      step.slots = nullptr;
      bind_slots(step.binding, slots, first, last);
      step.slots = &slots;
      step.layout = slots.arrays().layout;
      step.slot_first = first;
      step.slot_last = last;
    }
    bind_feeds(step.binding, feeds);
    step.binding.output(logits, tensors_.memory());
    step.binding.run(opened_.session.get(), on_device_);
    return tensors_.taken(logits, std::move(step.binding.outputs().back()));  // bound behind the caches
  } catch (const OrtFailure& failure) {
    throw Error(Kind::request, "the batch failed", Problem{code::run_failed, "the graph", failure.what()});
  }
}

void OrtBackend::bind_caches(OrtBinding& binding, const HostCaches& caches, std::int64_t first,
                             std::int64_t last) const {
  auto array = caches.arrays().begin();
  for (const auto& layer : generation_->caches) {
    const std::pair<const std::string*, const std::string*> names[] = {{&layer.past_key, &layer.present_key},
                                                                       {&layer.past_value, &layer.present_value}};
    for (const auto& [past, present] : names) {
      const auto value = tensors_.rows(*array++, first, last);
      binding.input(*past, value.get());
      binding.output(*present, value.get());
    }
  }
}

// Rows that are one for all the batch are bound so.
void OrtBackend::bind_slots(OrtBinding& binding, const BatchRows& slots, std::int64_t first,
                            std::int64_t last) const {
  const auto end = std::min(last, slots.size());
  for (std::size_t at = 0; at < slots_.size(); ++at) {
    binding.input(slots_[at], tensors_.rows(slots.arrays().arrays[at], std::min(first, end), end).get());
  }
}

}  // namespace adexport::core
