// What every function of the C interface does: no exception leaves it, and what it is given is checked.
#pragma once

#include <cstddef>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "adexport/adexport.h"
#include "errors.hpp"

struct adexport_error {
  adexport::core::Error error;
};

namespace adexport::capi {

// An error that needs no memory.
adexport_error* no_memory() noexcept;
adexport_error* error_of(const adexport::core::Error& error) noexcept;
adexport_error* fault(const char* what) noexcept;

// Run `work`; null, or what it threw.
template <class Work>
adexport_error* guarded(Work&& work) noexcept {
  try {
    std::forward<Work>(work)();
    return nullptr;
  } catch (const adexport::core::Error& error) {
    return error_of(error);
  } catch (const std::bad_alloc&) {
    return no_memory();
  } catch (const std::exception& error) {
    return fault(error.what());
  } catch (...) {
    return fault("something that is no exception");
  }
}

// Collects what is wrong with the arguments of a call.
class Arguments {
 public:
  explicit Arguments(const char* headline) : headline_(headline) {}

  void refuse(std::string subject, std::string got, std::string expected, std::string cause = {}) {
    problems_.push_back(adexport::core::Problem{adexport::core::code::bad_input, std::move(subject), std::move(got),
                                                std::move(expected), std::move(cause)});
  }
  void needed(const void* pointer, const std::string& subject, const char* expected) {
    if (pointer == nullptr) refuse(subject, "NULL", expected);
  }
  // An array of `count` elements.
  void array(const void* pointer, std::size_t count, const std::string& subject) {
    if (pointer == nullptr && count != 0) refuse(subject, "NULL", std::to_string(count) + " elements");
  }
  void check() {
    if (!problems_.empty()) {
      throw adexport::core::Error(adexport::core::Kind::request, headline_, std::move(problems_));
    }
  }

 private:
  const char* headline_;
  std::vector<adexport::core::Problem> problems_;
};

// A caller's structure that begins with its size, as this version of the library knows it.
template <class Structure>
class Sized {
 public:
  // `defaults`: what fields hold that the caller's version does not have. `given` may be null.
  Sized(const Structure* given, const Structure& defaults, const char* name, Arguments& arguments)
      : known_(defaults) {
    if (given == nullptr) return;
    size_ = given->size;
    if (size_ < sizeof(std::size_t) || size_ > largest) {
      arguments.refuse(std::string(name) + ".size", std::to_string(size_), "what its INIT macro sets",
                       "a structure that was not initialized");
      size_ = 0;
      return;
    }
    given_ = reinterpret_cast<const unsigned char*>(given);
    for (std::size_t at = sizeof(Structure); at < size_; ++at) {
      if (given_[at] == 0) continue;
      arguments.refuse(name, "fields that are not known",
                       std::to_string(sizeof(Structure)) + " bytes, or zeros beyond",
                       "a header that is newer than the library");
      return;
    }
  }

  // Take a field, if the caller's version has it whole.
  template <class Field>
  Sized& take(Field Structure::*field) {
    const auto offset = static_cast<std::size_t>(reinterpret_cast<const unsigned char*>(&(known_.*field)) -
                                                 reinterpret_cast<const unsigned char*>(&known_));
    if (given_ != nullptr && offset + sizeof(Field) <= size_) {
      std::memcpy(&(known_.*field), given_ + offset, sizeof(Field));
    }
    return *this;
  }

  const Structure* operator->() const { return &known_; }

 private:
  static constexpr std::size_t largest = 1 << 16;  // no later version has so many fields

  Structure known_;
  const unsigned char* given_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace adexport::capi
