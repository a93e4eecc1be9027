// C++17 over adexport.h: run bundles of adexport, with an adapter for each row of a batch.
//
//   auto engine = adexport::Engine::open("minilm.bundle");
//   std::vector<std::int64_t> ids = …;  // [2, 7]
//   auto out = engine.run({{"input_ids", ids, {2, 7}}}, {"acme", std::nullopt});
//   const float* vectors = out["last_hidden_state"].data();
//
// Everything that fails throws adexport::Error, which names all culprits.
#ifndef ADEXPORT_ADEXPORT_HPP
#define ADEXPORT_ADEXPORT_HPP

#include <cstdint>
#include <exception>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adexport/adexport.h"

namespace adexport {

/// The version of the library, as "0.1.0".
inline std::string version() {
  return adexport_version();
}

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

inline const char* text_or_null(const std::optional<std::string>& text) {
  return text ? text->c_str() : nullptr;
}

}  // namespace detail

/// How an engine is opened.
struct Options {
  /// "cpu", "cuda", "ort-tensorrt" or "ort-tensorrt-rtx".
  std::string provider = "cpu";
  /// The path of libonnxruntime; none: $ADEXPORT_ORT_LIBRARY, then the loader's search.
  std::optional<std::string> ort_library;
  /// The path of libadexport_kernels; none: $ADEXPORT_KERNELS, then beside libadexport; "none": without.
  std::optional<std::string> kernels;
  /// Adapters resident at once; 0: as many as are bound.
  std::int64_t rows = 0;
  /// Threads of one operator on the CPU; 0: ONNX Runtime chooses.
  std::int32_t threads = 0;
  /// Whether idle threads wait busily: faster alone, slower beside other work.
  bool spin = true;
  /// Settings of ONNX Runtime's provider, as {"device_id", "1"}.
  std::map<std::string, std::string> provider_options;
};

/// A dense row-major input that belongs to the caller, and must live until the run has ended.
class Tensor {
 public:
  Tensor(std::string name, const float* data, std::vector<std::int64_t> shape)
      : Tensor(std::move(name), ADEXPORT_FLOAT32, data, std::move(shape)) {}
  Tensor(std::string name, const std::int64_t* data, std::vector<std::int64_t> shape)
      : Tensor(std::move(name), ADEXPORT_INT64, data, std::move(shape)) {}
  Tensor(std::string name, const std::int32_t* data, std::vector<std::int64_t> shape)
      : Tensor(std::move(name), ADEXPORT_INT32, data, std::move(shape)) {}
  /// Throws Error unless the vector has as many elements as the shape.
  template <class T>
  Tensor(std::string name, const std::vector<T>& values, std::vector<std::int64_t> shape)
      : Tensor(std::move(name), values.data(), std::move(shape)) {
    std::size_t count = 1;
    for (const std::int64_t size : shape_) count *= static_cast<std::size_t>(size);
    if (count != values.size()) {
      throw Error(Kind::request, "the inputs do not fit: " + name_ + " has not as many elements as its shape",
                  {{"bad-input", name_, std::to_string(values.size()) + " elements",
                    std::to_string(count) + ", as the shape says", "", ""}});
    }
  }

  /// As the C interface takes it; good as long as this.
  [[nodiscard]] adexport_tensor view() const {
    return {name_.c_str(), dtype_, data_, shape_.data(), shape_.size()};
  }

 private:
  Tensor(std::string name, adexport_dtype dtype, const void* data, std::vector<std::int64_t> shape)
      : name_(std::move(name)), dtype_(dtype), data_(data), shape_(std::move(shape)) {}

  std::string name_;
  adexport_dtype dtype_;
  const void* data_;
  std::vector<std::int64_t> shape_;
};

/// A float32 output, the batch first. It belongs to its Outputs.
class Output {
 public:
  explicit Output(const adexport_tensor& tensor) : tensor_(tensor) {}

  [[nodiscard]] std::string name() const { return tensor_.name; }
  [[nodiscard]] const float* data() const { return static_cast<const float*>(tensor_.data); }
  [[nodiscard]] std::vector<std::int64_t> shape() const { return {tensor_.shape, tensor_.shape + tensor_.rank}; }
  /// How many elements there are.
  [[nodiscard]] std::size_t size() const {
    std::size_t count = 1;
    for (std::size_t at = 0; at < tensor_.rank; ++at) count *= static_cast<std::size_t>(tensor_.shape[at]);
    return count;
  }
  [[nodiscard]] const float* begin() const { return data(); }
  [[nodiscard]] const float* end() const { return data() + size(); }
  float operator[](std::size_t index) const { return data()[index]; }

 private:
  adexport_tensor tensor_;
};

