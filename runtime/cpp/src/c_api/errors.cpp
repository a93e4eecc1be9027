#include "c_api/guard.hpp"

using adexport::core::Error;
using adexport::core::Kind;
using adexport::core::Problem;

namespace adexport::capi {

namespace {

Error fault_of(const char* headline, const char* got) {
  return {Kind::internal, headline, Problem{core::code::run_failed, "adexport", got}};
}

// Made when the library loads, so that there is something to say where no memory is left.
adexport_error& reserved() {
  static adexport_error error{fault_of("there is no memory", "std::bad_alloc")};
  return error;
}

const adexport_error* const made_early = &reserved();

}  // namespace

adexport_error* no_memory() noexcept {
  return &reserved();
}

adexport_error* error_of(const Error& error) noexcept {
  try {
    return new adexport_error{error};
  } catch (...) {
    return no_memory();
  }
}

adexport_error* fault(const char* what) noexcept {
  try {
    return new adexport_error{fault_of("a fault of the library", what)};
  } catch (...) {
    return no_memory();
  }
}

}  // namespace adexport::capi

adexport_error_kind adexport_error_get_kind(const adexport_error* error) {
  return error == nullptr ? ADEXPORT_INTERNAL_ERROR : static_cast<adexport_error_kind>(error->error.kind());
}

const char* adexport_error_message(const adexport_error* error) {
  return error == nullptr ? "" : error->error.what();
}

size_t adexport_error_problem_count(const adexport_error* error) {
  return error == nullptr ? 0 : error->error.problems().size();
}

adexport_problem adexport_error_get_problem(const adexport_error* error, size_t index) {
  if (index >= adexport_error_problem_count(error)) return {"", "", "", "", "", ""};
  const Problem& problem = error->error.problems()[index];
  return {problem.code.c_str(),     problem.subject.c_str(), problem.got.c_str(),
          problem.expected.c_str(), problem.cause.c_str(),   problem.mend.c_str()};
}

void adexport_error_free(adexport_error* error) {
  if (error != adexport::capi::made_early) delete error;
}
