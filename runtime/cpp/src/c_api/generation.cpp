#include <utility>

#include "c_api/guard.hpp"
#include "c_api/handles.hpp"

using adexport::capi::Arguments;
using adexport::capi::guarded;
using adexport::capi::Sized;
using adexport::core::Generated;
using adexport::core::OnToken;
using adexport::core::Prompt;
using adexport::core::Sampling;

struct adexport_generated {
  std::vector<Generated> rows;
  std::vector<adexport_error> errors;  // of rows that failed, in their order
  std::vector<const adexport_error*> error_of;
};

namespace {

Prompt prompt_of(const adexport_prompt& given, std::size_t index, Arguments& arguments) {
  arguments.array(given.ids, given.count, "prompts[" + std::to_string(index) + "].ids");
  Prompt prompt;
  if (given.ids != nullptr) prompt.ids.assign(given.ids, given.ids + given.count);
  if (given.adapter != nullptr) prompt.adapter = given.adapter;
  return prompt;
}

Sampling sampling_of(const adexport_sampling* given, Arguments& arguments) {
  Sized<adexport_sampling> settings(given, ADEXPORT_SAMPLING_INIT, "sampling", arguments);
  settings.take(&adexport_sampling::max_new_tokens)
      .take(&adexport_sampling::temperature)
      .take(&adexport_sampling::top_k)
      .take(&adexport_sampling::top_p)
      .take(&adexport_sampling::repetition_penalty)
      .take(&adexport_sampling::has_seed)
      .take(&adexport_sampling::seed)
      .take(&adexport_sampling::eos_ids)
      .take(&adexport_sampling::eos_count)
      .take(&adexport_sampling::has_eos);
  Sampling sampling;
  sampling.max_new_tokens = settings->max_new_tokens;
  sampling.temperature = settings->temperature;
  if (settings->top_k != 0) sampling.top_k = settings->top_k;
  if (settings->top_p != 0) sampling.top_p = settings->top_p;
  sampling.repetition_penalty = settings->repetition_penalty;
  if (settings->has_seed != 0) sampling.seed = settings->seed;
  if (settings->has_eos != 0) {
    arguments.array(settings->eos_ids, settings->eos_count, "sampling.eos_ids");
    sampling.eos.emplace();
    if (settings->eos_ids != nullptr) {
      sampling.eos->assign(settings->eos_ids, settings->eos_ids + settings->eos_count);
    }
  }
  return sampling;
}

std::unique_ptr<adexport_generated> result_of(std::vector<Generated> rows) {
  auto result = std::make_unique<adexport_generated>();
  result->rows = std::move(rows);
  result->errors.reserve(result->rows.size());  // addresses stay
  for (const auto& row : result->rows) {
    if (row.error) result->errors.push_back(adexport_error{*row.error});
    result->error_of.push_back(row.error ? &result->errors.back() : nullptr);
  }
  return result;
}

const Generated* row_of(const adexport_generated* generated, std::size_t row) {
  return row < adexport_generated_count(generated) ? &generated->rows[row] : nullptr;
}

}  // namespace

adexport_error* adexport_engine_generate(adexport_engine* engine, const adexport_prompt* prompts,
                                         size_t prompt_count, const adexport_sampling* sampling, size_t max_batch,
                                         adexport_on_token on_token, void* user, adexport_generated** generated) {
  return guarded([&] {
    Arguments arguments("nothing is generated");
    arguments.needed(engine, "engine", "an engine");
    arguments.needed(generated, "generated", "where to write the texts");
    arguments.array(prompts, prompt_count, "prompts");
    arguments.check();
    std::vector<Prompt> rows;
    rows.reserve(prompt_count);
    for (std::size_t index = 0; index < prompt_count; ++index) {
      rows.push_back(prompt_of(prompts[index], index, arguments));
    }
    const auto settings = sampling_of(sampling, arguments);
    arguments.check();
    OnToken told;
    if (on_token != nullptr) {
      told = [&](std::size_t row, std::int64_t id) { return on_token(user, row, id) != 0; };
    }
    *generated = result_of(engine->engine->generate(rows, settings, max_batch, told)).release();
  });
}

size_t adexport_generated_count(const adexport_generated* generated) {
  return generated == nullptr ? 0 : generated->rows.size();
}

const int64_t* adexport_generated_ids(const adexport_generated* generated, size_t row, size_t* count) {
  const auto* found = row_of(generated, row);
  if (count != nullptr) *count = found == nullptr ? 0 : found->ids.size();
  return found == nullptr ? nullptr : found->ids.data();
}

adexport_reason adexport_generated_reason(const adexport_generated* generated, size_t row) {
  const auto* found = row_of(generated, row);
  return found == nullptr ? ADEXPORT_FAILED : static_cast<adexport_reason>(found->reason);
}

const adexport_error* adexport_generated_error(const adexport_generated* generated, size_t row) {
  return row_of(generated, row) == nullptr ? nullptr : generated->error_of[row];
}

void adexport_generated_free(adexport_generated* generated) {
  delete generated;
}
