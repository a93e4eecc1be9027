// ONNX Runtime as a backend: a session, and bindings in which the banks stay bound from run to run.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend.hpp"
#include "ort/host_caches.hpp"
#include "ort/session.hpp"
#include "ort/values.hpp"

namespace adexport::core {

class OrtBackend final : public Backend {
 public:
  OrtBackend(OrtOpened opened, const Manifest& manifest);
  ~OrtBackend() override;

  [[nodiscard]] std::string provider() const override { return opened_.provider.ort_name; }
  std::vector<Array> run(const std::vector<Feed>& feeds, const Lease& lease) override;
  // Throws std::bad_alloc where the memory does not hold them.
  std::unique_ptr<Caches> caches(std::int64_t rows, std::int64_t room) override;
  std::unique_ptr<StepBinding> binding() override;
  Array step(const std::vector<Feed>& feeds, const BatchRows& slots, Caches& caches, std::int64_t first,
             std::int64_t last, StepBinding& binding) override;

 private:
  struct Resident;
  struct Bound;

  std::vector<Array> run_on_host(const std::vector<Feed>& feeds, const Lease& lease);
  std::vector<Array> run_on_device(const std::vector<Feed>& feeds, const Lease& lease);
  std::vector<Array> outputs_of(OrtBinding& binding, const std::vector<Feed>& feeds);
  std::shared_ptr<const Resident> resident(const std::shared_ptr<const BankArrays>& arrays);
  std::unique_ptr<Bound> take();
  void give_back(std::unique_ptr<Bound> bound);
  void bind_feeds(OrtBinding& binding, const std::vector<Feed>& feeds) const;
  void bind_caches(OrtBinding& binding, const HostCaches& caches, std::int64_t first, std::int64_t last) const;
  void bind_slots(OrtBinding& binding, const BatchRows& slots, std::int64_t first, std::int64_t last) const;

  OrtOpened opened_;
  OrtTensors tensors_;
  Element dtype_;
  bool on_device_;
  std::vector<std::string> slots_;    // names, in the order of the banks' arrays
  std::vector<std::string> outputs_;  // names, in the manifest's order
  std::string adapter_ids_;           // empty without
  std::optional<Generation> generation_;

  std::mutex lock_;  // of what follows
  std::vector<std::unique_ptr<Bound>> idle_;
  std::shared_ptr<const Resident> resident_;
};

}  // namespace adexport::core
