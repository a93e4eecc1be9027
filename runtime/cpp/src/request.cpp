#include "request.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "errors.hpp"
#include "input_values.hpp"

namespace adexport::core {

namespace {

constexpr const char* headline = "the inputs do not fit";
constexpr const char* ids_name = "input_ids";
constexpr const char* mask_name = "attention_mask";

std::string shown(const Size& size) {
  const auto* number = std::get_if<std::int64_t>(&size);
  return number != nullptr ? std::to_string(*number) : std::get<std::string>(size);
}

template <class Sizes, class Show>
std::string listed(const Sizes& sizes, Show show) {
  std::string text;
  for (const auto& size : sizes) text += (text.empty() ? "" : ", ") + show(size);
  return "[" + text + "]";
}

std::string wanted(const Input& spec) {
  return std::string(name_of(spec.dtype)) + " " + listed(spec.shape, shown);
}

std::string rows_text(const std::vector<std::int64_t>& rows) {
  std::string text;
  for (const auto row : rows) text += (text.empty() ? "" : ", ") + std::to_string(row);
  return text;
}

// Ragged sizes as the inputs so far have them, and which one said so.
using Known = std::map<std::string, std::pair<std::int64_t, std::string>>;

class Checker {
 public:
  explicit Checker(const Manifest& manifest) : manifest_(manifest) {}

  Inputs check(const std::vector<Feed>& given) {
    find(given);
    for (std::size_t at = 0; at < found_.size(); ++at) check_declared(manifest_.inputs[at], found_[at]);
    if (problems_.empty()) check_tokens();
    if (!problems_.empty()) throw Error(Kind::request, headline, std::move(problems_));
    Inputs ready;
    for (std::size_t at = 0; at < found_.size(); ++at) add(ready, manifest_.inputs[at], found_[at]);
    ready.batch = ready.feeds.front().shape.front();
    return ready;
  }

 private:
  void refuse(const std::string& name, std::string got, std::string expected, std::string cause = {},
              std::string mend = {}) {
    problems_.push_back(
        Problem{code::bad_input, name, std::move(got), std::move(expected), std::move(cause), std::move(mend)});
  }

  // Put what is given beside what is declared.
  void find(const std::vector<Feed>& given) {
    found_.assign(manifest_.inputs.size(), nullptr);
    for (const auto& feed : given) {
      const auto spec = std::find_if(manifest_.inputs.begin(), manifest_.inputs.end(),
                                     [&](const Input& declared) { return declared.name == feed.name; });
      if (spec == manifest_.inputs.end()) {
        std::string names;
        for (const auto& declared : manifest_.inputs) names += (names.empty() ? "" : ", ") + declared.name;
        refuse(feed.name, "an unknown input", names);
        continue;
      }
      auto& place = found_[static_cast<std::size_t>(spec - manifest_.inputs.begin())];
      if (place != nullptr) refuse(feed.name, "an input that is given twice", "it once");
      place = &feed;
    }
  }

  void check_declared(const Input& spec, const Feed*& feed) {
    if (feed == nullptr) {
      if (!spec.fill) refuse(spec.name, "nothing", wanted(spec));
      return;
    }
    if (!fits_type(spec.dtype, feed->element)) {
      refuse(spec.name, numpy_name(feed->element), wanted(spec));
      feed = nullptr;
      return;
    }
    if (check_shape(spec, *feed)) check_range(spec, *feed);
  }

  // Whether the array has elements that may be looked at.
  bool check_shape(const Input& spec, const Feed& feed) {
    const auto got = "shape " + listed(feed.shape, [](std::int64_t size) { return std::to_string(size); });
    const bool empty =
        std::any_of(feed.shape.begin(), feed.shape.end(), [](std::int64_t size) { return size < 1; });
    std::size_t bytes = size_of(feed.element);
    bool fits = feed.shape.size() == spec.shape.size() && !empty;
    for (std::size_t at = 0; fits && at < feed.shape.size(); ++at) {
      fits = !__builtin_mul_overflow(bytes, static_cast<std::size_t>(feed.shape[at]), &bytes);
    }
    if (!fits) {
      refuse(spec.name, got, wanted(spec));
      return false;
    }
    if (feed.data == nullptr) {
      refuse(spec.name, "no address", wanted(spec));
      return false;
    }
    const auto before = problems_.size();
    for (std::size_t at = 0; at < spec.shape.size(); ++at) check_size(spec, at, feed, got);
    return problems_.size() == before;
  }

  void check_size(const Input& spec, std::size_t at, const Feed& feed, const std::string& got) {
    const auto size = feed.shape[at];
    std::int64_t expected = 0;
    std::string because;
    if (const auto* fixed = std::get_if<std::int64_t>(&spec.shape[at])) {
      expected = *fixed;
    } else {
      const auto& known = sizes_.try_emplace(std::get<std::string>(spec.shape[at]), size, spec.name).first->second;
      expected = known.first;
      because = " as " + known.second + " has";
    }
    if (size != expected) {
      refuse(spec.name, got, shown(spec.shape[at]) + " = " + std::to_string(expected) + because);
    }
  }

