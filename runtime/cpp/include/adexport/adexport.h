/* The C interface of libadexport: run bundles of adexport, with an adapter for each row of a batch.
 *
 * Strings are UTF-8 and end with a zero byte. Functions that can fail return NULL, or an error that the
 * caller frees with adexport_error_free; what they were to write is then untouched. Structures that begin
 * with `size` are filled by ADEXPORT_INIT-macros: fields that a later version adds keep their defaults.
 * All functions on one engine may be called from several threads, except adexport_engine_close. */
#ifndef ADEXPORT_ADEXPORT_H
#define ADEXPORT_ADEXPORT_H

#include <stddef.h>
#include <stdint.h>

#if defined(ADEXPORT_STATIC)
#define ADEXPORT_API
#else
#define ADEXPORT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the library, as "0.1.0". */
ADEXPORT_API const char* adexport_version(void);

/* ---- errors -------------------------------------------------------------------------------- */

typedef struct adexport_error adexport_error;

/* The classes of adexport_runtime.errors. */
typedef enum adexport_error_kind {
  ADEXPORT_BUNDLE_ERROR = 1,          /* a bundle is absent, damaged, incomplete or of another version */
  ADEXPORT_ADAPTER_ERROR = 2,         /* an adapter is refused; what was bound before still serves */
  ADEXPORT_PROVIDER_ERROR = 3,        /* the execution provider that was asked for is not to be had */
  ADEXPORT_REQUEST_ERROR = 4,         /* the arguments of a call do not fit */
  ADEXPORT_UNKNOWN_ADAPTER_ERROR = 5, /* a request error: a row asks for an adapter that is not bound */
  ADEXPORT_BANK_FULL_ERROR = 6,       /* a request error: more different adapters than the bank has rows */
  ADEXPORT_DEPENDENCY_ERROR = 7,      /* libonnxruntime is not to be had */
  ADEXPORT_INTERNAL_ERROR = 8         /* a fault of the library, or no memory */
} adexport_error_kind;

/* One culprit. `code` is one of adexport_runtime.errors.Code, as "wrong-shape"; the others may be "". */
typedef struct adexport_problem {
  const char* code;
  const char* subject;
  const char* got;
  const char* expected;
  const char* cause;
  const char* mend;
} adexport_problem;

ADEXPORT_API adexport_error_kind adexport_error_get_kind(const adexport_error* error);
/* All culprits in one paragraph. */
ADEXPORT_API const char* adexport_error_message(const adexport_error* error);
ADEXPORT_API size_t adexport_error_problem_count(const adexport_error* error);
/* The strings live as long as the error. `index` must be below the count. */
ADEXPORT_API adexport_problem adexport_error_get_problem(const adexport_error* error, size_t index);
ADEXPORT_API void adexport_error_free(adexport_error* error);

/* ---- the engine ---------------------------------------------------------------------------- */

typedef struct adexport_engine adexport_engine;

/* A setting of ONNX Runtime's provider, as {"device_id", "1"}. */
typedef struct adexport_option {
  const char* key;
  const char* value;
} adexport_option;

typedef struct adexport_engine_options {
  size_t size;
  const char* provider;    /* "cpu", "cuda", "ort-tensorrt", "ort-tensorrt-rtx"; NULL: "cpu" */
  const char* ort_library; /* path of libonnxruntime; NULL: $ADEXPORT_ORT_LIBRARY, then the loader's search */
  const char* kernels;     /* path of libadexport_kernels; NULL: $ADEXPORT_KERNELS, then beside libadexport;
                              "" or "none": without. An absent library is an error only if it was named */
  int64_t rows;            /* adapters resident at once; 0: as many as are bound */
  int32_t threads;         /* of one operator on the CPU; 0: ONNX Runtime chooses */
  int32_t spin;            /* whether idle threads wait busily; default 1 */
  const adexport_option* provider_options;
  size_t provider_option_count;
} adexport_engine_options;

#define ADEXPORT_ENGINE_OPTIONS_INIT \
  { sizeof(adexport_engine_options), NULL, NULL, NULL, 0, 0, 1, NULL, 0 }

/* Open a bundle; the adapters that were bound into its folder are bound. `options` may be NULL. */
ADEXPORT_API adexport_error* adexport_engine_open(const char* bundle, const adexport_engine_options* options,
                                                  adexport_engine** engine);
/* No call may be under way. NULL is fine. */
ADEXPORT_API void adexport_engine_close(adexport_engine* engine);

/* What runs the graph, as ONNX Runtime names it. */
ADEXPORT_API const char* adexport_engine_provider(const adexport_engine* engine);
/* ONNX Runtime's version. */
ADEXPORT_API const char* adexport_engine_ort_version(const adexport_engine* engine);
/* The path of the kernel library that is in use; "" without one. */
ADEXPORT_API const char* adexport_engine_kernels(const adexport_engine* engine);
/* The bundle's manifest.json, as it is on disk. */
ADEXPORT_API const char* adexport_engine_manifest(const adexport_engine* engine);

/* Bind an adapter, or the name anew: `path` is the file of a bound adapter (`adexport bind` writes it);
 * NULL: adapters/NAME.safetensors of the bundle. Runs under way keep what they have. */
