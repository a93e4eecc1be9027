#include "ort/ort_backend.hpp"

#include <algorithm>
#include <utility>

#include "batch_rows.hpp"
#include "errors.hpp"
#include "ort/gathered.hpp"

namespace adexport::core {

namespace {

// A failure within a run is the caller's to know of; nothing of it stays bound.
[[noreturn]] void run_failed(const OrtFailure& failure) {
  throw Error(Kind::request, "the run failed", Problem{code::run_failed, "the graph", failure.what()});
}

}  // namespace

// Tensors over a bank's arrays of one layout, shared by all bindings. ONNX Runtime reads the arrays
// themselves: what the bank writes into them needs no binding.
struct OrtBackend::Resident {
  std::shared_ptr<const BankArrays> arrays;
  std::vector<OrtTensor> values;
};

// A binding, and the slot inputs that are bound in it.
struct OrtBackend::Bound {
  OrtBinding binding;
  std::shared_ptr<const Resident> resident;
};

OrtBackend::OrtBackend(OrtOpened opened, const Manifest& manifest)
    : opened_(std::move(opened)),
      tensors_(opened_.ort),
      dtype_(manifest.dtype),
      on_device_(!opened_.provider.cpu()),
      adapter_ids_(manifest.adapter_ids.value_or("")),
      generation_(manifest.generation) {
  for (const auto& slot : manifest.slot_inputs) slots_.push_back(slot.name);
  for (const auto& output : manifest.outputs) outputs_.push_back(output.name);
}

OrtBackend::~OrtBackend() = default;

std::vector<Array> OrtBackend::run(const std::vector<Feed>& feeds, const Lease& lease) {
  try {
    return on_device_ ? run_on_device(feeds, lease) : run_on_host(feeds, lease);
  } catch (const OrtFailure& failure) {
    run_failed(failure);
  }
}

std::vector<Array> OrtBackend::run_on_host(const std::vector<Feed>& feeds, const Lease& lease) {
  auto bound = take();  // not given back after an error
  if (!slots_.empty()) {
    auto values = resident(lease.arrays());
    if (bound->resident != values) {
      for (std::size_t at = 0; at < slots_.size(); ++at) {
        bound->binding.input(slots_[at], values->values[at].get());
      }
      bound->resident = std::move(values);
    }
  }
  auto arrays = outputs_of(bound->binding, feeds);
  give_back(std::move(bound));
  return arrays;
}

// A device's inputs are copied when they are bound: those rows that this run reads, and anew for each.
std::vector<Array> OrtBackend::run_on_device(const std::vector<Feed>& feeds, const Lease& lease) {
  auto bound = take();
  auto own = feeds;
  Gathered gathered;
  const auto ids =
      std::find_if(own.begin(), own.end(), [this](const Feed& feed) { return feed.name == adapter_ids_; });
  if (!slots_.empty() && ids != own.end()) {
    gathered = gather(*lease.arrays(), static_cast<const std::int64_t*>(ids->data),
                      static_cast<std::size_t>(ids->shape.front()), opened_.provider.whole);
    ids->data = gathered.ids.data();
  }
  for (std::size_t at = 0; at < gathered.arrays.size(); ++at) {
    const auto& array = gathered.arrays[at];
    bound->binding.input(slots_[at], tensors_.over(array.data.get(), array.element, array.shape).get());
  }
  auto arrays = outputs_of(bound->binding, own);
  give_back(std::move(bound));
  return arrays;
}

std::vector<Array> OrtBackend::outputs_of(OrtBinding& binding, const std::vector<Feed>& feeds) {
  bind_feeds(binding, feeds);
  for (const auto& name : outputs_) binding.output(name, tensors_.memory());
  binding.run(opened_.session.get(), on_device_);
  auto values = binding.outputs();
  binding.forget_outputs();
  std::vector<Array> arrays;
  arrays.reserve(values.size());
  for (std::size_t at = 0; at < values.size(); ++at) {
    arrays.push_back(tensors_.taken(outputs_[at], std::move(values[at])));
  }
  return arrays;
}

void OrtBackend::bind_feeds(OrtBinding& binding, const std::vector<Feed>& feeds) const {
  for (const auto& feed : feeds) {
    binding.input(feed.name, tensors_.over(feed.data, feed.element, feed.shape).get());
  }
}

std::shared_ptr<const OrtBackend::Resident> OrtBackend::resident(const std::shared_ptr<const BankArrays>& arrays) {
  std::vector<std::unique_ptr<Bound>> stale;  // freed behind the lock
  const std::scoped_lock guard(lock_);
  if (resident_ && resident_->arrays->layout == arrays->layout) return resident_;
  auto made = std::make_shared<Resident>();
  made->arrays = arrays;
  made->values.reserve(arrays->arrays.size());
  for (const auto& array : arrays->arrays) {
    made->values.push_back(tensors_.over(array.data.get(), array.element, array.shape));
  }
  if (!resident_ || resident_->arrays->layout < arrays->layout) {
    resident_ = made;
    stale.swap(idle_);  // they hold arrays that the bank has replaced
  }
  return made;
}

std::unique_ptr<OrtBackend::Bound> OrtBackend::take() {
  {
    const std::scoped_lock guard(lock_);
    if (!idle_.empty()) {
      auto bound = std::move(idle_.back());
      idle_.pop_back();
      return bound;
    }
  }
  return std::make_unique<Bound>(Bound{OrtBinding(opened_.ort, opened_.session.get()), nullptr});
}

void OrtBackend::give_back(std::unique_ptr<Bound> bound) {
  const std::scoped_lock guard(lock_);
  if (bound->resident == resident_ || on_device_) idle_.push_back(std::move(bound));
}

}  // namespace adexport::core
