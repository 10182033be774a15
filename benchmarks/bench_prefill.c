/* Tokens per second of computing one prompt, by ranks and length, and where the time goes.
 *
 *   bench_prefill --model DIR [--backend cuda] [--tp 1,2] [--prompt 2048,8192] [--chunk 8192] ...
 *
 * The prompt is put into the ranks' executors in chunks, as the engine does, and the time runs from the first chunk
 * going in to the first new token coming out. "of_peak_%" is the floating-point operations of one rank (matrix products
 * and causal attention) over what its largest product reached in the same run: the model's utilisation (MFU). Below
 * stand the kinds of op of the last chunk, each played back alone; its floor is the longer of reading and computing.
 * --no-ops leaves them out. */
#include <math.h>
#include <stdlib.h>

#include "benchmarks/support_breakdown.h"
#include "benchmarks/support_ceiling.h"
#include "benchmarks/support_group.h"
#include "benchmarks/support_options.h"
#include "benchmarks/support_report.h"
#include "runtime/base/alloc.h"
#include "runtime/base/clock.h"
#include "runtime/worker/model_executor.h"

#define FLAGS                                                                                                          \
    (1u << OPTION_MODEL | 1u << OPTION_BACKEND | 1u << OPTION_TP | 1u << OPTION_PROMPT | 1u << OPTION_CHUNK |          \
     1u << OPTION_STEPS | 1u << OPTION_RANDOM_WEIGHTS | 1u << OPTION_NO_OPS | 1u << OPTION_JSON)

struct prompt_result {
    struct spread us; /* of the whole prompt */
    double flops;     /* of one rank */
    struct breakdown breakdown;
};

/* Of one run; the ranks inherit it. */
static struct options options;

static uint32_t chunk_of(uint32_t prompt) {
    return prompt < options.chunk ? prompt : options.chunk;
}

/* Where the last chunk begins. */
static uint32_t last_chunk(uint32_t prompt) {
    return (prompt - 1) / options.chunk * options.chunk;
}

/* Matrix products of every token, the head's of the last one alone, and attention to all positions before. */
static double prompt_flops(const struct model *model, uint32_t prompt) {
    double per_token = 0;
    for (uint32_t i = 0; i < model->config.n_layers; i++) {
        const struct layer_weights *layer = &model->weights.layers[i];
        const struct weight *products[] = {&layer->qkv, &layer->o, &layer->gate_up, &layer->down};
        for (size_t j = 0; j < sizeof products / sizeof products[0]; j++) {
            per_token += 2.0 * products[j]->n * products[j]->k;
        }
    }
    double pairs = (double)prompt * (prompt + 1) / 2;
    double attention = 4.0 * pairs * model->shard.n_q * model->config.head_dim * model->config.n_layers;
    return per_token * prompt + attention + 2.0 * model->weights.head.n * model->weights.head.k;
}

static double run_prompt(struct rank *rank, uint32_t prompt) {
    uint32_t in_flight = 0;
    rank_reset(rank);
    group_barrier(rank);
    uint64_t start_ns = clock_now_ns();
    for (uint32_t pos = 0; pos < prompt; pos += options.chunk) {
        struct bench_step step = {.rows = 1,
                                  .q_len = prompt - pos < options.chunk ? prompt - pos : options.chunk,
                                  .pos = pos,
                                  .prompt = prompt,
                                  .slot_blocks = bench_blocks(prompt + 1),
                                  .fresh = pos == 0};
        if (in_flight == 2) {
            rank_wait(rank);
            in_flight--;
        }
        rank_step(rank, &step);
        in_flight++;
    }
    for (; in_flight > 0; in_flight--) {
        rank_wait(rank);
    }
    return (double)(clock_now_ns() - start_ns) * 1e-3;
}

static struct breakdown_step breakdown_step(uint32_t prompt) {
    uint32_t pos = last_chunk(prompt);
    return (struct breakdown_step){.rows = 1, .q_len = prompt - pos, .pos = pos, .greedy = true, .max_kv_len = prompt};
}

