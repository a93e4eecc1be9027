// Bundles that generate: the logits at every position of prompts, and texts.
#include <algorithm>
#include <new>
#include <numeric>

#include "batch_rows.hpp"
#include "engine.hpp"
#include "errors.hpp"

namespace adexport::core {

namespace {

// What to say where the caches of a batch have no memory.
Error no_memory(const Manifest& manifest, std::int64_t rows, std::int64_t room, const char* mend) {
  const auto& layers = manifest.generation->caches;
  const double values = std::accumulate(layers.begin(), layers.end(), 0.0, [](double sum, const Cache& layer) {
    return sum + 2.0 * static_cast<double>(layer.kv_heads) * static_cast<double>(layer.size);
  });
  const double bytes =
      values * static_cast<double>(rows) * static_cast<double>(room) * static_cast<double>(size_of(manifest.dtype));
  return {Kind::request, "the batch does not fit",
          Problem{code::bad_input,
                  std::to_string(rows) + " rows of " + std::to_string(room) + " tokens",
                  std::to_string(static_cast<std::uint64_t>(bytes)) + " bytes of KV cache",
                  "what the memory holds",
                  {},
                  mend}};
}

}  // namespace

Outputs Engine::run_prompts(const Inputs& inputs, const Adapters& names) {
  const auto& generation = *manifest().generation;
  const auto& ids = inputs.named("input_ids");
  const auto lengths = prompt_lengths(inputs.named("attention_mask"));
  const auto batch = inputs.batch, seq = ids.shape.at(1);
  const bool same =
      std::all_of(names.begin(), names.end(), [&](const auto& name) { return name == names.front(); });
  const auto rows = same ? 1 : batch;
  BatchRows slots(manifest().slot_inputs, manifest().dtype, rows);
  for (std::int64_t row = 0; row < rows; ++row) {
    if (const auto& name = names[static_cast<std::size_t>(row)]) put_adapter(slots, row, *name);
  }
  std::unique_ptr<Caches> caches;
  try {
    caches = backend_->caches(batch, seq);
  } catch (const std::bad_alloc&) {
    throw no_memory(manifest(), batch, seq, "run fewer rows at once, or shorter ones");
  }
  const std::vector<std::int64_t> past(static_cast<std::size_t>(batch), 0);
  std::vector<std::int64_t> places(static_cast<std::size_t>(batch * seq));
  for (std::size_t at = 0; at < places.size(); ++at) places[at] = static_cast<std::int64_t>(at) % seq;
  const auto binding = backend_->binding();
  Outputs outputs;
  outputs.arrays.push_back(backend_->step({ids,
                                           {generation.lengths, Element::int64, {batch}, lengths.data()},
                                           {generation.past_lengths, Element::int64, {batch}, past.data()},
                                           {generation.logits_at, Element::int64, {batch, seq}, places.data()}},
                                          slots, *caches, 0, batch, *binding));
  outputs.labels.resize(static_cast<std::size_t>(batch));
  return outputs;
}

std::vector<Generated> Engine::generate(const std::vector<Prompt>& prompts, const Sampling& sampling,
                                        std::size_t max_batch, const OnToken& on_token) {
  return core::generate(*backend_, manifest(), bank_, prompts, sampling, max_batch, on_token);
}

void Engine::put_adapter(BatchRows& rows, std::int64_t row, const std::string& name) {
  rows.put(row, bank_.lease({name}), name);
}

}  // namespace adexport::core
