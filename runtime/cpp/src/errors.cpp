#include "errors.hpp"

#include <map>
#include <tuple>
#include <utility>

namespace adexport::core {
namespace {

// Culprits that differ only in their subject share one sentence.
struct Group {
  const Problem* problem = nullptr;
  std::vector<const std::string*> subjects;
};

std::vector<Group> grouped(const std::vector<Problem>& problems) {
  using Key = std::tuple<std::string_view, std::string_view, std::string_view, std::string_view, std::string_view>;
  std::map<Key, std::size_t> seen;
  std::vector<Group> groups;
  for (const Problem& problem : problems) {
    const Key key{problem.code, problem.got, problem.expected, problem.cause, problem.mend};
    const auto [place, fresh] = seen.emplace(key, groups.size());
    if (fresh) groups.push_back({&problem, {}});
    groups[place->second].subjects.push_back(&problem.subject);
  }
  return groups;
}

std::string sentence(const Group& group) {
  const Problem& problem = *group.problem;
  std::string text = group.subjects.size() > 1 ? std::to_string(group.subjects.size()) + " × " : "";
  for (std::size_t index = 0; index < group.subjects.size(); ++index) {
    if (index > 0) text += ", ";
    text += *group.subjects[index];
  }
  if (!problem.got.empty()) text += ": got " + problem.got;
  if (!problem.expected.empty()) text += (problem.got.empty() ? ": expected " : ", expected ") + problem.expected;
  text += " [" + problem.code + "].";
  if (!problem.cause.empty()) text += " Likely cause: " + problem.cause + ".";
  if (!problem.mend.empty()) text += " To mend: " + problem.mend + ".";
  return text;
}

// C strings end at a zero byte, and what a damaged file names can hold one.
void escape_zeros(std::string& text) {
  for (std::size_t at = text.find('\0'); at != std::string::npos; at = text.find('\0', at)) {
    text.replace(at, 1, "\\x00");
  }
}

}  // namespace

Error::Error(Kind kind, std::string headline, std::vector<Problem> problems)
    : kind_(kind), headline_(std::move(headline)), problems_(std::move(problems)) {
  escape_zeros(headline_);
  for (Problem& problem : problems_) {
    for (std::string* text : {&problem.subject, &problem.got, &problem.expected, &problem.cause, &problem.mend}) {
      escape_zeros(*text);
    }
  }
  message_ = headline_ + ":";
  for (const Group& group : grouped(problems_)) message_ += " " + sentence(group);
}

Error::Error(Kind kind, std::string headline, Problem problem)
    : Error(kind, std::move(headline), std::vector<Problem>{std::move(problem)}) {}

}  // namespace adexport::core
