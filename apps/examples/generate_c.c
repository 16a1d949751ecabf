/* Query and tools to calls from C: generate_c model.needle "Wake me at 7" */
#include <stdio.h>
#include <string.h>

#include "needle/capi/needle.h"

static int print(void* user, const char* text, size_t text_bytes) {
  return fwrite(text, 1, text_bytes, (FILE*)user) == text_bytes;
}

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, needle_last_error());
  return 1;
}

int main(int argc, char** argv) {
  static const char kTools[] =
      "[{\"name\": \"set_alarm\", \"description\": \"Wake the user.\","
      "  \"parameters\": {\"time\": {\"type\": \"string\", \"required\": true}}}]";
  if (argc != 3) {
    fprintf(stderr, "usage: generate_c MODEL.needle QUERY\n");
    return 2;
  }
  needle_model* model = NULL;
  if (needle_model_load(argv[1], NULL, &model) != NEEDLE_OK) {
    return failed("load");
  }
  needle_session* session = NULL;
  needle_status status = needle_session_create(model, kTools, strlen(kTools), &session);
  needle_model_free(model); /* the session keeps the weights */
  if (status != NEEDLE_OK) {
    return failed("session");
  }
  const needle_generate_options options = {.max_tokens = 128, .max_ms = 60000};
  needle_result result;
  status = needle_generate(session, argv[2], strlen(argv[2]), &options, print, stderr, &result);
  if (status == NEEDLE_OK) {
    printf("%s\n", result.text);
  }
  needle_session_free(session);
  return status == NEEDLE_OK ? 0 : failed("generate");
}
