// What the service itself refuses, in the form of adexport's errors.
#pragma once

#include <adexport/adexport.hpp>
#include <string>
#include <utility>
#include <vector>

class Refused : public adexport::Error {
 public:
  // `status` is HTTP's.
  Refused(int status, adexport::Kind kind, const std::string& headline, std::vector<adexport::Problem> problems)
      : adexport::Error(kind, message(headline, problems), problems), status_(status) {}

  [[nodiscard]] int status() const noexcept { return status_; }

 private:
  static std::string message(std::string text, const std::vector<adexport::Problem>& problems) {
    text += ":";
    for (const adexport::Problem& problem : problems) {
      text += " " + problem.subject + ":";
      text += problem.got.empty() ? "" : " got " + problem.got;
      text += problem.got.empty() || problem.expected.empty() ? "" : ",";
      text += problem.expected.empty() ? "" : " expected " + problem.expected;
      text += " [" + problem.code + "].";
    }
    return text;
  }

  int status_;
};