/// What a run gives back.
class Outputs {
 public:
  explicit Outputs(adexport_outputs* outputs) : outputs_(outputs) {}

  [[nodiscard]] std::size_t size() const { return adexport_outputs_count(outputs_.get()); }
  /// By its place in the manifest; throws std::out_of_range.
  [[nodiscard]] Output at(std::size_t index) const {
    if (index >= size()) throw std::out_of_range("no output " + std::to_string(index));
    return Output(adexport_outputs_get(outputs_.get(), index));
  }
  /// By its name; throws std::out_of_range.
  [[nodiscard]] Output operator[](std::string_view name) const {
    for (std::size_t index = 0; index < size(); ++index) {
      const adexport_tensor tensor = adexport_outputs_get(outputs_.get(), index);
      if (name == tensor.name) return Output(tensor);
    }
    throw std::out_of_range("no output " + std::string(name));
  }
  /// The label names of a row; none where the row has no head. Logits beyond them are minus infinity.
  [[nodiscard]] std::vector<std::string> labels(std::size_t row) const {
    std::vector<std::string> names;
    for (std::size_t index = 0; index < adexport_outputs_label_count(outputs_.get(), row); ++index) {
      names.emplace_back(adexport_outputs_label(outputs_.get(), row, index));
    }
    return names;
  }

 private:
  detail::Owned<adexport_outputs, adexport_outputs_free> outputs_;
};

/// A prompt to continue, and the adapter for it (none: the base).
struct Prompt {
  std::vector<std::int64_t> ids;
  std::optional<std::string> adapter;
};

/// How tokens are picked; the same seed gives the same tokens.
struct Sampling {
  std::int64_t max_new_tokens = 128;
  double temperature = 0.0;                          ///< 0: greedy
  std::int64_t top_k = 0;                            ///< 0: all
  double top_p = 0.0;                                ///< 0 or 1: all
  double repetition_penalty = 1.0;                   ///< 1: none
  std::optional<std::uint64_t> seed;                 ///< row i takes seed + i; none: a seed from the system
  std::optional<std::vector<std::int64_t>> eos_ids;  ///< none: the bundle's; empty: none
};

/// Why a text ended.
enum class Reason {
  eos = ADEXPORT_EOS,
  length = ADEXPORT_LENGTH,
  cancelled = ADEXPORT_CANCELLED,
  failed = ADEXPORT_FAILED,
};

/// A text that has ended.
struct Generated {
  std::vector<std::int64_t> ids;  ///< the new tokens, the one that ended the text included
  Reason reason = Reason::length;
  std::optional<Error> error;  ///< of a row that failed
};

/// One frozen base for many tenants. All functions may be called from several threads.
class Engine {
 public:
  /// Told every new token of a row, from the calling thread; false ends that row as cancelled.
  using OnToken = std::function<bool(std::size_t row, std::int64_t id)>;

  /// Open a bundle; the adapters that were bound into its folder are bound.
  static Engine open(const std::string& bundle, const Options& options = {}) {
    adexport_engine_options given = ADEXPORT_ENGINE_OPTIONS_INIT;
    given.provider = options.provider.c_str();
    given.ort_library = detail::text_or_null(options.ort_library);
    given.kernels = detail::text_or_null(options.kernels);
    given.rows = options.rows;
    given.threads = options.threads;
    given.spin = options.spin ? 1 : 0;
    std::vector<adexport_option> settings;
    settings.reserve(options.provider_options.size());
    for (const auto& [key, value] : options.provider_options) settings.push_back({key.c_str(), value.c_str()});
    given.provider_options = settings.data();
    given.provider_option_count = settings.size();
    adexport_engine* engine = nullptr;
    detail::check(adexport_engine_open(bundle.c_str(), &given, &engine));
    return Engine(engine);
  }

  /// What runs the graph, as ONNX Runtime names it.
  [[nodiscard]] std::string provider() const { return adexport_engine_provider(engine_.get()); }
  [[nodiscard]] std::string ort_version() const { return adexport_engine_ort_version(engine_.get()); }
  /// The path of the kernel library that is in use; empty without one.
  [[nodiscard]] std::string kernels() const { return adexport_engine_kernels(engine_.get()); }
  /// The bundle's manifest.json, as it is on disk.
  [[nodiscard]] std::string manifest() const { return adexport_engine_manifest(engine_.get()); }