static void run_prompts(struct rank *rank) {
    struct prompt_result *shared = (struct prompt_result *)(void *)rank->shared->result;
    double *us = xcalloc(options.steps, sizeof *us);
    for (uint32_t i = 0; i < options.prompt.n; i++) {
        uint32_t prompt = options.prompt.at[i];
        struct prompt_result result = {.flops = prompt_flops(model_executor_model(rank->executor), prompt)};
        run_prompt(rank, prompt); /* what a first time costs */
        for (uint32_t k = 0; k < options.steps; k++) {
            us[k] = run_prompt(rank, prompt);
        }
        result.us = spread_of(us, options.steps);
        struct breakdown_step step = breakdown_step(prompt);
        if (!options.no_ops) {
            breakdown_run(rank, &step, 0, &result.breakdown);
        }
        if (rank->init.rank == 0) {
            shared[i] = result;
        }
    }
    free(us);
}

/* `one` is the same prompt on one rank, NULL when that was not measured. */
static void report_prompt(uint32_t tp, uint32_t prompt, const struct prompt_result *result,
                          const struct ceiling *ceiling, const struct prompt_result *one) {
    double us = result->us.median;
    REPORT_ROW("prompt", CELL("tp", tp, 0), CELL("prompt", prompt, 0), CELL("chunk", chunk_of(prompt), 0),
               CELL("ms", us * 1e-3, 2), CELL("worst_ms", result->us.max * 1e-3, 2),
               CELL("tokens_per_s", prompt / us * 1e6, 0), CELL("tflop_per_s", result->flops / us * 1e-6, 1),
               CELL("of_peak_%", 100 * result->flops / us * 1e6 / ceiling->arithmetic, 1),
               CELL("efficiency_%", one != NULL ? 100 * one->us.median / us / tp : NAN, 1));
}

static struct group_config config_for(uint32_t tp) {
    struct group_config config = {.model_dir = options.model,
                                  .backend = options.backend,
                                  .world = tp,
                                  .dummy = options.random_weights,
                                  .max_rows = 1};
    for (uint32_t i = 0; i < options.prompt.n; i++) {
        uint32_t prompt = options.prompt.at[i];
        config.max_len = prompt + 1 > config.max_len ? prompt + 1 : config.max_len;
        config.max_tokens = chunk_of(prompt) > config.max_tokens ? chunk_of(prompt) : config.max_tokens;
    }
    config.kv_tokens = config.max_len;
    return config;
}

int main(int argc, char **argv) {
    options =
        (struct options){.backend = "cuda", .tp = {1, {1}}, .prompt = {2, {2048, 8192}}, .chunk = 8192, .steps = 5};
    options_parse(argc, argv, "bench_prefill --model DIR [FLAG ...]", FLAGS, &options);
    report_open("prefill", options.json);
    struct ceiling ceiling = ceiling_measure(options.backend, 0);
    ceiling_report(&ceiling);
    static struct prompt_result results[OPTIONS_LIST_MAX][OPTIONS_LIST_MAX];
    for (uint32_t t = 0; t < options.tp.n; t++) {
        uint32_t tp = options.tp.at[t];
        struct group_config config = config_for(tp);
        struct ceiling share = ceiling_share(&ceiling, options.backend, tp);
        group_run(&config, run_prompts, results[t], sizeof results[t]);
        for (uint32_t i = 0; i < options.prompt.n && !options.no_ops; i++) {
            struct breakdown_step step = breakdown_step(options.prompt.at[i]);
            breakdown_report(&results[t][i].breakdown, &share, tp, &step);
        }
        for (uint32_t i = 0; i < options.prompt.n; i++) {
            const struct prompt_result *one = options.tp.at[0] == 1 ? &results[0][i] : NULL;
            report_prompt(tp, options.prompt.at[i], &results[t][i], &share, one);
        }
    }
    return 0;
}
