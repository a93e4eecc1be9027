/* A program in C: it opens a bundle, runs a batch with an adapter for each row, and asks for what is refused. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adexport/adexport.h"

static int failed(adexport_error* error) {
  if (error == NULL) return 0;
  fprintf(stderr, "%s\n", adexport_error_message(error));
  adexport_error_free(error);
  return 1;
}

int main(void) {
  const char* folder = getenv("ADEXPORT_TEST_BUNDLES");
  char path[4096];
  adexport_engine_options options = ADEXPORT_ENGINE_OPTIONS_INIT;
  adexport_engine* engine = NULL;
  adexport_outputs* outputs = NULL;
  adexport_names* names = NULL;
  adexport_error* error = NULL;
  const int64_t ids[] = {5, 6, 7, 5, 6, 7};
  const int64_t shape[] = {2, 3};
  const char* adapters[] = {"a", NULL};
  adexport_tensor input = {"input_ids", ADEXPORT_INT64, ids, shape, 2};
  adexport_tensor output;
  size_t index, half;
  double difference = 0;

  if (folder == NULL) return 77; /* skipped */
  snprintf(path, sizeof path, "%s/encoder.bundle", folder);
  options.threads = 1;
  options.kernels = "";
  if (failed(adexport_engine_open(path, &options, &engine))) return 1;
  if (failed(adexport_engine_adapters(engine, &names))) return 1;
  if (adexport_names_count(names) != 3 || strcmp(adexport_names_get(names, 0), "a") != 0) return 2;
  adexport_names_free(names);

  if (failed(adexport_engine_run(engine, &input, 1, adapters, 2, &outputs))) return 1;
  output = adexport_outputs_get(outputs, 0);
  if (output.rank != 3 || output.shape[0] != 2 || output.shape[1] != 3) return 3;
  half = (size_t)(output.shape[1] * output.shape[2]);
  for (index = 0; index < half; ++index) {
    difference += fabs(((const float*)output.data)[index] - ((const float*)output.data)[half + index]);
  }
  if (!(difference > 1e-3)) return 4; /* two rows alike, one with an adapter */
  adexport_outputs_free(outputs);

  adapters[1] = "nobody";
  error = adexport_engine_run(engine, &input, 1, adapters, 2, &outputs);
  if (error == NULL || adexport_error_get_kind(error) != ADEXPORT_UNKNOWN_ADAPTER_ERROR) return 5;
  if (adexport_error_problem_count(error) != 1) return 6;
  if (strcmp(adexport_error_get_problem(error, 0).subject, "nobody") != 0) return 7;
  adexport_error_free(error);
  adexport_engine_close(engine);
  return 0;
}