  /// Bind what `adexport bind` wrote into the bundle under this name. Runs under way keep what they have.
  void bind(const std::string& name) { detail::check(adexport_engine_bind(engine_.get(), name.c_str(), nullptr)); }
  /// Bind an adapter, or the name anew, from the file of a bound adapter.
  void bind(const std::string& name, const std::string& path) {
    detail::check(adexport_engine_bind(engine_.get(), name.c_str(), path.c_str()));
  }
  /// Forget an adapter. Runs under way finish with it.
  void unbind(const std::string& name) { detail::check(adexport_engine_unbind(engine_.get(), name.c_str())); }
  /// The names that a run may ask for, sorted.
  [[nodiscard]] std::vector<std::string> adapters() const {
    adexport_names* listed = nullptr;
    detail::check(adexport_engine_adapters(engine_.get(), &listed));
    const detail::Owned<adexport_names, adexport_names_free> owned(listed);
    std::vector<std::string> names;
    for (std::size_t index = 0; index < adexport_names_count(listed); ++index) {
      names.emplace_back(adexport_names_get(listed, index));
    }
    return names;
  }

  /// Run one batch. `adapters`: a name (none: the base) for each row, or one for all rows, or nothing.
  Outputs run(const std::vector<Tensor>& inputs, const std::vector<std::optional<std::string>>& adapters = {}) {
    std::vector<adexport_tensor> views;
    views.reserve(inputs.size());
    for (const Tensor& input : inputs) views.push_back(input.view());
    std::vector<const char*> names;
    names.reserve(adapters.size());
    for (const auto& name : adapters) names.push_back(detail::text_or_null(name));
    adexport_outputs* outputs = nullptr;
    detail::check(
        adexport_engine_run(engine_.get(), views.data(), views.size(), names.data(), names.size(), &outputs));
    return Outputs(outputs);
  }

  /// Continue prompts, all in one batch of at most `max_batch` rows (0: 8). A row that fails while it runs has
  /// its error in its own result. What `on_token` throws ends all rows, and is thrown on.
  std::vector<Generated> generate(const std::vector<Prompt>& prompts, const Sampling& sampling = {},
                                  std::size_t max_batch = 0, const OnToken& on_token = {}) {
    std::vector<adexport_prompt> rows;
    rows.reserve(prompts.size());
    for (const Prompt& prompt : prompts) {
      rows.push_back({prompt.ids.data(), prompt.ids.size(), detail::text_or_null(prompt.adapter)});
    }
    const adexport_sampling settings = sampling_of(sampling);
    Listener listener{on_token, nullptr};
    adexport_generated* made = nullptr;
    detail::check(adexport_engine_generate(engine_.get(), rows.data(), rows.size(), &settings, max_batch,
                                           on_token ? &Engine::tell : nullptr, &listener, &made));
    const detail::Owned<adexport_generated, adexport_generated_free> owned(made);
    if (listener.thrown) std::rethrow_exception(listener.thrown);
    std::vector<Generated> results(adexport_generated_count(made));
    for (std::size_t row = 0; row < results.size(); ++row) {
      std::size_t count = 0;
      const std::int64_t* ids = adexport_generated_ids(made, row, &count);
      results[row].ids.assign(ids, ids + count);
      results[row].reason = static_cast<Reason>(adexport_generated_reason(made, row));
      const adexport_error* error = adexport_generated_error(made, row);
      if (error != nullptr) results[row].error.emplace(error);
    }
    return results;
  }

  /// For what the C interface has and this has not; it belongs to this.
  [[nodiscard]] adexport_engine* get() const noexcept { return engine_.get(); }

 private:
  struct Listener {
    const OnToken& on_token;
    std::exception_ptr thrown;
  };

  explicit Engine(adexport_engine* engine) : engine_(engine) {}

  static std::int32_t tell(void* user, std::size_t row, std::int64_t id) noexcept {
    auto& listener = *static_cast<Listener*>(user);
    if (listener.thrown) return 1;
    try {
      return listener.on_token(row, id) ? 0 : 1;
    } catch (...) {
      listener.thrown = std::current_exception();
      return 1;
    }
  }

  static adexport_sampling sampling_of(const Sampling& sampling) {
    adexport_sampling settings = ADEXPORT_SAMPLING_INIT;
    settings.max_new_tokens = sampling.max_new_tokens;
    settings.temperature = sampling.temperature;
    settings.top_k = sampling.top_k;
    settings.top_p = sampling.top_p;
    settings.repetition_penalty = sampling.repetition_penalty;
    settings.has_seed = sampling.seed ? 1 : 0;
    settings.seed = sampling.seed.value_or(0);
    settings.has_eos = sampling.eos_ids ? 1 : 0;
    if (sampling.eos_ids) {
      settings.eos_ids = sampling.eos_ids->data();
      settings.eos_count = sampling.eos_ids->size();
    }
    return settings;
  }

  detail::Owned<adexport_engine, adexport_engine_close> engine_;
};

}  // namespace adexport

#endif  // ADEXPORT_ADEXPORT_HPP
