#include <cstring>
#include <utility>

#include "c_api/guard.hpp"
#include "c_api/handles.hpp"

using adexport::capi::Arguments;
using adexport::capi::guarded;
using adexport::core::Adapters;
using adexport::core::Array;
using adexport::core::Element;
using adexport::core::Feed;

namespace {

// An enumeration that comes from outside may hold any number.
int number_of(const adexport_dtype& dtype) {
  int number = 0;
  static_assert(sizeof number == sizeof dtype);
  std::memcpy(&number, &dtype, sizeof number);
  return number;
}

std::optional<Element> element_of(int dtype) {
  switch (dtype) {
    case ADEXPORT_FLOAT32:
      return Element::fp32;
    case ADEXPORT_INT64:
      return Element::int64;
    case ADEXPORT_INT32:
      return Element::int32;
    default:
      return std::nullopt;
  }
}

Feed feed_of(const adexport_tensor& given, std::size_t index, Arguments& arguments) {
  const auto subject = "inputs[" + std::to_string(index) + "]";
  Feed feed;
  arguments.needed(given.name, subject + ".name", "a name");
  if (given.name != nullptr) feed.name = given.name;
  const auto element = element_of(number_of(given.dtype));
  if (!element) {
    arguments.refuse(subject + ".dtype", std::to_string(number_of(given.dtype)),
                     "ADEXPORT_FLOAT32, ADEXPORT_INT64 or ADEXPORT_INT32");
  }
  feed.element = element.value_or(Element::int64);
  arguments.array(given.shape, given.rank, subject + ".shape");
  if (given.shape != nullptr) feed.shape.assign(given.shape, given.shape + given.rank);
  feed.data = given.data;
  return feed;
}

const Array* array_at(const adexport_outputs* outputs, std::size_t index) {
  return index < adexport_outputs_count(outputs) ? &outputs->outputs.arrays[index] : nullptr;
}

}  // namespace

adexport_error* adexport_engine_run(adexport_engine* engine, const adexport_tensor* inputs, size_t input_count,
                                    const char* const* adapters, size_t adapter_count, adexport_outputs** outputs) {
  return guarded([&] {
    Arguments arguments("the run does not begin");
    arguments.needed(engine, "engine", "an engine");
    arguments.needed(outputs, "outputs", "where to write the outputs");
    arguments.array(inputs, input_count, "inputs");
    arguments.array(adapters, adapter_count, "adapters");
    arguments.check();
    std::vector<Feed> feeds;
    feeds.reserve(input_count);
    for (std::size_t index = 0; index < input_count; ++index) {
      feeds.push_back(feed_of(inputs[index], index, arguments));
    }
    arguments.check();
    Adapters names(adapter_count);
    for (std::size_t index = 0; index < adapter_count; ++index) {
      if (adapters[index] != nullptr) names[index] = adapters[index];
    }
    *outputs = std::make_unique<adexport_outputs>(adexport_outputs{engine->engine->run(feeds, names)}).release();
  });
}

size_t adexport_outputs_count(const adexport_outputs* outputs) {
  return outputs == nullptr ? 0 : outputs->outputs.arrays.size();
}

adexport_tensor adexport_outputs_get(const adexport_outputs* outputs, size_t index) {
  const auto* array = array_at(outputs, index);
  if (array == nullptr) return {nullptr, ADEXPORT_FLOAT32, nullptr, nullptr, 0};
  return {array->name.c_str(), ADEXPORT_FLOAT32, array->values.data(), array->shape.data(), array->shape.size()};
}

size_t adexport_outputs_label_count(const adexport_outputs* outputs, size_t row) {
  return outputs != nullptr && row < outputs->outputs.labels.size() ? outputs->outputs.labels[row].size() : 0;
}

const char* adexport_outputs_label(const adexport_outputs* outputs, size_t row, size_t index) {
  return index < adexport_outputs_label_count(outputs, row) ? outputs->outputs.labels[row][index].c_str() : nullptr;
}

void adexport_outputs_free(adexport_outputs* outputs) {
  delete outputs;
}