ADEXPORT_API adexport_error* adexport_engine_bind(adexport_engine* engine, const char* name, const char* path);
/* Forget an adapter. Runs under way finish with it. */
ADEXPORT_API adexport_error* adexport_engine_unbind(adexport_engine* engine, const char* name);

typedef struct adexport_names adexport_names;
/* The names that a run may ask for, sorted. */
ADEXPORT_API adexport_error* adexport_engine_adapters(const adexport_engine* engine, adexport_names** names);
ADEXPORT_API size_t adexport_names_count(const adexport_names* names);
ADEXPORT_API const char* adexport_names_get(const adexport_names* names, size_t index);
ADEXPORT_API void adexport_names_free(adexport_names* names);

/* ---- runs ---------------------------------------------------------------------------------- */

typedef enum adexport_dtype { ADEXPORT_FLOAT32 = 1, ADEXPORT_INT64 = 2, ADEXPORT_INT32 = 3 } adexport_dtype;

/* A dense row-major array that belongs to somebody else. */
typedef struct adexport_tensor {
  const char* name;
  adexport_dtype dtype;
  const void* data;
  const int64_t* shape;
  size_t rank;
} adexport_tensor;

typedef struct adexport_outputs adexport_outputs;

/* Run one batch.
 *
 * `inputs` by name, as the manifest declares them; those with a `fill` may be left out. `adapters`: a name
 * (NULL: the base) for each row, or one for all rows (`adapter_count` 1), or none (0: the base). */
ADEXPORT_API adexport_error* adexport_engine_run(adexport_engine* engine, const adexport_tensor* inputs,
                                                 size_t input_count, const char* const* adapters,
                                                 size_t adapter_count, adexport_outputs** outputs);
ADEXPORT_API size_t adexport_outputs_count(const adexport_outputs* outputs);
/* float32, the batch first; rows with fewer labels than the batch's widest hold minus infinity beyond
 * them. The arrays live as long as the outputs. */
ADEXPORT_API adexport_tensor adexport_outputs_get(const adexport_outputs* outputs, size_t index);
/* The label names of a row; none where the row has no head. */
ADEXPORT_API size_t adexport_outputs_label_count(const adexport_outputs* outputs, size_t row);
ADEXPORT_API const char* adexport_outputs_label(const adexport_outputs* outputs, size_t row, size_t index);
ADEXPORT_API void adexport_outputs_free(adexport_outputs* outputs);

/* ---- generation ---------------------------------------------------------------------------- */

typedef struct adexport_prompt {
  const int64_t* ids;
  size_t count;
  const char* adapter; /* NULL: the base */
} adexport_prompt;

/* How tokens are picked, as adexport_runtime.Sampling; the same seed gives the same tokens. */
typedef struct adexport_sampling {
  size_t size;
  int64_t max_new_tokens;    /* default 128 */
  double temperature;        /* 0 (default): greedy */
  int64_t top_k;             /* 0: all */
  double top_p;              /* 0 or 1: all */
  double repetition_penalty; /* default 1: none */
  int32_t has_seed;          /* 0 (default): a seed from the system */
  uint64_t seed;             /* row i takes seed + i */
  const int64_t* eos_ids;    /* tokens that end a text */
  size_t eos_count;
  int32_t has_eos; /* 0 (default): the bundle's eos_ids; 1: `eos_ids`, which may be none */
} adexport_sampling;

#define ADEXPORT_SAMPLING_INIT \
  { sizeof(adexport_sampling), 128, 0.0, 0, 0.0, 1.0, 0, 0, NULL, 0, 0 }

typedef enum adexport_reason {
  ADEXPORT_EOS = 1,
  ADEXPORT_LENGTH = 2,
  ADEXPORT_CANCELLED = 3,
  ADEXPORT_FAILED = 4
} adexport_reason;

/* Told every new token, from the calling thread; a value other than 0 ends that row as cancelled. */
typedef int32_t (*adexport_on_token)(void* user, size_t row, int64_t id);

typedef struct adexport_generated adexport_generated;

/* Continue prompts, with an adapter for each: all in one batch of at most `max_batch` rows (0: 8), which
 * others join as rows come free. A row that fails while it runs has its error in its own result. `sampling`
 * and `on_token` may be NULL. */
ADEXPORT_API adexport_error* adexport_engine_generate(adexport_engine* engine, const adexport_prompt* prompts,
                                                      size_t prompt_count, const adexport_sampling* sampling,
                                                      size_t max_batch, adexport_on_token on_token, void* user,
                                                      adexport_generated** generated);
ADEXPORT_API size_t adexport_generated_count(const adexport_generated* generated);
/* The new tokens of a row, the one that ended it included. */
ADEXPORT_API const int64_t* adexport_generated_ids(const adexport_generated* generated, size_t row, size_t* count);
ADEXPORT_API adexport_reason adexport_generated_reason(const adexport_generated* generated, size_t row);
/* The error of a row that failed, which belongs to `generated`; else NULL. */
ADEXPORT_API const adexport_error* adexport_generated_error(const adexport_generated* generated, size_t row);
ADEXPORT_API void adexport_generated_free(adexport_generated* generated);

#ifdef __cplusplus
}
#endif

#endif /* ADEXPORT_ADEXPORT_H */
