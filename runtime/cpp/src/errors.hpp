// Everything the library refuses, as adexport_runtime.errors has it: kinds, codes, and all culprits.
#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "adexport/adexport.h"

namespace adexport::core {

enum class Kind {
  bundle = ADEXPORT_BUNDLE_ERROR,
  adapter = ADEXPORT_ADAPTER_ERROR,
  provider = ADEXPORT_PROVIDER_ERROR,
  request = ADEXPORT_REQUEST_ERROR,
  unknown_adapter = ADEXPORT_UNKNOWN_ADAPTER_ERROR,
  bank_full = ADEXPORT_BANK_FULL_ERROR,
  dependency = ADEXPORT_DEPENDENCY_ERROR,
  internal = ADEXPORT_INTERNAL_ERROR,
};

// The values of adexport_runtime.errors.Code; those that no C++ code raises are left out.
namespace code {
inline constexpr const char* absent = "absent";
inline constexpr const char* bad_config = "bad-config";
inline constexpr const char* bad_input = "bad-input";
inline constexpr const char* bad_manifest = "bad-manifest";
inline constexpr const char* bad_name = "bad-name";
inline constexpr const char* bank_full = "bank-full";
inline constexpr const char* closed = "closed";
inline constexpr const char* damaged = "damaged";
inline constexpr const char* duplicate_key = "duplicate-key";
inline constexpr const char* empty_tensor = "empty-tensor";
inline constexpr const char* half_missing = "half-missing";
inline constexpr const char* no_slot = "no-slot";
inline constexpr const char* not_finite = "not-finite";
inline constexpr const char* not_safetensors = "not-safetensors";
inline constexpr const char* overflow = "overflow";
inline constexpr const char* package_missing = "package-missing";
inline constexpr const char* provider_unavailable = "provider-unavailable";
inline constexpr const char* rank_above_max = "rank-above-max";
inline constexpr const char* run_failed = "run-failed";
inline constexpr const char* unknown_adapter = "unknown-adapter";
inline constexpr const char* unknown_site = "unknown-site";
inline constexpr const char* unsupported = "unsupported";
inline constexpr const char* version = "version";
inline constexpr const char* wrong_base = "wrong-base";
inline constexpr const char* wrong_dtype = "wrong-dtype";
inline constexpr const char* wrong_shape = "wrong-shape";
}  // namespace code

// One culprit: what it is, what was got and expected, the likely cause and the mend.
struct Problem {
  std::string code;
  std::string subject;
  std::string got = {};
  std::string expected = {};
  std::string cause = {};
  std::string mend = {};
};

class Error : public std::exception {
 public:
  Error(Kind kind, std::string headline, std::vector<Problem> problems);
  Error(Kind kind, std::string headline, Problem problem);

  [[nodiscard]] Kind kind() const noexcept { return kind_; }
  [[nodiscard]] const std::string& headline() const noexcept { return headline_; }
  [[nodiscard]] const std::vector<Problem>& problems() const noexcept { return problems_; }
  // All culprits in one paragraph, worded as str() of the Python error.
  [[nodiscard]] const char* what() const noexcept override { return message_.c_str(); }

 private:
  Kind kind_;
  std::string headline_;
  std::vector<Problem> problems_;
  std::string message_;
};

}  // namespace adexport::core