  void check_range(const Input& spec, const Feed& feed) {
    const auto outside = out_of_range(spec, feed);
    if (!outside) return;
    refuse(spec.name, "values from " + outside->low + " to " + outside->high,
           "values from " + outside->lowest + " to " + outside->highest,
           spec.name == ids_name ? "ids of another tokenizer" : "");
  }

  [[nodiscard]] const Feed* found(const std::string& name) const {
    for (const auto* feed : found_) {
      if (feed != nullptr && feed->name == name) return feed;
    }
    return nullptr;
  }

  void check_tokens() {
    const auto* ids = found(ids_name);
    if (ids != nullptr && manifest_.max_positions && ids->shape.size() > 1 &&
        ids->shape[1] > *manifest_.max_positions) {
      refuse(ids_name, std::to_string(ids->shape[1]) + " tokens",
             "at most " + std::to_string(*manifest_.max_positions) + ", the positions of " + manifest_.base_name,
             {}, "truncate the text");
    }
    const auto* mask = found(mask_name);
    if (mask == nullptr || mask->shape.size() != 2) return;
    const auto empty = empty_rows(*mask);
    if (!empty.empty()) {
      refuse(mask_name, "only zeros in row " + rows_text(empty), "at least one token in every row");
    }
  }

  void add(Inputs& ready, const Input& spec, const Feed* feed) {
    if (feed != nullptr && feed->element == spec.dtype) {
      ready.feeds.push_back(*feed);
      return;
    }
    Feed made{spec.name, spec.dtype, {}, nullptr};
    if (feed != nullptr) {
      made.shape = feed->shape;
      ready.copies.push_back(converted(*feed, spec.dtype));
    } else {
      made.shape = filled_shape(spec);
      ready.copies.push_back(filled(*spec.fill, spec.dtype, made.shape));
    }
    made.data = ready.copies.back().get();
    ready.feeds.push_back(std::move(made));
  }

  std::vector<std::int64_t> filled_shape(const Input& spec) {
    std::vector<std::int64_t> shape;
    for (const auto& size : spec.shape) {
      const auto* fixed = std::get_if<std::int64_t>(&size);
      const auto known = fixed == nullptr ? sizes_.find(std::get<std::string>(size)) : sizes_.end();
      if (fixed == nullptr && known == sizes_.end()) {
        throw Error(Kind::request, headline,
                    Problem{code::bad_input, spec.name, "nothing", wanted(spec),
                            "no other input tells its size " + shown(size), "give it"});
      }
      shape.push_back(fixed != nullptr ? *fixed : known->second.first);
    }
    return shape;
  }

  const Manifest& manifest_;
  std::vector<const Feed*> found_;  // by declared input; null where it is left out
  Known sizes_;
  std::vector<Problem> problems_;
};

}  // namespace

const Feed& Inputs::named(const std::string& name) const {
  const auto found = std::find_if(feeds.begin(), feeds.end(), [&](const Feed& feed) { return feed.name == name; });
  if (found == feeds.end()) {
    throw Error(Kind::internal, headline, Problem{code::bad_input, name, "an input that the bundle does not have"});
  }
  return *found;
}

Inputs check_inputs(const std::vector<Feed>& given, const Manifest& manifest) {
  return Checker(manifest).check(given);
}

Adapters check_adapters(const Adapters& given, std::int64_t batch, const Manifest& manifest) {
  Adapters rows = given;
  if (given.size() < 2) {
    rows.assign(static_cast<std::size_t>(batch), given.empty() ? std::nullopt : given.front());
  }
  if (static_cast<std::int64_t>(rows.size()) != batch) {
    throw Error(Kind::request, "the adapters do not fit",
                Problem{code::bad_input, "adapters",
                        std::to_string(rows.size()) + " for " + std::to_string(batch) + " rows",
                        "one name (or none, the base) for all rows, or " + std::to_string(batch) + " of them"});
  }
  if (manifest.slots.empty() && std::any_of(rows.begin(), rows.end(), [](const auto& row) { return row; })) {
    throw Error(Kind::request, "the adapters do not fit",
                Problem{code::bad_input,
                        "adapters",
                        "an adapter for a bundle without slots",
                        {},
                        {},
                        "adexport build BUNDLE --slots lora"});
  }
  return rows;
}

std::vector<std::int64_t> prompt_lengths(const Feed& mask) {
  auto lengths = row_sums(mask);
  const auto wrong = rows_with_holes(mask, lengths);
  if (!wrong.empty()) {
    throw Error(Kind::request, headline,
                Problem{code::bad_input,
                        mask_name,
                        "padding before tokens in row " + rows_text(wrong),
                        "padding behind the tokens",
                        {},
                        "pad on the right"});
  }
  return lengths;
}

std::int64_t check_size(const std::string& name, std::int64_t value) {
  if (value < 1) {
    throw Error(Kind::request, name + " does not fit",
                Problem{code::bad_input, name, std::to_string(value), "a whole number, at least 1"});
  }
  return value;
}

}  // namespace adexport::core
