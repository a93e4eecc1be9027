#include "generation/generate.hpp"

#include <algorithm>
#include <limits>
#include <memory>
#include <set>
#include <utility>

#include "errors.hpp"
#include "generation/batch.hpp"

namespace adexport::core {

namespace {

constexpr std::size_t kMaxBatch = 8;
// Of a step, so that texts under way need not wait long.
constexpr std::int64_t kPromptTokens = 512;

void check_generates(const Manifest& manifest) {
  if (manifest.generation) return;
  const bool causal = manifest.task == "text-generation";
  throw Error(
      Kind::bundle, "the bundle does not generate",
      Problem{code::unsupported, manifest.base_name,
              causal ? "a graph for prompts only, without a cache" : manifest.task, "text-generation, with a cache",
              causal ? "an earlier adexport built it, or no cache is known for the model's attention" : "",
              "adexport build MODEL --task text-generation, and see its notes"});
}

void check_slots(const Manifest& manifest, const std::vector<Prompt>& prompts) {
  const bool asked =
      std::any_of(prompts.begin(), prompts.end(), [](const Prompt& prompt) { return !!prompt.adapter; });
  if (!manifest.slots.empty() || !asked) return;
  throw Error(Kind::request, "the adapters do not fit",
              Problem{code::bad_input, "adapters", "an adapter for a bundle without slots", "", "",
                      "adexport build BUNDLE --slots lora"});
}

// The highest id that the model knows.
std::int64_t last_id(const Manifest& manifest) {
  for (const Input& input : manifest.inputs) {
    if (input.name == "input_ids" && input.high) return *input.high;
  }
  return std::numeric_limits<std::int64_t>::max();
}

void check_prompts(const Manifest& manifest, const std::vector<Prompt>& prompts, std::int64_t new_tokens) {
  const std::int64_t last = last_id(manifest);
  const std::int64_t room = manifest.max_positions.value_or(std::numeric_limits<std::int64_t>::max());
  std::vector<Problem> problems;
  for (std::size_t row = 0; row < prompts.size(); ++row) {
    const std::vector<std::int64_t>& ids = prompts[row].ids;
    const std::string subject = prompts.size() == 1 ? "prompt" : "prompt " + std::to_string(row);
    if (ids.empty()) {
      problems.push_back({code::bad_input, subject, "an empty prompt", "token ids"});
      continue;
    }
    const auto [least, most] = std::minmax_element(ids.begin(), ids.end());
    if (*least < 0 || *most > last) {
      problems.push_back({code::bad_input, subject,
                          "ids from " + std::to_string(*least) + " to " + std::to_string(*most),
                          "ids from 0 to " + std::to_string(last), "ids of another tokenizer"});
    }
    const auto tokens = static_cast<std::int64_t>(ids.size());
    if (new_tokens > room - tokens) {  // their sum might be too large a number
      problems.push_back({code::bad_input, subject,
                          std::to_string(tokens) + " tokens, and " + std::to_string(new_tokens) + " new ones",
                          "at most " + std::to_string(room) + " together", "",
                          "a shorter prompt, or a smaller max_new_tokens"});
    }
  }
  if (problems.empty()) return;
  const char* headline = prompts.size() == 1 ? "the prompt does not fit" : "the prompts do not fit";
  throw Error(Kind::request, headline, std::move(problems));
}

}  // namespace

std::vector<Generated> generate(Backend& backend, const Manifest& manifest, Bank& bank,
                                const std::vector<Prompt>& prompts, const Sampling& sampling, std::size_t max_batch,
                                const OnToken& on_token) {
  check_generates(manifest);
  check_slots(manifest, prompts);
  check(sampling);
  check_prompts(manifest, prompts, sampling.max_new_tokens);
  std::set<std::string> names;
  for (const Prompt& prompt : prompts) {
    if (prompt.adapter) names.insert(*prompt.adapter);
  }
  bank.check(names);
  if (prompts.empty()) return {};

  std::vector<std::unique_ptr<Request>> requests;
  std::int64_t room = 0;
  for (std::size_t row = 0; row < prompts.size(); ++row) {
    Sampling own = sampling;
    if (own.seed) *own.seed += row;  // beyond the last seed it begins at 0
    Request::OnToken told;
    if (on_token) told = [&on_token, row](std::int64_t id) { return on_token(row, id); };
    requests.push_back(std::make_unique<Request>(prompts[row].ids, prompts[row].adapter, own,
                                                 sampling.eos.value_or(manifest.generation->eos_ids),
                                                 std::move(told)));
    room = std::max(room, static_cast<std::int64_t>(prompts[row].ids.size()) + sampling.max_new_tokens);
  }
  const std::size_t rows = std::min(max_batch == 0 ? kMaxBatch : max_batch, prompts.size());
  Batch batch(backend, manifest, bank, static_cast<std::int64_t>(rows), room, kPromptTokens);
  for (const auto& request : requests) batch.add(*request);
  while (batch.step()) {
  }
  std::vector<Generated> results;
  results.reserve(requests.size());
  for (const auto& request : requests) results.push_back(request->result());
  return results;
}

}  // namespace adexport::core
