/* One request behind every listener: HTTP chat and text completions, the lines of `tandem generate`, and frames. What
 * is in here was checked completely: ids are below the vocabulary, texts are UTF-8, counts fit, prompt and answer fit
 * the context. How it came about (JSON, frame) is forgotten. */
#ifndef TANDEM_REQUEST_REQUEST_H
#define TANDEM_REQUEST_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/engine/engine.h"
#include "runtime/format/model_config.h"
#include "runtime/tokenizer/chat_template.h"
#include "runtime/tokenizer/tokenizer.h"

#define REQUEST_MAX_CHOICES 16
#define REQUEST_MAX_SEQUENCES 128 /* prompts x choices */
#define REQUEST_MAX_STOPS 16      /* OpenAI takes 4, vLLM any number */
#define REQUEST_MAX_STOP_BYTES 1024
#define REQUEST_MAX_STOP_IDS 64 /* the model's end ids included */

/* What does not change from request to request. Read-only once loaded, so that any number of threads may use it. */
struct request_context {
    struct tokenizer *tokenizer;
    struct chat_template *chat_template; /* NULL: the directory has none that is served; chat is refused */
    char *chat_refusal;                  /* why chat_template is NULL */
    struct generation_config defaults;
    char *model; /* the name clients use */
    uint32_t max_model_len;
    uint32_t vocab_size;             /* ids that prompts may hold are below it */
    bool adds_bos;                   /* a text prompt gets the BOS in front, as the reference's encode() does */
    uint32_t think_id, end_think_id; /* "<think>" and "</think>"; TOKEN_NONE where they are no single tokens */
};

/* Reads generation_config.json of a Hugging Face directory, and tokenizer and chat template of another or the same.
 * `served_model_name` NULL or "" means the model's last component. Prompts are held to ids below `n_valid_ids`; those
 * that the tokenizer does not know have no text. A missing or unknown chat template is no failure: chat requests are
 * refused with the reason. */
enum status request_context_load(const char *model_dir, const char *tokenizer_dir, const char *served_model_name,
                                 uint32_t max_model_len, uint32_t n_valid_ids, struct request_context **out);
void request_context_free(struct request_context *context);

enum request_kind {
    REQUEST_CHAT,       /* messages in, a message out, with the reasoning apart */
    REQUEST_COMPLETION, /* prompts in, text out */
};

struct request_stop {
    char *text; /* UTF-8, may hold NUL */
    size_t size;
};

struct request {
    enum request_kind kind;
    uint32_t n;                 /* choices per prompt */
    struct token_list *prompts; /* n_prompts of them, each with at least one id */
    uint32_t *max_tokens;       /* of each prompt: as asked, else what is left of the context; >= 1 */
    uint32_t n_prompts;
    char **echo; /* completions with echo: each prompt as text; else NULL */
    size_t *echo_size;

    struct step_sampling sampling; /* choice and prompt_len are each sequence's own, see request_sequence */
    bool seeded;                   /* the client chose the seed */
    struct request_stop stops[REQUEST_MAX_STOPS];
    uint32_t n_stops;
    uint32_t stop_ids[REQUEST_MAX_STOP_IDS]; /* the model's end ids (unless ignore_eos) and stop_token_ids */
    uint32_t n_stop_ids;
    struct step_bias *bias; /* n_bias entries */
    uint32_t n_bias;

    bool split_reasoning;    /* chat: what stands between <think> and </think> goes to the reasoning */
    bool starts_in_thinking; /* the prompt ends inside <think> */
    bool goes_on_thinking;   /* and holds reasoning behind it: the answer's first text is no beginning */
    bool include_reasoning;  /* else the reasoning is generated and not shown */
    bool skip_special;       /* special tokens have no text */
    bool include_stop_text;  /* the stop text that ended the answer stays in it */

    bool stream;
    bool include_usage;    /* a last chunk with the usage */
    bool continuous_usage; /* the usage so far in every chunk */
};

void request_free(struct request *request);

/* prompts x choices. Sequence `index` is choice index % n of prompt index / n, and is shown as choices[index]. */
uint32_t request_sequences(const struct request *request);

/* Fills what the engine wants of sequence `index`; pointers stay the request's. request_id, user, arrival and deadline
 * are left to the caller. Seeded choices are numbered from 0 within their prompt, so that a prompt's answers do not
 * depend on its neighbours in the list; with a seed of ours every sequence draws its own numbers. */
void request_sequence(const struct request *request, uint32_t index, struct engine_request *out);

/* Prompt ids of all prompts together: what usage.prompt_tokens counts. */
uint64_t request_prompt_tokens(const struct request *request);

#endif
