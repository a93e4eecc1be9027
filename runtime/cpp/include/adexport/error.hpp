// Errors of the C interface as exceptions: see adexport.hpp.
#ifndef ADEXPORT_ERROR_HPP
#define ADEXPORT_ERROR_HPP

#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adexport/adexport.h"

namespace adexport {

/// The class of an error.
enum class Kind {
  bundle = ADEXPORT_BUNDLE_ERROR,                    ///< a bundle is absent, damaged, or of another version
  adapter = ADEXPORT_ADAPTER_ERROR,                  ///< an adapter is refused; what was bound still serves
  provider = ADEXPORT_PROVIDER_ERROR,                ///< the provider is not to be had
  request = ADEXPORT_REQUEST_ERROR,                  ///< the arguments of a call do not fit
  unknown_adapter = ADEXPORT_UNKNOWN_ADAPTER_ERROR,  ///< a row asks for an adapter that is not bound
  bank_full = ADEXPORT_BANK_FULL_ERROR,              ///< more different adapters than the bank has rows
  dependency = ADEXPORT_DEPENDENCY_ERROR,            ///< libonnxruntime is not to be had
  internal = ADEXPORT_INTERNAL_ERROR,                ///< a fault of the library, or no memory
};

/// One culprit: what it is, what was got and expected, the likely cause and the mend; all but the first two
/// may be empty.
struct Problem {
  std::string code;  ///< as "wrong-shape"
  std::string subject;
  std::string got;
  std::string expected;
  std::string cause;
  std::string mend;
};

/// What the library refuses; `what()` names all culprits in one paragraph.
class Error : public std::runtime_error {
 public:
  Error(Kind kind, const std::string& message, std::vector<Problem> problems)
      : std::runtime_error(message), kind_(kind), problems_(std::move(problems)) {}

  /// A copy of an error of the C interface.
  explicit Error(const adexport_error* error)
      : std::runtime_error(adexport_error_message(error)),
        kind_(static_cast<Kind>(adexport_error_get_kind(error))) {
    for (std::size_t index = 0; index < adexport_error_problem_count(error); ++index) {
      const adexport_problem problem = adexport_error_get_problem(error, index);
      problems_.push_back(
          {problem.code, problem.subject, problem.got, problem.expected, problem.cause, problem.mend});
    }
  }

  [[nodiscard]] Kind kind() const noexcept { return kind_; }
  /// Every culprit.
  [[nodiscard]] const std::vector<Problem>& problems() const noexcept { return problems_; }
  /// Whether a culprit has this code.
  [[nodiscard]] bool has(std::string_view code) const noexcept {
    for (const Problem& problem : problems_) {
      if (problem.code == code) return true;
    }
    return false;
  }

 private:
  Kind kind_;
  std::vector<Problem> problems_;
};

namespace detail {

template <class T, void (*release)(T*)>
struct Release {
  void operator()(T* object) const noexcept { release(object); }
};
template <class T, void (*release)(T*)>
using Owned = std::unique_ptr<T, Release<T, release>>;

inline void check(adexport_error* error) {
  if (error == nullptr) return;
  const Owned<adexport_error, adexport_error_free> owned(error);
  throw Error(error);
}

/// Texts as the C interface takes them. What holds a zero byte would be cut there: it is refused.
class Texts {
 public:
  Texts(Kind kind, const char* code, const char* headline) : kind_(kind), code_(code), headline_(headline) {}

  const char* of(const std::string& text, const std::string& subject) {
    if (const std::size_t zero = text.find('\0'); zero != std::string::npos) {
      problems_.push_back({code_, subject, "a zero byte at " + std::to_string(zero), "a text without", "", ""});
    }
    return text.c_str();
  }
  const char* of(const std::optional<std::string>& text, const std::string& subject) {
    return text ? of(*text, subject) : nullptr;
  }
  /// Throws Error, naming all that was refused.
  void check() const {
    if (problems_.empty()) return;
    std::string message = std::string(headline_) + ":";
    for (const Problem& problem : problems_) {
      message +=
          " " + problem.subject + ": got " + problem.got + ", expected " + problem.expected + " [" + code_ + "].";
    }
    throw Error(kind_, message, problems_);
  }

 private:
  Kind kind_;
  const char* code_;
  const char* headline_;
  std::vector<Problem> problems_;
};

inline std::string place_in(const char* list, std::size_t index) {
  return std::string(list) + "[" + std::to_string(index) + "]";
}

}  // namespace detail

}  // namespace adexport

#endif  // ADEXPORT_ERROR_HPP
