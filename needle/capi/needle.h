/* Needle's engine behind a C ABI, for every language that can call C: a query and tools in, calls
 * out.
 *
 * Nothing throws across it. Texts are UTF-8 with a length and need no zero at the end (broken bytes
 * are taken as U+FFFD); texts that come back end in a zero beside their length. Models are
 * immutable and safe from any thread; a session belongs to one thread at a time, only
 * needle_session_cancel may come from another.
 */
#ifndef NEEDLE_CAPI_NEEDLE_H_
#define NEEDLE_CAPI_NEEDLE_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define NEEDLE_API
#else
#define NEEDLE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a program compiled against an older header can no longer use the library. */
#define NEEDLE_ABI_VERSION 1

typedef enum needle_status {
  NEEDLE_OK = 0,
  NEEDLE_INVALID_ARGUMENT = 1, /* a null pointer, a setting out of range */
  NEEDLE_FILE_ERROR = 2,       /* the operating system refused the file */
  NEEDLE_FORMAT_ERROR = 3,     /* the file is damaged, of another version, or no weights file */
  NEEDLE_DATA_ERROR = 4,       /* the tools are not what was expected */
  NEEDLE_CALLBACK_ERROR = 5,   /* the callback threw; the text until then is in the result */
  NEEDLE_OUT_OF_MEMORY = 6,
  NEEDLE_ERROR = 7 /* anything else */
} needle_status;

typedef enum needle_stop {
  NEEDLE_STOP_EOS = 0, /* the answer is whole */
  NEEDLE_STOP_MAX_TOKENS = 1,
  NEEDLE_STOP_CANCELLED = 2, /* by the callback or needle_session_cancel */
  NEEDLE_STOP_DEADLINE = 3
} needle_stop;

typedef struct needle_model needle_model;     /* weights and tokenizer */
typedef struct needle_session needle_session; /* a model and a set of tools */

NEEDLE_API int needle_abi_version(void);
/* The message of this thread's last failed call: where, what was expected, what came. Never null,
 * valid until the next call that fails on this thread. */
NEEDLE_API const char* needle_last_error(void);

typedef struct needle_load_options {
  size_t threads;         /* the calling one included; 0: one per core */
  int32_t skip_checksums; /* 1: trust the file */
  int32_t float_numerics; /* 1: float32 activations, the specification; where the CPU has kernels
                             0: 16-bit activations where they matter, 8-bit elsewhere; 2: 16-bit
                             everywhere, nearest to float32; 3: 8-bit everywhere, the fastest */
} needle_load_options;

/* `options` may be null: one thread, checksums verified, float_numerics 0. */
NEEDLE_API needle_status needle_model_load(const char* path, const needle_load_options* options,
                                           needle_model** model);
/* The same from the bytes of a weights file in memory (needle-export embed makes them part of a
 * program). Used where they lie if they start at a multiple of 64 bytes: then they must stay until
 * the model and its last session are freed. Else they are copied. */
NEEDLE_API needle_status needle_model_load_memory(const void* data, size_t bytes,
                                                  const needle_load_options* options,
                                                  needle_model** model);
/* Sessions made from it stay usable: the weights go with the last of them. Null is allowed. */
NEEDLE_API void needle_model_free(needle_model* model);

/* `tools_json`: an array of tools, as declared to a model; "[]" for none. */
NEEDLE_API needle_status needle_session_create(const needle_model* model, const char* tools_json,
                                               size_t tools_bytes, needle_session** session);
NEEDLE_API void needle_session_free(needle_session* session);

typedef struct needle_generate_options {
  int64_t max_tokens; /* of the answer; 0: 512 */
  int64_t max_ms; /* negative: no deadline; 0: it is over before it begins. Looked at between the
                     layers that read the prompt and at every token: what is under way is finished
                     first. One reached while the prompt was read leaves no text */
} needle_generate_options;

typedef struct needle_result {
  const char* text; /* calls as a JSON array; the session's, until its next call */
  size_t text_bytes;
  needle_stop stop;
  int64_t prompt_tokens;
  int64_t tokens;
  int64_t cut_tokens; /* of query and tools: they did not fit the model's longest prompt */
  double prefill_ms;
  double decode_ms;
} needle_result;

/* New text, whole characters; not zero-terminated. Return 0 to stop, anything else to go on. */
typedef int (*needle_text_callback)(void* user, const char* text, size_t text_bytes);

/* `options` and `on_text` may be null (no deadline, no streaming). */
NEEDLE_API needle_status needle_generate(needle_session* session, const char* query,
                                         size_t query_bytes, const needle_generate_options* options,
                                         needle_text_callback on_text, void* user,
                                         needle_result* result);
/* One of several generations that go on together: the arguments of needle_generate. */
typedef struct needle_batch_item {
  needle_session* session; /* of the same model as the others', and in the batch once */
  const char* query;
  size_t query_bytes;
  const needle_generate_options* options; /* may be null */
  needle_text_callback on_text;           /* may be null */
  void* user;
  needle_result result; /* out */
} needle_batch_item;

/* Prompts are read one after the other, then every session gets its next token in one pass, for
 * which the weights are read once. The answers are those of needle_generate, byte for byte. A
 * session that is cancelled, late or refused by its callback ends alone; `decode_ms` is of all.
 * NEEDLE_CALLBACK_ERROR: a callback threw, the results are complete. After any other error there
 * are none, and no callback was called unless it came while tokens were made. */
NEEDLE_API needle_status needle_generate_batch(needle_batch_item* items, size_t count);

/* From any thread: the generation under way stops at its next layer of the prompt or its next
 * token; one not yet begun is not affected. */
NEEDLE_API void needle_session_cancel(needle_session* session);

/* Contrastive embedding of a text, of unit length. `count`: in, the room in `values`; out, the
 * length. With too little room (0 asks for the length): NEEDLE_INVALID_ARGUMENT, `count` set. */
NEEDLE_API needle_status needle_embed(const needle_model* model, const char* text,
                                      size_t text_bytes, float* values, size_t* count);

typedef struct needle_ranked_tool {
  size_t index; /* among the session's tools */
  float score;  /* cosine */
} needle_ranked_tool;

/* The session's tools that fit the query best, best first. `count`: in, the room; out, how many
 * were written. The first call embeds the tools. */
NEEDLE_API needle_status needle_rank_tools(needle_session* session, const char* query,
                                           size_t query_bytes, needle_ranked_tool* tools,
                                           size_t* count);

#ifdef __cplusplus
}
#endif

#endif /* NEEDLE_CAPI_NEEDLE_H_ */
