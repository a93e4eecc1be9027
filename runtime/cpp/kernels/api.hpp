// ONNX Runtime's C interface, with exceptions in place of statuses.
#pragma once

#include <onnxruntime_c_api.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>

#include "call.hpp"

namespace adexport::kernels {

// A failure that ONNX Runtime reported.
class Failure : public std::runtime_error {
 public:
  Failure(OrtErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  [[nodiscard]] OrtErrorCode code() const { return code_; }

 private:
  OrtErrorCode code_;
};

inline void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::unique_ptr<OrtStatus, void (*)(OrtStatus*)> owned(status, api.ReleaseStatus);
  throw Failure(api.GetErrorCode(status), api.GetErrorMessage(status));
}

// Run what may throw, and give its failure back as a status: no exception may leave this library.
template <class Work>
OrtStatus* guarded(const OrtApi& api, const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Misfit& misfit) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, misfit.what());
  } catch (const Failure& failure) {
    return api.CreateStatus(failure.code(), failure.what());
  } catch (const std::exception& other) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, other.what());
  } catch (...) {
    return api.CreateStatus(ORT_RUNTIME_EXCEPTION, "an unknown failure");
  }
}

}  // namespace adexport::kernels
